"""Small things to make environments of: a wheel, and a specification."""

from __future__ import annotations

import base64
import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from executor.environments import read_spec
from executor.environments.archive import END, Layer, file_layer, pack_files
from executor.environments.spec import Spec


def make_wheel(
    folder: Path,
    name: str,
    version: str,
    script: str = "",
    *,
    tag: str = "py3-none-any",
    metadata: Sequence[str] = (),
    more: Mapping[str, str] = MappingProxyType({}),
) -> Path:
    """A wheel with one module that knows its version, and a console script; `more` files of it, and lines of metadata."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"VERSION = {version!r}\n\ndef main() -> None:\n    print('{name}', VERSION)\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        + "".join(f"{line}\n" for line in metadata),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n",
        **more,
    }
    if script:
        files[f"{info}/entry_points.txt"] = f"[console_scripts]\n{script} = {name}:main\n"
    sums = {path: base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()) for path, text in files.items()}
    files[f"{info}/RECORD"] = "".join(f"{path},sha256={sums[path].decode().rstrip('=')},\n" for path in sums)
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(zipfile.ZipInfo(path), text)
    return wheel


def make_spec(folder: Path, name: str, *pip: str) -> Spec:
    """An environment in the usual place below a folder: Python, and these wheels."""
    path = folder / "envs" / name / "environment.yml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"dependencies": ["python", *([{"pip": pip}] if pip else [])]}))
    return read_spec(path, name)


def pack(folder: Path, inside: str, target: Path) -> Layer:
    """All files of a folder as one layer."""
    files = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    with target.open("wb") as file:
        pack_files(folder, files, inside, file)
        file.write(END)
    return file_layer(target)
