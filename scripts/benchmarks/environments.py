"""What an image of a lock costs, against a plain `docker build` that installs the same lock with pip.

Three environments are locked and their archives fetched, which is not measured. Then each image is made by run-local, and
by the engine from a Dockerfile: `FROM` an image with the same Python, `COPY` the same wheels, `RUN pip install`. The
engine's own builder forgets what it built before, but where nothing changed.
"""

import argparse
import contextlib
import io
import re
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import docker

from executor import dockerd
from executor.environments import Builder, Built, read_spec
from executor.environments.archives import Archive, archive_path
from executor.environments.lock import read_lock
from executor.environments.spec import Spec
from executor.errors import MachineError

BIG = ("numpy==2.2.6", "scipy==1.15.3", "matplotlib==3.10.3", "biopython==1.85")
PACKAGES = {
    "bench-python": (),
    "bench-first": BIG,
    "bench-changed": (*BIG, "six==1.17.0", "tomli==2.2.1"),
    "bench-second": ("numpy==2.2.6", "requests==2.32.3"),
}

FIRST = "first build, archives here"
AGAIN = "image lost, layers here"
SAME = "unchanged"
CHANGED = "one small package added"
SECOND = "second environment, shares Python and numpy"

#: The row is to take at most this part of what the engine's own build of the same takes.
TARGETS = {AGAIN: 0.25, CHANGED: 0.25}

#: A second environment is to take at most this part of the first one, in time and in what is sent.
SECOND_TARGET = 0.2


@dataclass
class Row:
    """Seconds and bytes of the ways to the same image; a build of the engine sends its context."""

    ours_s: list[float] = field(default_factory=list)
    theirs_s: list[float] = field(default_factory=list)
    sent_mib: float = 0
    context_mib: float = 0


class Bench:
    """The environments, in a home of their own, and the engine."""

    def __init__(self, folder: Path, client: docker.DockerClient) -> None:
        self._root, self._home, self._client = folder, folder / "home", client
        (self._home / "tmp").mkdir(parents=True)
        self._sent = 0.0
        self._builder = Builder("docker", self._home, self._hear)
        self._specs = {name: self._write_spec(folder, name, pip) for name, pip in PACKAGES.items()}
        self.rows: dict[str, Row] = {}

    def measure(self, rounds: int) -> None:
        """Build everything once without a clock, then round by round."""
        built = self._builder.build_all([*self._specs.values()], root=self._root)
        base = built["bench-python"].image
        assert base is not None
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
            self._forget(built, "bench-first", "bench-changed", "bench-second")
            for folder in ("layers", "packages/uv", "packages/conda"):
                shutil.rmtree(self._home / folder)
            for what, name in ((FIRST, "bench-first"), (CHANGED, "bench-changed"), (SECOND, "bench-second")):
                self._ours(what, name)
                self._theirs(what, built[name], base)
            self._ours(SAME, "bench-first")
            self._theirs(SAME, built["bench-first"], base, nocache=False)
            self._forget(built, "bench-first", "bench-changed")
            self._ours(AGAIN, "bench-first")
            self._theirs(AGAIN, built["bench-first"], base)

    def close(self) -> None:
        """Remove what was made."""
        self._builder.close()
        for name in PACKAGES:
            for image in self._client.api.images(filters={"label": f"{dockerd.LABEL}.environment={name}"}):
                self._client.api.remove_image(image["Id"], force=True)

    def _write_spec(self, folder: Path, name: str, pip: tuple[str, ...]) -> Spec:
        path = folder / "envs" / name / "environment.yml"
        path.parent.mkdir(parents=True)
        listed = "".join(f"      - {each}\n" for each in pip)
        path.write_text("dependencies:\n  - python\n  - pip\n" + (f"  - pip:\n{listed}" if pip else ""))
        return read_spec(path, name)

    def _hear(self, environment: str, step: str, detail: str, done: float | None = None) -> None:
        del environment
        found = re.fullmatch(r"sending (\d+) MiB", detail)
        if step == "load" and found and done is not None:
            self._sent = float(found[1])

    def _ours(self, what: str, name: str) -> None:
        self._sent = 0
        row = self.rows.setdefault(what, Row())
        row.ours_s.append(timed(lambda: self._builder.build_all([self._specs[name]], root=self._root)))
        row.sent_mib = self._sent

    def _theirs(self, what: str, built: Built, base: str, *, nocache: bool = True) -> None:
        """Let the engine build it from a Dockerfile."""
        locked = [package for package in read_lock(built.lock).packages if package.manager == "pip"]
        wheels = [
            archive_path(Archive(name=each.name, url=each.url, sha256=each.sha256), self._home) for each in locked
        ]
        lines = [
            f"FROM {base}",
            "COPY wheels /wheels",
            "RUN /opt/env/bin/pip install --no-index --no-deps --no-cache-dir --compile /wheels/*.whl",
            f"LABEL {dockerd.LABEL}=environment {dockerd.LABEL}.environment=bench-python",
        ]
        row = self.rows.setdefault(what, Row())

        def build() -> None:
            context = pack(wheels, "\n".join(lines))
            row.context_mib = len(context.getbuffer()) / 2**20
            image, _ = self._client.images.build(fileobj=context, custom_context=True, nocache=nocache, rm=True)
            images.append(str(image.id))

        images: list[str] = []
        if not nocache:
            build()
        row.theirs_s.append(timed(build))
        if nocache:
            self._client.api.remove_image(images[0], force=True)

    def _forget(self, built: dict[str, Built], *names: str) -> None:
        for name in names:
            with contextlib.suppress(dockerd.ImageNotFound):  # it was not made again since
                self._client.api.remove_image(str(built[name].image), force=True)


