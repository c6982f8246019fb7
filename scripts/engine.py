"""Starts a Docker engine where none answers, and stops it again; `scripts/test` calls it.

    engine.py look        says on stderr why none answers, if none does (exit code 4)
    engine.py start       prints the pid of the engine that it started; nothing where one answered already
    engine.py stop PID    stops that engine, and with it its containers

It needs no systemd. What an engine that was killed left behind (pid files, sockets, containerd's too) is put out of
the way first, because the next engine would take it for a living one.

RUN_LOCAL_DOCKERD_ARGS  more arguments for dockerd; with `--host`, DOCKER_HOST has to name the same address
RUN_LOCAL_DOCKERD_LOG   where its log goes; default /var/log/run-local-dockerd.log
"""

import argparse
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from executor import dockerd
from executor.errors import MachineError

START_S = 90.0
STOP_S = 20.0
LOOK_EVERY_S = 0.2
TAIL_LINES = 20


@dataclass(frozen=True)
class Places:
    """Where the engine that we start keeps its pid files and sockets: program → pid file, and the sockets."""

    pid_files: dict[str, Path]
    sockets: tuple[Path, ...]


def main() -> int:
    """Start or stop the engine, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("look")
    commands.add_parser("start")
    commands.add_parser("stop").add_argument("pid", type=int)
    chosen = parser.parse_args()
    try:
        if chosen.command == "look":
            dockerd.connect().close()
        elif chosen.command == "start":
            started = start(shlex.split(os.environ.get("RUN_LOCAL_DOCKERD_ARGS", "")))
            print("" if started is None else started)
        else:
            stop(chosen.pid)
    except MachineError as error:
        print(f"run-local: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def start(arguments: list[str]) -> int | None:
    """Start an engine and wait until it answers; its pid, or None where one answers without us."""
    if not _why_no_answer():
        return None
    program = shutil.which("dockerd", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if program is None:
        raise MachineError("no Docker engine can be started", why="dockerd is not installed", hint="install docker.io")
    places = find_places(arguments)
    clear_leftovers(places)
    log = Path(os.environ.get("RUN_LOCAL_DOCKERD_LOG", "/var/log/run-local-dockerd.log"))
    if _is_running(places.pid_files["dockerd"], "dockerd"):
        _wait(None, log)
        return None
    print(f"run-local: starting a Docker engine (log: {log})", file=sys.stderr)
    with log.open("wb") as out:
        engine = subprocess.Popen(
            [program, *arguments], stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    try:
        _wait(engine, log)
    except BaseException:
        stop(engine.pid)
        raise
    return engine.pid


def _why_no_answer() -> str:
    try:
        dockerd.connect().close()
    except MachineError as error:
        return error.why or error.what
    return ""


def _wait(engine: "subprocess.Popen[bytes] | None", log: Path) -> None:
    """Until the engine answers; None is an engine that somebody else started."""
    deadline = time.monotonic() + START_S
    while (why := _why_no_answer()) and time.monotonic() < deadline:
        if engine is not None and engine.poll() is not None:
            why = f"it ended with exit code {engine.returncode}"
            break
        time.sleep(LOOK_EVERY_S)
    if why:
        said = log.read_text(errors="replace").splitlines() if engine is not None else []
        tail = [line for line in said if "level=info" not in line][-TAIL_LINES:]
        raise MachineError(
            "the Docker engine that was started does not answer",
            why="\n".join([why, *tail]),
            hint=f"its whole log is in {log}" if engine is not None else "another dockerd runs, but does not answer",
        )


def find_places(arguments: list[str]) -> Places:
    """The pid files and sockets that a dockerd with these arguments uses."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("-p", "--pidfile", type=Path, default=Path("/var/run/docker.pid"))
    parser.add_argument("--exec-root", type=Path, default=Path("/var/run/docker"))
    parser.add_argument("-H", "--host", default="unix:///var/run/docker.sock")
    chosen, _ = parser.parse_known_args(arguments)
    containerd = chosen.exec_root / "containerd"
    return Places(
        pid_files={"dockerd": chosen.pidfile, "containerd": containerd / "containerd.pid"},
        sockets=(
            Path(chosen.host.removeprefix("unix://")),
            containerd / "containerd.sock",
            containerd / "containerd.sock.ttrpc",
            containerd / "containerd-debug.sock",
            Path("/run/containerd/containerd.sock"),  # dockerd takes it for the machine's own containerd if it exists
            Path("/run/containerd/containerd.sock.ttrpc"),
        ),
    )


def clear_leftovers(places: Places) -> None:
    """Remove the pid files of programs that do not run and the sockets at which nobody listens."""
    for program, pid_file in places.pid_files.items():
        if pid_file.exists() and not _is_running(pid_file, program):
            pid_file.unlink()
    for path in places.sockets:
        if path.is_socket() and not _listens(path):
            path.unlink()


def _is_running(pid_file: Path, program: str) -> bool:
    """Whether the process in `pid_file` is that program: after a crash its number may be somebody else's."""
    try:
        return program in Path(f"/proc/{int(pid_file.read_text())}/comm").read_text()
    except (OSError, ValueError):
        return False


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        try:
            client.connect(str(path))
        except ConnectionRefusedError:
            return False
        except OSError:
            return True
    return True


def stop(pid: int) -> None:
    """Stop the engine with this pid, and with it its containers; a pid that is no dockerd's is left alone."""
    comm = Path(f"/proc/{pid}/comm")
    for step, patience_s in ((signal.SIGTERM, STOP_S), (signal.SIGKILL, STOP_S)):
        try:
            if "dockerd" not in comm.read_text():
                return
            os.kill(pid, step)
            _wait_for_the_end_of(pid, patience_s)
        except (OSError, ChildProcessError):
            return


def _wait_for_the_end_of(pid: int, patience_s: float) -> None:
    """Raises ProcessLookupError once it is over."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            raise ProcessLookupError(pid)
        time.sleep(LOOK_EVERY_S)


if __name__ == "__main__":
    sys.exit(main())
