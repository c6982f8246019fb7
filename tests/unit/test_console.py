"""What a person sees while a run goes on."""

from __future__ import annotations

import time

import pytest

from executor.console import ConsoleView
from executor.events import CallSubmitted, LogWritten, RunEnded
from executor.manifest import Shape

SHAPE = Shape(cpus=1, cpus_limit=1, memory_bytes=1, memory_limit_bytes=None, gpus=0, gpu_model="", shm_bytes=None)


def test_a_line_without_an_end_is_shown_as_it_grows(capsys: pytest.CaptureFixture[str]) -> None:
    """Megabytes without a newline take time in proportion to their size, and the loop is not kept."""
    view = ConsoleView(verbose=True)
    view(CallSubmitted(call="1", parent=None, task="leaf.work", environment="leaf", shape=SHAPE))
    began = time.monotonic()
    for _ in range(160):
        view(LogWritten(call="1", stream="stdout", data=b"x" * 2**16))
    assert time.monotonic() - began < 3
    view(LogWritten(call="1", stream="stdout", data=b"end\n"))
    shown = capsys.readouterr().err
    assert shown.count("x") == 160 * 2**16
    assert shown.endswith("end\n")


@pytest.mark.parametrize("verbose", [False, True])
def test_what_an_environment_does_without_is_a_line_and_more_with_v(
    capsys: pytest.CaptureFixture[str], verbose: bool
) -> None:
    """The modules in a line of their own; each import only where everything is to be shown; a warning always."""
    view = ConsoleView(verbose=verbose)
    for step, detail in (("imports", "does without numpy"), ("import", "`numpy` is …"), ("warning", "`a.b` fails")):
        view.progress("parent", step, detail)
    each = "  parent: `numpy` is …\n" if verbose else ""
    assert capsys.readouterr().err == f"  parent: does without numpy\n{each}  parent: `a.b` fails\n"


def test_an_unfinished_line_is_shown_when_a_run_ends(capsys: pytest.CaptureFixture[str]) -> None:
    """Also where no attempt of it was seen to end."""
    view = ConsoleView(verbose=True)
    view(CallSubmitted(call="1", parent=None, task="leaf.work", environment="leaf", shape=SHAPE))
    view(LogWritten(call="1", stream="stdout", data=b"half a li"))
    view(RunEnded(status="cancelled", seconds=1.0))
    assert capsys.readouterr().err == "  work │ half a li\ncancelled after 1.0 s\n"
