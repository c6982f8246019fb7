"""Out of a bundle into a home: what its run was made of, each thing where a run looks for it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tarfile
import tempfile
from pathlib import Path

from executor import dockerd
from executor.bundles.archive import Bundle
from executor.data.records import RunView, read_folder
from executor.data.snapshot import take_snapshot
from executor.data.store import Store
from executor.environments.archives import Archive, archive_path
from executor.errors import UsageError
from executor.manifest import Manifest


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


def wants_of_this_machine(manifest: Manifest, view: RunView) -> list[str]:
    """What of this machine the tasks of a run are to see besides what the bundle brings, a line each."""
    task = manifest.tasks.get(view.workflow)
    names = manifest.reachable(task.environment) if task else ()
    entries = [manifest.environments[name] for name in names]
    mounts = [f"`{each.name}` is shown `{mount.source}` of this machine" for each in entries for mount in each.mounts]
    return mounts + [
        f"`{each.name}` is told your secret `{secret.name}`" for each in entries for secret in each.secrets
    ]


def wants_of_the_engine(bundle: Bundle) -> list[str]:
    """The images that a bundle brings and the engine has not, a line each."""
    with contextlib.closing(dockerd.connect()) as client:
        return [
            f"the engine is given the image `{reference}`, which environments of yours may come to stand on"
            for reference, _ in _images(bundle)
            if not dockerd.has_image(client, reference)
        ]


def load_images(bundle: Bundle) -> None:
    """Load the images of a bundle into the engine, as far as it has them not; each under its own name only."""
    with contextlib.closing(dockerd.connect()) as client:
        for reference, archive in _images(bundle):
            if not dockerd.has_image(client, reference):
                _demand(_tags(archive) <= {reference}, f"the image `{reference}`")
                with archive.open("rb") as file:
                    dockerd.load(client, iter(lambda: file.read(2**20), b""))


def _images(bundle: Bundle) -> list[tuple[str, Path]]:
    """Reference and archive of each image in a bundle."""
    references = [str(each) for each in bundle.about.get("images", ())]
    return [(each, bundle.members[f"images/{number}.tar"]) for number, each in enumerate(references)]


def _tags(archive: Path) -> set[str]:
    """The names that the engine would give to what it loads from an archive."""
    try:
        with tarfile.open(archive, mode="r:") as tar:
            listed = tar.extractfile("manifest.json")
            documents = json.load(listed) if listed else []
            return {str(tag) for each in documents for tag in each.get("RepoTags") or ()}
    except (tarfile.TarError, ValueError, KeyError, TypeError, AttributeError, OSError) as exc:
        raise UsageError("the bundle is refused", why=f"an image in it cannot be read: {exc}") from exc


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
