"""The scheduler's machine as a conversation: facts in, commands out; its invariants are checked after every test."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from executor.events import (
    AttemptEnded,
    CallCancelled,
    CallSubmitted,
    CancelAttempt,
    Command,
    EndCall,
    Outcome,
    RunCancelled,
    StartAttempt,
)
from executor.manifest import Shape
from executor.scheduling.state import Machine, SchedulerState

GiB = 2**30


def shape(cpus: float = 1, gib: float = 1, gpus: int = 0) -> Shape:
    return Shape(
        cpus=cpus,
        cpus_limit=cpus,
        memory_bytes=int(gib * GiB),
        memory_limit_bytes=None,
        gpus=gpus,
        gpu_model="",
        shm_bytes=None,
    )


def submitted(call: str, parent: str | None = None, of: Shape | None = None, retries: int = 0) -> CallSubmitted:
    return CallSubmitted(
        call=call, parent=parent, task=f"env.{call}", environment="env", shape=of or shape(), retries=retries
    )


def ended(call: str, outcome: Outcome = "ok", attempt: int = 1) -> AttemptEnded:
    return AttemptEnded(call=call, attempt=attempt, outcome=outcome, seconds=0.0, evidence={})


def start(call: str, attempt: int = 1) -> StartAttempt:
    return StartAttempt(call=call, attempt=attempt)


@pytest.fixture
def state() -> Iterator[SchedulerState]:
    """Two cores and 8 GiB; the invariants hold when the test is over."""
    state = SchedulerState(Machine(cpus=2, memory_bytes=8 * GiB))
    yield state
    state.check()


def test_third_call_waits_for_a_core(state: SchedulerState) -> None:
    """Two one-core calls fill two cores; the third starts when the first gives its core back."""
    assert [state.handle(submitted(name)) for name in "abc"] == [[start("a")], [start("b")], []]
    assert state.handle(ended("a")) == [EndCall(call="a", outcome="ok"), start("c")]


def test_a_blocked_caller_lends_its_cpu(state: SchedulerState) -> None:
    """A chain of callers deeper than the machine has cores still runs, because each waits for the next."""
    calls = ["1", "1.1", "1.1.1", "1.1.1.1"]
    parents = [None, *calls]
    for call, parent in zip(calls, parents, strict=False):
        assert state.handle(submitted(call, parent, shape(cpus=2))) == [start(call)]
    for call in reversed(calls):
        assert state.handle(ended(call)) == [EndCall(call=call, outcome="ok")]


def test_memory_is_never_lent(state: SchedulerState) -> None:
    """A call that fits only if its blocked caller gave memory back is rejected by name, and does not hang."""
    state.handle(submitted("1", None, shape(gib=6)))
    [refused] = state.handle(submitted("1.1", "1", shape(gib=4)))
    assert refused == EndCall(
        call="1.1",
        outcome="rejected",
        reason="it asks for 4 GiB, 2 GiB are free, and the rest is held by calls that wait for it: `env.1` (6 GiB)",
    )
    assert state.handle(ended("1", "raised")) == [EndCall(call="1", outcome="raised")]


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (shape(cpus=3), "it asks for 3 cores, and this machine offers 2"),
        (shape(gib=9), "it asks for 9 GiB of memory, and this machine offers 8"),
        (shape(gpus=1), "it asks for 1 GPUs, and this machine offers 0"),
    ],
)
def test_a_call_larger_than_the_machine_is_rejected_at_once(state: SchedulerState, asked: Shape, reason: str) -> None:
    """What can never run does not wait."""
    assert state.handle(submitted("a", None, asked)) == [EndCall(call="a", outcome="rejected", reason=reason)]


def test_children_go_before_other_roots(state: SchedulerState) -> None:
    """The core that a blocked caller lends goes to its own call, not to a root that came earlier."""
    for name in ("a", "b", "later"):
        state.handle(submitted(name))
    assert state.handle(submitted("b.1", "b")) == [start("b.1")]
    assert state.handle(ended("a")) == [EndCall(call="a", outcome="ok"), start("later")]


def test_a_failed_attempt_is_made_again_as_often_as_declared(state: SchedulerState) -> None:
    """`retries=1` makes two attempts, and the second failure ends the call."""
    state.handle(submitted("a", retries=1))
    assert state.handle(ended("a", "raised")) == [start("a", 2)]
    assert state.handle(ended("a", "exit", 2)) == [EndCall(call="a", outcome="exit")]


def test_a_cancelled_call_is_not_made_again(state: SchedulerState) -> None:
    """Retries are for failures."""
    state.handle(submitted("a", retries=5))
    assert state.handle(RunCancelled(reason="SIGINT")) == [CancelAttempt(call="a")]
    assert state.handle(ended("a", "cancelled")) == [EndCall(call="a", outcome="cancelled")]


def test_a_call_that_its_caller_gave_up_is_cancelled_with_all_below_it(state: SchedulerState) -> None:
    """The caller goes on; one that waits only for a share of the machine ends at once; one that is over stays so."""
    for name, parent in (("1", None), ("1.1", "1"), ("1.1.1", "1.1"), ("1.2", "1")):
        state.handle(submitted(name, parent, shape(cpus=2)))
    assert state.handle(CallCancelled(call="1.1")) == [CancelAttempt(call="1.1.1"), CancelAttempt(call="1.1")]
    assert state.handle(CallCancelled(call="1.2")) == [EndCall(call="1.2", outcome="cancelled")]
    assert state.handle(CallCancelled(call="1.2")) == []
    for name in ("1.1.1", "1.1"):
        assert state.handle(ended(name, "cancelled")) == [EndCall(call=name, outcome="cancelled")]
    assert state.live == {"1"}


def test_what_a_task_left_running_is_cancelled_when_it_ends(state: SchedulerState) -> None:
    """A caller that ends without waiting for its calls takes them with it, and their CPU is given back once."""
    state.handle(submitted("1"))
    state.handle(submitted("1.1", "1"))
    state.handle(submitted("1.2", "1"))
    state.handle(submitted("1.3", "1"))
    commands = state.handle(ended("1"))
    assert EndCall(call="1.3", outcome="cancelled") in commands
    assert {CancelAttempt(call="1.1"), CancelAttempt(call="1.2"), EndCall(call="1", outcome="ok")} <= set(commands)
    state.handle(ended("1.1", "cancelled"))
    state.handle(ended("1.2", "cancelled"))
    assert not state.live


def test_a_call_of_a_dead_caller_is_cancelled(state: SchedulerState) -> None:
    """A call that arrives when its caller has just ended starts nothing."""
    assert state.handle(submitted("1.1", "1")) == [
        EndCall(call="1.1", outcome="cancelled", reason="its caller is being stopped")
    ]


SHAPES = st.builds(shape, cpus=st.sampled_from([0.5, 1, 2]), gib=st.sampled_from([0.5, 1, 3]))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_nothing_is_over_allocated_and_nothing_hangs(data: st.DataObject) -> None:
    """Random call trees with random endings: the invariants hold after every fact, and every call ends once."""
    state = SchedulerState(Machine(cpus=2, memory_bytes=8 * GiB))
    running: list[str] = []
    done: list[str] = []

    def take(commands: list[Command]) -> None:
        for command in commands:
            if isinstance(command, StartAttempt):
                running.append(command.call)
            elif isinstance(command, EndCall):
                done.append(command.call)
        state.check()

    made = 0
    for _ in range(data.draw(st.integers(1, 25))):
        if data.draw(st.booleans()) and running:
            call = data.draw(st.sampled_from(sorted(running)))
            running.remove(call)
            take(state.handle(ended(call, data.draw(st.sampled_from(["ok", "raised", "signal"])))))
        else:
            made += 1
            parent: str | None = data.draw(st.sampled_from([None, *sorted(running)]))
            take(state.handle(submitted(f"c{made}", parent, data.draw(SHAPES), data.draw(st.integers(0, 1)))))
        state = pickle.loads(pickle.dumps(state))  # no thread, socket or file hides in the state
    while running:
        take(state.handle(ended(running.pop())))
    assert not state.live
    assert sorted(done) == sorted(f"c{number}" for number in range(1, made + 1))
