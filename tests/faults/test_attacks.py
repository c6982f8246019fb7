"""What a task may do to its processes, its supervisor and its machine's share: it ends by name, and the next one is fine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import PYTHON, Alive
from tests.harness import MakeProject, RunLocal

FLOW = '''
    import atexit
    import contextlib
    import ctypes
    import mmap
    import os
    import pathlib
    import resource
    import signal
    import subprocess
    import sys
    import tempfile
    import threading
    import time

    from executor import Resources, Reuse, TaskEnvironment, TaskError

    shape = Resources(cpu=0.5, memory="512Mi", shm="32Mi")
    leaf_env = TaskEnvironment("leaf", resources=shape)
    warm_env = TaskEnvironment("warm", "envs/leaf/environment.yml", resources=shape, reusable=Reuse(preload=["json"]))
    root_env = TaskEnvironment(
        "root", "envs/leaf/environment.yml", depends_on=[leaf_env, warm_env], resources=Resources(cpu=0.5, memory="256Mi")
    )

    #: A process that only SIGKILL ends, in a session of its own, with the token on its command line.
    STUBBORN = """
    import os, signal, sys, time
    for number in set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
        signal.signal(number, signal.SIG_IGN)
    if "daemon" in sys.argv and (os.fork() or os.setsid() or os.fork()):
        os._exit(0)
    if "stopped" in sys.argv:
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(600)
    """


    def supervisor() -> int:
        """The agent, which is PID 1 here: where it is not, nothing may be sent to PID 1 or to everybody."""
        assert os.getppid() == 1, "not in a namespace of its own"
        return 1


    class Deadly:
        def __reduce__(self):
            os.kill(os.getpid(), signal.SIGKILL)


    def attack_daemons(token):
        for kinds in (["daemon"], ["daemon", "stopped"]):
            subprocess.run([sys.executable, "-c", STUBBORN, token, *kinds], check=True)
        subprocess.Popen([sys.executable, "-c", STUBBORN, token, "stopped"])


    def attack_signals(token):
        for number in sorted(signal.valid_signals()):
            os.kill(supervisor(), number)


    def attack_everybody(token):
        with contextlib.suppress(ProcessLookupError):  # there is nobody but us
            os.kill(-supervisor(), signal.SIGKILL)


    def attack_everybody_stopped(token):
        with contextlib.suppress(ProcessLookupError):  # there is nobody but us
            os.kill(-supervisor(), signal.SIGSTOP)


    def attack_group(token):
        os.killpg(0, signal.SIGKILL)


    def attack_exit(token):
        os._exit(3)


    def attack_abort(token):
        os.abort()


    def attack_segfault(token):
        ctypes.string_at(0)


    def attack_while_pickling(token):
        return Deadly()


    def attack_after_the_value(token):
        atexit.register(os.kill, os.getpid(), signal.SIGKILL)


    def attack_from_a_thread(token):
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGKILL)).start()
        time.sleep(600)


    def attack_c_loop(token):
        attack_daemons(token)
        sum(range(10**12))


    def attack_sleep(token):
        for number in set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
            signal.signal(number, signal.SIG_IGN)
        time.sleep(600)


    def attack_fifo(token):
        os.mkfifo("pipe")
        open("pipe", "rb").read()


    def attack_stopped(token):
        os.kill(os.getpid(), signal.SIGSTOP)


    def attack_fork_bomb(token):
        """Every process forks until the kernel refuses."""
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            try:
                os.fork()
            except OSError:
                time.sleep(0.01)
        time.sleep(600)


    def attack_memory(token):
        bytearray(2**30)[:: 4096] = bytes(2**30 // 4096)


    def attack_memory_of_a_child(token):
        code = "data = bytearray(2**30); data[:: 4096] = bytes(2**30 // 4096)"
        return subprocess.run([sys.executable, "-c", code]).returncode


    def attack_shared_memory(token):
        with open("/dev/shm/much", "wb+") as file:
            file.truncate(64 * 2**20)
            mmap.mmap(file.fileno(), 0)[:: 4096] = bytes(64 * 2**20 // 4096)


    def attack_temporary_files(token):
        with open(os.path.join(tempfile.gettempdir(), "much"), "wb") as file:
            try:
                while True:
                    file.write(bytes(2**20))
            except OSError as error:
                return error.strerror


    def attack_open_files(token):
        kept = []
        try:
            while True:
                kept.append(os.pipe())
        except OSError as error:
            return error.strerror


    def attack(name, token):
        return globals()[f"attack_{name}"](token)


    def look() -> dict:
        """What is left of the last attempt, as far as one can see from here."""
        pids = [int(each) for each in os.listdir("/proc") if each.isdigit()]
        folders = [".", tempfile.gettempdir()] + ["/dev/shm"] * os.path.exists("/run-local")
        return {
            "processes": len(set(pids) - {1, os.getpid()}),
            "files": [each for folder in folders for each in os.listdir(folder)],
        }


    @leaf_env.task
    def attack_here(name: str, token: str) -> object:
        return attack(name, token)


    @leaf_env.task
    def look_here() -> dict:
        return look()


    @warm_env.task
    def attack_warm(name: str, token: str) -> object:
        return attack(name, token)


    @warm_env.task
    def look_warm() -> dict:
        return look()


    @root_env.task
    def drive(names: list[str], token: str, timeout: float = 60, warm: bool = False) -> dict:
        """How each attack ended, and what the next attempt in its place finds."""
        hit, see = (attack_warm, look_warm) if warm else (attack_here, look_here)
        told = {}
        for name in names:
            try:
                ended = hit.override(timeout=timeout)(name, token)
            except TaskError as error:
                ended = error.facts["code"]
            told[name] = [ended, see()]
        return told
'''

#: Attack → how it ends: a value, or the outcome.
ATTACKS: dict[str, Any] = {
    "daemons": None,
    "signals": None,
    "everybody": None,
    "everybody_stopped": None,
    "group": "signal",
    "exit": "exit",
    "abort": "signal",
    "segfault": "signal",
    "while_pickling": "signal",
    "after_the_value": "signal",
    "from_a_thread": "signal",
    "open_files": "Too many open files",
}
TIMEOUTS = ["c_loop", "sleep", "fifo", "stopped"]
SHARES: dict[str, Any] = {
    "memory": "oom",
    "memory_of_a_child": -9,
    "shared_memory": "signal",
    "temporary_files": "No space left on device",
}
NOTHING = {"processes": 0, "files": []}


class Drive:
    """`drive("daemons", "group")`: attack → how it ended, and what the next attempt found."""

    def __init__(self, run_local: RunLocal, root: Path, runtime: str, token: str) -> None:
        self._run_local, self._root, self._runtime, self._token = run_local, root, runtime, token

    def __call__(self, *names: str, timeout: float = 60, warm: bool = False) -> dict[str, Any]:
        arguments = ["--names", json.dumps(names), "--token", self._token, "--timeout", str(timeout)]
        arguments += ["--warm"] if warm else []
        done = self._run_local("drive", *arguments, "--json", "--runtime", self._runtime, cwd=self._root, timeout_s=120)
        assert done.code == 0, done.stderr
        assert "Traceback" not in done.stderr
        result: dict[str, Any] = done.document["result"]
        return result


@pytest.fixture
def drive(run_local: RunLocal, project: MakeProject, runtime: str, token: str) -> Drive:
    return Drive(run_local, project({"flow.py": FLOW}, {"leaf": PYTHON}), runtime, token)


@pytest.mark.parametrize("warm", [False, True], ids=["forked", "preloaded"])
def test_what_a_task_does_to_processes(drive: Drive, alive: Alive, warm: bool) -> None:
    """To children, to the agent with every signal, to all it can reach: the agent goes on, and nothing is left."""
    told = drive(*ATTACKS, warm=warm)
    after = {"processes": 1, "files": []} if warm else NOTHING
    assert told == {name: [ended, after] for name, ended in ATTACKS.items()}
    assert alive.after(2.0) == []


def test_a_timeout_reaches_whatever_a_task_does(drive: Drive, alive: Alive) -> None:
    """Compiled code that never looks up, ignored signals, a pipe that nobody opens, a stopped process, its daemons."""
    told = drive(*TIMEOUTS, timeout=0.5)
    assert told == {name: ["timeout", NOTHING] for name in TIMEOUTS}
    assert alive.after(2.0) == []


@pytest.mark.docker
def test_what_a_task_does_to_its_share(
    run_local: RunLocal, project: MakeProject, engine: object, token: str, alive: Alive
) -> None:
    """Of memory, in itself or in a child, of shared memory and of /tmp: the next attempt has all of it again."""
    drive = Drive(run_local, project({"flow.py": FLOW}, {"leaf": PYTHON}), "docker", token)
    assert drive(*SHARES, *SHARES) == {name: [ended, NOTHING] for name, ended in SHARES.items()}
    assert alive.after(2.0) == []


@pytest.mark.docker
def test_a_fork_bomb_ends_with_its_attempt(
    run_local: RunLocal, project: MakeProject, engine: object, token: str, alive: Alive
) -> None:
    """Its processes stay within its container, the timeout reaches all of them, and the next attempt is alone."""
    drive = Drive(run_local, project({"flow.py": FLOW}, {"leaf": PYTHON}), "docker", token)
    told = drive("fork_bomb", timeout=3)
    assert told["fork_bomb"][1] == NOTHING
    assert told["fork_bomb"][0] in ("timeout", "oom", "signal")
    assert alive.after(2.0) == []
