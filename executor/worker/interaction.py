"""An attempt that somebody sits at: a shell where the task would run, or a debugger where it fails.

The host lends the attempt three open files: its own, or thrice the end of a pseudo-terminal whose other end it holds. They
come with the TASK frame, so an interactive attempt is one like any other: the same container, limits and end.

In a shell, the task and its inputs are put into one folder, with a program that runs it as an attempt would.
"""

from __future__ import annotations

import asyncio
import base64
import fcntl
import inspect
import json
import os
import pdb
import subprocess
import sys
import termios
import types
from typing import Any

from executor import authoring
from executor.errors import UsageError
from executor.worker import child, opaque, payload
from executor.worker.protocol import Frame, close_all

_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_NOT_EXECUTABLE, _NOT_FOUND = 126, 127  # exit statuses, as of a shell
_PLACE = "RUN_LOCAL_REPLAY"
_PROGRAM = """\
# Runs `{task}` with the inputs of call {call}, as its attempt did.
import sys

sys.path.insert(0, {library!r})
from executor.worker.interaction import run_again

run_again()
"""


def take_files(frame: Frame) -> None:
    """Take the files that an attempt was lent as its standard streams."""
    lent = [frame.fds.pop() for _ in range(3)][::-1]
    if frame.header["interaction"]["controlling"]:
        fcntl.ioctl(lent[0], termios.TIOCSCTTY, 0)
    for number, fd in enumerate(lent):
        os.dup2(fd, number)
    close_all(lent)
    sys.stdin = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115


def run_command(config: dict[str, Any], frame: Frame) -> int | None:
    """Run what is asked for in the place of the task, and answer with its exit status; None: the task shall run."""
    told = frame.header["interaction"]
    if told["mode"] == "pdb":
        return None
    lent = list(frame.fds)
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([*config["roots"], os.path.dirname(_OURS)])}
    command = told["command"] or [next(filter(os.path.exists, ("/bin/bash", "/bin/sh")))]
    if frame.header["module"]:
        folder = os.path.join(os.path.expanduser("~"), "replay")
        os.makedirs(folder, exist_ok=True)
        variables[_PLACE] = _lay_out(config, frame, folder)
        program = os.path.join(folder, "run.py")
        sys.stderr.write(f"`{frame.header['task']}` runs here with: python {program}\n")
        sys.stderr.write(f"its inputs are in {config['inputs']}\n")
    sys.stderr.flush()
    try:
        done = subprocess.run(command, env=variables, pass_fds=lent, check=False)
    except OSError as exc:
        sys.stderr.write(f"error: `{command[0]}` cannot be run\n  why: {exc.strerror}\n")
        sys.stderr.flush()
        return _NOT_FOUND if isinstance(exc, FileNotFoundError) else _NOT_EXECUTABLE
    return done.returncode if done.returncode >= 0 else 128 - done.returncode


def _lay_out(config: dict[str, Any], frame: Frame, folder: str) -> str:
    """Write down what an attempt is told, and the program that does it; where it is written."""
    header = {name: each for name, each in frame.header.items() if name not in ("secrets", "interaction")}
    body = base64.b64encode(frame.body).decode()
    with open(os.path.join(folder, "call.json"), "w", encoding="utf-8") as file:
        json.dump({"config": config, "header": header, "body": body, "fds": list(frame.fds)}, file)
    program = _PROGRAM.format(task=header["task"], call=header["call"], library=os.path.dirname(_OURS))
    with open(os.path.join(folder, "run.py"), "w", encoding="utf-8") as file:
        file.write(program)
    return os.path.join(folder, "call.json")


def run_again() -> None:
    """Run the task of a shell, in a process of its own, and print what it returns."""
    with open(os.environ[_PLACE], encoding="utf-8") as file:
        told = json.load(file)
    config, body = told["config"], base64.b64decode(told["body"])
    child.find_modules(config)
    opaque.HERE[:] = [config["environment"], config["specification"]]
    folders = payload.Folders(config["inputs"], config["outputs"], config["private"], config["environment"])
    frame = Frame(told["header"], body, [os.dup(fd) for fd in told["fds"]])
    task, args, kwargs = child.load_task(config, frame, folders)
    authoring.CALLER.append(_refuse)
    value = task.function(*args, **kwargs)
    value = asyncio.run(value) if inspect.iscoroutine(value) else value
    sys.stdout.write(f"{value!r}\n")


def _refuse(task: Any, *_: Any) -> Any:
    raise UsageError(
        f"`{task.name}` cannot be called from a shell",
        why="a shell is no attempt: nobody answers calls of tasks here",
        hint="`run-local replay` without `--shell` answers them",
    )


def stop_at(exc: BaseException, frame: Frame) -> None:
    """Let whoever sits here look at where a task failed."""
    if frame.header["interaction"]["mode"] != "pdb":
        return
    place = exc.__traceback__
    while place and place.tb_next and _is_ours(place):
        place = place.tb_next
    sys.stderr.write(f"{type(exc).__name__}: {exc}\n")
    pdb.post_mortem(place)


def _is_ours(place: types.TracebackType) -> bool:
    return os.path.abspath(place.tb_frame.f_code.co_filename).startswith(_OURS + os.sep)
