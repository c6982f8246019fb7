"""What lies below an environment's image: a small Linux with a C library and certificates.

A reference that the specification names is used as it is. Otherwise it is the distribution of this machine, pulled where
a registry answers, and made from Debian's (or Ubuntu's) own packages where none does. It is identified by its layers,
because an engine's id for the same image depends on how the engine stores it.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from executor import dockerd, machine
from executor.data.leases import scratch_folder
from executor.data.store import full_disk
from executor.environments import apt, archive
from executor.environments.progress import Say
from executor.environments.sending import send
from executor.environments.spec import Spec
from executor.errors import BuildError, MachineError

_RECIPE = "base 1"
_LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*")


@dataclass(frozen=True, kw_only=True)
class Base:
    """A base image that the engine has. glibc: the version of its C library; variables: what it sets."""

    reference: str
    layers: tuple[str, ...]
    glibc: str
    variables: dict[str, str]

    @property
    def identity(self) -> str:
        """Changes when its content does."""
        return hashlib.sha256(json.dumps([self.layers, self.variables]).encode()).hexdigest()


@overload
def find_base(spec: Spec, client: Any, *, home: Path, say: Say) -> Base: ...
@overload
def find_base(spec: Spec, client: Any, *, home: Path, say: Say, make: bool) -> Base | None: ...
def find_base(spec: Spec, client: Any, *, home: Path, say: Say, make: bool = True) -> Base | None:
    """The base image for a specification, with its apt packages; made or pulled now where the engine has none.

    make: False answers with None instead
    """
    found = _find(spec.base, client, home)
    if not found and make:
        with machine.lock_file(home / "images" / "base.lock", lambda: say("base", "another run-local makes it")):
            found = _find(spec.base, client, home) or _make(spec.base, client, home=home, say=say)
    if not found or not spec.apt:
        return found
    extended = _describe(client, _apt_tag(found, spec.apt), home)
    if not extended and make:
        with machine.lock_file(home / "images" / "apt.lock", lambda: say("base", "another run-local makes it")):
            extended = _describe(client, _apt_tag(found, spec.apt), home)
            return extended or _install_apt(found, spec.apt, client, home=home, say=say)
    return extended


def _find(wanted: str | None, client: Any, home: Path) -> Base | None:
    distribution = _distribution()
    references = [wanted] if wanted else [_made_tag(distribution), distribution.image]
    return next((found for each in references if (found := _describe(client, each, home))), None)


def _make(wanted: str | None, client: Any, *, home: Path, say: Say) -> Base:
    distribution = _distribution()
    reference = wanted or distribution.image
    refusal = _pull(client, reference, say)
    if refusal and wanted:
        raise BuildError(
            f"the base image `{wanted}` cannot be had", why=refusal, hint="load it into the engine by hand"
        )
    if refusal:
        _bootstrap(client, distribution, refusal, home=home, say=say)
        reference = _made_tag(distribution)
    made = _describe(client, reference, home)
    if not made:
        raise BuildError(f"`{reference}` was loaded and is not there", hint="does the engine have room?")
    return made


@dataclass(frozen=True)
class _Distribution:
    """The distribution of this machine: `debian` or `ubuntu`, its suite, and its image in a registry."""

    id: str
    suite: str
    image: str


def _distribution() -> _Distribution:
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        release = {}
    suite = release.get("VERSION_CODENAME", "")
    if release.get("ID") == "ubuntu" and suite:
        return _Distribution("ubuntu", suite, f"ubuntu:{suite}")
    if release.get("ID") == "debian" and suite:
        return _Distribution("debian", suite, f"debian:{suite}-slim")
    return _Distribution("", "", "debian:bookworm-slim")


def _made_tag(distribution: _Distribution) -> str:
    return f"run-local/base:{distribution.suite or 'none'}"


def _inspect(client: Any, reference: str) -> dict[str, Any] | None:
    try:
        with dockerd.translated("the base image cannot be looked at"):
            found: dict[str, Any] = client.api.inspect_image(reference)
            return found
    except MachineError as exc:
        if isinstance(exc.__cause__, dockerd.ImageNotFound):
            return None
        raise


def _describe(client: Any, reference: str, home: Path) -> Base | None:
    """A base that the engine has, or None."""
    found = _inspect(client, reference)
    if not found:
        return None
    layers = tuple(found["RootFS"]["Layers"])
    variables = dict(entry.split("=", 1) for entry in (found["Config"] or {}).get("Env") or [])
    cached = home / "bases" / f"{hashlib.sha256(json.dumps(layers).encode()).hexdigest()[:32]}.glibc"
    if not cached.exists():
        version = _ask_glibc(client, reference)
        cached.parent.mkdir(parents=True, exist_ok=True)
        cached.write_text(version)
    return Base(reference=reference, layers=layers, glibc=cached.read_text(), variables=variables)


def _ask_glibc(client: Any, reference: str) -> str:
    """The version of an image's C library, in its own words."""
    text = dockerd.output_of(client, reference, ["getconf", "GNU_LIBC_VERSION"])
    version = re.search(r"glibc (\d+\.\d+)", text)
    if not version:
        raise BuildError(f"`{reference}` cannot be a base", why=f"it has no GNU C library: {text.strip()[:200]}")
    return version[1]


