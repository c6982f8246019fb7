"""What a container says of a failure is read, not believed."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from executor.console import render_failure
from executor.events import Outcome
from executor.resources import parse_memory
from executor.stories import amount_text, outcome_story, read_story


@pytest.mark.parametrize("told", [None, 3, "x", [], {}, {"cause": 5}, {"code": {}, "cause": {"message": [1]}}])
def test_any_nonsense_becomes_a_story_that_can_be_shown(told: Any) -> None:
    """Whatever JSON a task sends as its error, the console has something to print."""
    assert "failed" in render_failure(read_story(told))


def test_a_story_keeps_its_causes_to_a_depth() -> None:
    """A chain of causes stays a chain, and one that is made to be endless does not exhaust us."""
    told: dict[str, Any] = {"code": "E0", "task": "a.f"}
    for number in range(1, 500):
        told = {"code": f"E{number}", "task": "a.f", "cause": told}
    read = read_story(told)
    assert (read["code"], read["cause"]["code"]) == ("E499", "E498")
    assert render_failure(read).count("called by") == 100


def test_an_outcome_says_its_evidence() -> None:
    """How a process ended is part of the message."""
    story = outcome_story("signal", task="a.f", environment="a", call="1.1", evidence={"signal": 11, "exit": None})
    assert story["message"] == "the task was killed by SIGSEGV (signal 11)"


@pytest.mark.parametrize(
    ("amount", "text"), [(1, "1Mi"), (96 * 2**20, "96Mi"), (2**30, "1Gi"), (3 * 2**29, "1536Mi"), (2**30 + 1, "1025Mi")]
)
def test_amounts_are_written_as_resources_read_them(amount: int, text: str) -> None:
    """What a hint says can be typed, and is never less than what is meant."""
    assert amount_text(amount) == text
    assert parse_memory(text) >= amount


@pytest.mark.parametrize("outcome", [each for each in get_args(Outcome) if each not in ("ok", "raised")])
def test_every_outcome_has_a_story(outcome: str) -> None:
    """With no evidence at all, too: an agent may have been unable to tell any."""
    story = outcome_story(outcome, task="a.f", environment="a", call="1.1", evidence={})
    assert story["message"] not in ("", outcome)
    assert render_failure(story).startswith(f"task `a.f` failed: {outcome}: ")
