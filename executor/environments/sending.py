"""Sends an engine an image: only the layers that it lacks, or all of them where it insists."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from executor import dockerd
from executor.environments import archive
from executor.environments.archive import Layer
from executor.environments.progress import Say
from executor.errors import MachineError


def send(client: Any, config: bytes, tag: str, layers: Sequence[Layer], *, below: str, scratch: Path, say: Say) -> None:
    """Load an image. Raises `MachineError` where the engine refuses it.

    layers: from the lowest on; those that cannot be read are layers of the image `below`
    """
    known = _known(client, [layer.digest for layer in layers])
    lean = [Layer(digest=layer.digest) if number < known else layer for number, layer in enumerate(layers)]
    try:
        _load(client, config, tag, lean, say)
    except MachineError as exc:
        if isinstance(exc.__cause__, dockerd.NOT_CONNECTED):
            raise
        say("load", f"the engine wants every layer ({exc.why})")
        saved = scratch / "below.tar"
        dockerd.save(client, below, saved)
        lower = archive.unpack_layers(saved, scratch)
        _load(client, config, tag, [*lower, *layers[len(lower) :]], say)


def _known(client: Any, digests: Sequence[str]) -> int:
    """How many layers, from the lowest on, the engine has in just this order, in an image of ours."""
    most = 0
    with dockerd.translated("the images cannot be looked at"):
        for listed in client.api.images(filters={"label": dockerd.LABEL}):
            with contextlib.suppress(dockerd.ImageNotFound):  # somebody has just removed it
                there = client.api.inspect_image(listed["Id"])["RootFS"].get("Layers") or []
                same = next((n for n, (a, b) in enumerate(zip(there, digests, strict=False)) if a != b), None)
                most = max(most, min(len(there), len(digests)) if same is None else same)
    return most


def _load(client: Any, config: bytes, tag: str, layers: Sequence[Layer], say: Say) -> None:
    total = sum(layer.size for layer in layers if layer.chunks)

    def counted() -> Iterator[bytes]:
        sent = 0
        for chunk in archive.archive(config, tag, layers):
            sent += len(chunk)
            say("load", f"sending {total / 2**20:.0f} MiB", min(1.0, sent / max(total, 1)))
            yield chunk

    dockerd.load(client, counted())
