"""A script's run that is stopped while its environments are made: soon, and nothing half-made stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.conftest import PATIENCE_S, Alive, Index
from tests.faults.test_interrupted import ENDS_S, SLOW
from tests.harness import MakeProject, RunLocal

SCRIPT = """
import executor
from flow import work

print(executor.with_options(runtime="process").run(work).result())
"""


@pytest.mark.parametrize(("step", "hang"), [("locking", "/"), ("fetching", ".whl")])
def test_ctrl_c_while_an_environment_is_made(
    run_local: RunLocal, project: MakeProject, alive: Alive, index: Index, home: Path, step: str, hang: str
) -> None:
    """The run is cancelled, no process of it lives on, and the next one makes the environment."""
    root = project({"flow.py": SLOW, "script.py": SCRIPT}, {"slow": index.spec})

    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "script.py"],
            cwd=root,
            env={**run_local.variables, **index.variables, "RUN_LOCAL_HOME": str(home)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        run_local.started.append(process)
        return process

    index.hang = hang
    process = start()
    assert index.reached.wait(PATIENCE_S), step
    os.kill(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=ENDS_S)
    assert "KeyboardInterrupt" in stderr
    assert "cancelled after" in stderr
    assert alive.after(2.0) == []
    assert list((home / "tmp").iterdir()) == []

    index.hang = ""
    stdout, stderr = start().communicate(timeout=60)
    assert stdout == "1\n", stderr