def timed(action: Callable[[], object]) -> float:
    """Seconds that it takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def pack(wheels: list[Path], dockerfile: str) -> io.BytesIO:
    """The context of a build."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.GNU_FORMAT) as archive:
        info = tarfile.TarInfo("Dockerfile")
        info.size = len(dockerfile.encode())
        archive.addfile(info, io.BytesIO(dockerfile.encode()))
        for wheel in wheels:
            archive.add(wheel, f"wheels/{wheel.name}")
    data.seek(0)
    return data


def render(rows: dict[str, Row]) -> str:
    """One line for each case."""
    lines = [f"{'':44} {'run-local s':>11} {'sent MiB':>9} {'docker build s':>15} {'context MiB':>12}   ratio  target"]
    for what in (FIRST, AGAIN, SAME, CHANGED, SECOND):
        row = rows[what]
        ours, theirs = min(row.ours_s), min(row.theirs_s)
        target = TARGETS.get(what)
        verdict = "" if target is None else f"{target:.2f} {'reached' if ours / theirs <= target else 'missed'}"
        lines.append(
            f"{what:44} {ours:11.2f} {row.sent_mib:9.0f} {theirs:15.2f} {row.context_mib:12.0f}   {ours / theirs:5.2f}"
            f"  {verdict}".rstrip()
        )
    first, second = rows[FIRST], rows[SECOND]
    for what, part in (
        ("time", min(second.ours_s) / min(first.ours_s)),
        ("bytes sent", second.sent_mib / first.sent_mib),
    ):
        reached = "reached" if part <= SECOND_TARGET else "missed"
        lines.append(f"second environment, of the first: {what} {part:.2f}  {SECOND_TARGET:.2f} {reached}")
    return "\n".join(lines)


def main() -> int:
    """Measure, and print one table; of several rounds the quickest counts."""
    parser = argparse.ArgumentParser(prog="scripts/bench environments", description=__doc__)
    parser.add_argument("--rounds", type=int, default=2, help="how often everything is measured")
    chosen = parser.parse_args()
    try:
        client = dockerd.connect()
    except MachineError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    with tempfile.TemporaryDirectory(prefix="run-local-bench-") as folder:
        bench = Bench(Path(folder), client)
        try:
            bench.measure(chosen.rounds)
        finally:
            bench.close()
    client.close()
    print(render(bench.rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