def _pull(client: Any, reference: str, say: Say) -> str:
    """Pull an image by the digest that its name stands for now; answers with why that did not work, or an empty text."""
    say("base", f"pulling `{reference}`")
    try:
        with dockerd.translated("it cannot be pulled"):
            digest = client.images.get_registry_data(reference).id
            repository = reference.partition("@")[0]
            if ":" in repository.rpartition("/")[2]:
                repository = repository.rpartition(":")[0]
            pulled = client.images.pull(repository, tag=digest)
            if "@" not in reference:
                pulled.tag(reference)
    except MachineError as exc:
        return exc.why
    say("base", f"`{reference}` is {repository}@{digest}")
    return ""


def _bootstrap(client: Any, distribution: _Distribution, refusal: str, *, home: Path, say: Say) -> None:
    """Make the base from the distribution's packages, and load it."""
    sources = _sources(distribution)
    if not distribution.suite or not sources:
        raise BuildError(
            "there is no base image",
            why=f"no registry answers ({refusal}), and this machine is no Debian or Ubuntu to make one from",
            hint=f"load `{distribution.image}` into the engine by hand",
        )
    program = _mmdebstrap(say)
    say("base", f"no registry answers: making one from the packages of {distribution.id} {distribution.suite}")
    with full_disk("a base image cannot be made"), scratch_folder(home / "tmp") as scratch:
        tar = scratch / "base.tar"
        options = [f"--dpkgopt=path-exclude={path}" for path in _LEFT_OUT]
        command = [program, "--quiet", "--variant=minbase", "--include=ca-certificates", *options]
        done = machine.run(
            [*command, distribution.suite, str(tar), *map(str, sources)],
            env={**os.environ, "SOURCE_DATE_EPOCH": "1", "LC_ALL": "C.UTF-8", "TMPDIR": str(scratch)},
        )
        if done.returncode:
            raise BuildError(
                "a base image cannot be made", why=done.stderr.strip()[-1500:], hint="`apt-get update` may help"
            )
        layers = [archive.file_layer(tar)]
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        labels = {dockerd.LABEL: "base", f"{dockerd.LABEL}.recipe": _RECIPE}
        config = archive.image_config(layers, variables={"PATH": path}, labels=labels)
        dockerd.load(client, archive.archive(config, _made_tag(distribution), layers))


def _apt_tag(base: Base, packages: Sequence[str]) -> str:
    content = json.dumps([apt.RECIPE, base.identity, sorted(packages)])
    return f"run-local/apt:{hashlib.sha256(content.encode()).hexdigest()[:12]}"


def _install_apt(base: Base, packages: Sequence[str], client: Any, *, home: Path, say: Say) -> Base:
    """The base with one more layer, which holds these packages of its distribution."""
    say("base", f"installing {', '.join(packages)} with apt")
    with full_disk("apt packages cannot be installed"), scratch_folder(home / "tmp") as scratch:
        added = apt.install(client, base.reference, packages, scratch / "apt.tar")
        layers = [*(archive.Layer(digest=digest) for digest in base.layers), added]
        labels = {dockerd.LABEL: "base", f"{dockerd.LABEL}.apt": " ".join(sorted(packages))}
        config = archive.image_config(layers, variables=base.variables, labels=labels)
        tag = _apt_tag(base, packages)
        send(client, config, tag, layers, below=base.reference, scratch=scratch, say=say)
    made = _describe(client, tag, home)
    if not made:
        raise BuildError(f"`{tag}` was loaded and is not there", hint="does the engine have room?")
    return made


def _sources(distribution: _Distribution) -> list[Path]:
    """The apt sources of the distribution itself; other entries of this machine need not even be reachable."""
    found = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    wanted = re.compile(rf"^[^#]*(?:/{distribution.id}\b|{distribution.id}\.)", re.MULTILINE)
    return [
        path
        for path in found
        if path.suffix in (".list", ".sources")
        and path.is_file()
        and wanted.search(text := path.read_text(errors="replace"))
        and distribution.suite in text
    ]


def _mmdebstrap(say: Say) -> str:
    found = shutil.which("mmdebstrap")
    if found:
        return found
    command = ["apt-get", "install", "-y", "--no-install-recommends", "mmdebstrap"]
    if os.getuid() == 0 and shutil.which("apt-get"):
        say("base", "installing mmdebstrap with apt")
        for each in (["apt-get", "update"], command):
            machine.run(each, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})
        if found := shutil.which("mmdebstrap"):
            return found
    raise BuildError(
        "there is no base image",
        why="no registry answers, and `mmdebstrap`, which makes one from the distribution's packages, is missing",
        hint=f"run `{' '.join(['sudo', *command])}`",
    )
