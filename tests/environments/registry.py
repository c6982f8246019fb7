"""A registry that has one image, as an engine asks one for it: the HTTP API V2 of Docker's registry, read-only."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import docker

from executor import dockerd
from executor.environments.archive import image_config, unpack_layers

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
LAYER = "application/vnd.docker.image.rootfs.diff.tar"


@contextmanager
def serving(engine: docker.DockerClient, image: str, label: dict[str, str], folder: Path) -> Iterator[tuple[str, str]]:
    """Serve the layers of an image that the engine has, with labels of one's own: the address, and the digest."""
    dockerd.save(engine, image, folder / "saved.tar")
    layers = unpack_layers(folder / "saved.tar", folder)
    files = sorted(folder.glob("base-*.tar"), key=lambda path: int(path.stem.partition("-")[2]))
    config = image_config(layers, variables={"PATH": "/usr/bin:/bin"}, labels=label)
    blobs: dict[str, bytes | Path] = {_digest(config): config}
    blobs |= {layer.digest: file for layer, file in zip(layers, files, strict=True)}
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {
                "mediaType": "application/vnd.docker.container.image.v1+json",
                "size": len(config),
                "digest": _digest(config),
            },
            "layers": [{"mediaType": LAYER, "size": each.size, "digest": each.digest} for each in layers],
        }
    ).encode()

    class Registry(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            kind, _, name = self.path.rpartition("/")
            if self.path == "/v2/":
                self._answer(b"{}", "application/json", "")
            elif kind.endswith("/manifests") and name in ("1", _digest(manifest)):
                self._answer(manifest, MANIFEST, _digest(manifest))
            elif name in blobs:
                self._answer(blobs[name], "application/octet-stream", name)
            else:
                self.send_error(404)

        do_HEAD = do_GET

        def _answer(self, content: bytes | Path, kind: str, digest: str) -> None:
            data = content if isinstance(content, bytes) else content.read_bytes()
            self.send_response(200)
            headers = {"Content-Type": kind, "Content-Length": str(len(data)), "Docker-Content-Digest": digest}
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Registry)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}/test/base:1", _digest(manifest)
    finally:
        server.shutdown()
        server.server_close()


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
