"""Out of a bundle into a home: what its run was made of, each thing where a run looks for it."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
from pathlib import Path

from executor import dockerd
from executor.bundles.archive import Bundle
from executor.data.records import RunView, read_folder
from executor.data.snapshot import take_snapshot
from executor.data.store import Store
from executor.environments.archives import Archive, archive_path
from executor.errors import UsageError


def put_in_place(bundle: Bundle, home: Path, folder: Path) -> RunView:
    """Give a home what a bundle brings, apart from images; answers with what its record says. folder: for what is made.

    Nothing that a home has already is replaced: all of it is named by its content.
    """
    store = Store(home, folder)
    for path, file in bundle.members.items():
        kind, _, name = path.partition("/")
        if kind == "store":
            _demand(_digest(file) == name, path)
            if not store.path(name).exists():
                store.adopt(file, name)
        elif kind == "packages":
            sha256, _, file_name = name.partition("/")
            _demand("/" not in file_name and _digest(file) == sha256, path)
            _keep(file, archive_path(Archive(name=file_name, url=file_name, sha256=sha256), home))
    view = _record(bundle, folder)
    source = folder / "project"
    for path, file in bundle.members.items():
        if path.startswith("source/"):
            target = source / path.removeprefix("source/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, target)
    source.mkdir(exist_ok=True)
    if take_snapshot(source, home).name != view.snapshot:
        raise UsageError("the bundle is refused", why="its source is not that which its record tells of")
    return view


def load_images(bundle: Bundle) -> None:
    """Load the images of a bundle into the engine, as far as it has them not."""
    references: list[str] = list(bundle.about.get("images", ()))
    with contextlib.closing(dockerd.connect()) as client:
        for number, reference in enumerate(references):
            if not dockerd.has_image(client, str(reference)):
                with bundle.members[f"images/{number}.tar"].open("rb") as file:
                    dockerd.load(client, iter(lambda: file.read(2**20), b""))


def _record(bundle: Bundle, folder: Path) -> RunView:
    """What the record of a bundle says."""
    run = str(bundle.about.get("run", ""))
    _demand(run != "" and "/" not in run and run not in (".", ".."), "its manifest")
    place = folder / "record" / run
    place.mkdir(parents=True)
    shutil.copyfile(bundle.members["record/journal.jsonl"], place / "journal.jsonl")
    return read_folder(place)


def _keep(file: Path, target: Path) -> None:
    """Move a file to where it is kept, whole or not at all."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix="half-") as half:
            moved = Path(shutil.move(file, half))
            moved.chmod(0o644)
            moved.replace(target)


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _demand(holds: bool, path: str) -> None:
    if not holds:
        raise UsageError("the bundle is refused", why=f"`{path}` in it is not what its name says")
