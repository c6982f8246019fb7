"""The scheduler's machine as a conversation: facts in, commands out; its invariants are checked after every test."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from executor.events import (
    AttemptDeferred,
    AttemptEnded,
    CallCancelled,
    CallSubmitted,
    CancelAttempt,
    Command,
    Device,
    DevicesSeen,
    EndCall,
    Outcome,
    RetryDue,
    RetryLater,
    RunCancelled,
    StartAttempt,
    TellWaiting,
)
from executor.manifest import Backoff, Shape
from executor.scheduling.ranks import Recorded, ranks
from executor.scheduling.state import Machine, SchedulerState

GiB = 2**30


NOW = Backoff(base_s=0.0)


def shape(cpus: float = 1, gib: float = 1, gpus: int = 0, most_gib: float | None = None, **more: Any) -> Shape:
    return Shape(
        cpus=cpus,
        cpus_limit=cpus,
        memory_bytes=int(gib * GiB),
        memory_limit_bytes=None if most_gib is None else int(most_gib * GiB),
        gpus=gpus,
        gpu_model=more.pop("model", ""),
        shm_bytes=None,
        **more,
    )


def submitted(
    call: str, parent: str | None = None, of: Shape | None = None, retries: int = 0, **more: Any
) -> CallSubmitted:
    return CallSubmitted(
        call=call, parent=parent, task=f"env.{call}", environment="env", shape=of or shape(), retries=retries, **more
    )


def gpu(uuid: str, gib: float = 40, **more: Any) -> Device:
    memory = int(gib * GiB)
    return Device(**{"uuid": uuid, "name": "NVIDIA A100-SXM4", "memory_bytes": memory, "free_bytes": memory, **more})


def ended(call: str, outcome: Outcome = "ok", attempt: int = 1) -> AttemptEnded:
    return AttemptEnded(call=call, attempt=attempt, outcome=outcome, seconds=0.0, evidence={})


def start(call: str, attempt: int = 1, of: Shape | None = None, gpus: tuple[str, ...] = ()) -> StartAttempt:
    return StartAttempt(call=call, attempt=attempt, shape=of or shape(), gpus=gpus)


def started(commands: list[Command]) -> list[str]:
    """The calls that begin, in order."""
    return [command.call for command in commands if isinstance(command, StartAttempt)]


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
        assert state.handle(submitted(call, parent, shape(cpus=2))) == [start(call, of=shape(cpus=2))]
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
        (shape(gpus=1), "it asks for 1 GPU, and this machine has none"),
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
    """`retries=2` makes three attempts, each after a longer wait, and the third failure ends the call."""
    state.handle(submitted("a", retries=2, backoff=Backoff(base_s=0.5, factor=3)))
    assert state.handle(ended("a", "raised")) == [RetryLater(call="a", after_s=0.5)]
    assert state.handle(RetryDue(call="a")) == [start("a", 2)]
    assert state.handle(ended("a", "timeout", 2)) == [RetryLater(call="a", after_s=1.5)]
    assert state.handle(RetryDue(call="a")) == [start("a", 3)]
    assert state.handle(ended("a", "exit", 3)) == [EndCall(call="a", outcome="exit")]
    assert state.handle(RetryDue(call="a")) == []


def test_what_waits_for_its_next_attempt_holds_nothing(state: SchedulerState) -> None:
    """Another call has the machine meanwhile; and a cancel ends it at once."""
    state.handle(submitted("a", of=shape(cpus=2, gib=8), retries=1))
    state.handle(submitted("b", of=shape(cpus=2, gib=8)))
    assert started(state.handle(ended("a", "raised"))) == ["b"]
    assert state.handle(CallCancelled(call="a")) == [EndCall(call="a", outcome="cancelled")]


@pytest.mark.parametrize("final", [True, False])
def test_what_says_that_another_attempt_is_useless_gets_none(state: SchedulerState, *, final: bool) -> None:
    """`NonRecoverableError` ends the call."""
    state.handle(submitted("a", retries=3, backoff=NOW))
    fact = AttemptEnded(call="a", attempt=1, outcome="raised", seconds=0.0, evidence={}, final=final)
    assert isinstance(state.handle(fact)[0], EndCall if final else RetryLater)


def test_a_lost_container_is_no_retry_of_the_tasks_own(state: SchedulerState) -> None:
    """It gets another one, once."""
    state.handle(submitted("a"))
    assert state.handle(ended("a", "lost_agent")) == [start("a", 2)]
    assert state.handle(ended("a", "lost_agent", 2)) == [EndCall(call="a", outcome="lost_agent")]


def test_memory_grows_for_what_runs_out_of_it(state: SchedulerState) -> None:
    """Twice as much each time, to the most it may have, and no retry is used up; the limit is what it is admitted with."""
    asked = shape(gib=1, most_gib=3)
    limits = [shape(gib=each, most_gib=each) for each in (1, 2, 3)]
    assert state.handle(submitted("a", of=asked)) == [start("a", of=limits[0])]
    assert state.handle(ended("a", "oom")) == [start("a", 2, limits[1])]
    assert state.handle(ended("a", "oom", 2)) == [start("a", 3, limits[2])]
    assert state.handle(ended("a", "oom", 3)) == [EndCall(call="a", outcome="oom")]


def test_memory_does_not_grow_beyond_the_machine(state: SchedulerState) -> None:
    """What would be more than there is is all there is."""
    state.handle(submitted("a", of=shape(gib=5, most_gib=100)))
    assert state.handle(ended("a", "oom")) == [start("a", 2, shape(gib=8, most_gib=8))]
    assert state.handle(ended("a", "oom", 2)) == [EndCall(call="a", outcome="oom")]


def test_what_is_limited_by_the_machine_only_does_not_grow(state: SchedulerState) -> None:
    """It had all there is."""
    state.handle(submitted("a"))
    assert state.handle(ended("a", "oom")) == [EndCall(call="a", outcome="oom")]


# -- order -------------------------------------------------------------------------------------------------------------


def machine(*devices: Device, cpus: float = 4, gib: float = 16) -> SchedulerState:
    return SchedulerState(Machine(cpus=cpus, memory_bytes=int(gib * GiB), devices=devices))


def test_the_longest_way_to_the_end_goes_first(state: SchedulerState) -> None:
    """Of calls of one depth; those that came with the same rank go as they came."""
    for name in ("x", "y"):
        state.handle(submitted(name))
    for name, rank in (("short", 1.0), ("long", 60.0), ("also-short", 1.0)):
        state.handle(submitted(name, rank=rank))
    assert [started(state.handle(ended(name))) for name in ("x", "y", "long")] == [["long"], ["short"], ["also-short"]]


def test_what_wants_a_gpu_goes_before_what_came_earlier() -> None:
    """The scarce resource is not left idle for want of a core."""
    state = machine(gpu("A"), cpus=1)
    for name in ("first", "second"):
        state.handle(submitted(name, rank=9.0))
    state.handle(submitted("gpu", of=shape(gpus=1)))
    assert started(state.handle(ended("first"))) == ["gpu"]


def test_what_fits_goes_before_what_does_not(state: SchedulerState) -> None:
    """Backfill: a small call does not wait for a large one that came first."""
    state.handle(submitted("a"))
    state.handle(submitted("large", of=shape(cpus=2)))
    assert started(state.handle(submitted("small"))) == ["small"]


def test_a_large_call_is_not_overtaken_for_ever(state: SchedulerState) -> None:
    """After a number of smaller ones that came later, it gets what becomes free."""
    running = [*started(state.handle(submitted("s0"))), *started(state.handle(submitted("s1")))]
    state.handle(submitted("large", of=shape(cpus=2)))
    for number in range(2, 60):
        state.handle(submitted(f"s{number}"))
        running += started(state.handle(ended(running.pop(0))))
        if "large" in running:
            return
    pytest.fail("it starved")


def test_a_wide_call_for_gpus_is_not_starved_by_narrow_ones() -> None:
    """Once enough of them went first, it keeps the devices that become free; calls without one go on beside it."""
    state = machine(gpu("A"), gpu("B"))
    running = [name for each in ("n0", "n1") for name in started(state.handle(submitted(each, of=shape(gpus=1))))]
    state.handle(submitted("wide", of=shape(gpus=2, cpus=2)))
    for number in range(2, 60):
        state.handle(submitted(f"n{number}", of=shape(gpus=1)))
    before = 0
    while len(running) == 2:
        running += started(state.handle(ended(running.pop(0))))
        before += 1
    assert 10 < before < 30
    assert started(state.handle(submitted("cpu"))) == ["cpu"]
    assert started(state.handle(ended(running.pop()))) == ["wide"]


def test_a_reservation_does_not_hold_up_what_it_waits_for() -> None:
    """The device that it needs is held by a caller, whose call goes first though the reservation leaves no room."""
    state = machine(gpu("A"), gpu("B"), cpus=2, gib=4)
    state.handle(submitted("1", of=shape(gpus=1, gib=2)))
    state.handle(submitted("wide", of=shape(gpus=2, cpus=2, gib=2)))
    assert started(state.handle(submitted("1.1", "1", shape(gib=1)))) == ["1.1"]


# -- devices -----------------------------------------------------------------------------------------------------------


def test_devices_are_given_by_uuid_and_once() -> None:
    """Two calls get two devices, the third waits, and says for whom."""
    state = machine(gpu("GPU-aaaa"), gpu("GPU-bbbb"))
    one = shape(gpus=1)
    assert state.handle(submitted("a", of=one)) == [start("a", of=one, gpus=("GPU-aaaa",))]
    assert state.handle(submitted("b", of=one)) == [start("b", of=one, gpus=("GPU-bbbb",))]
    reason = "NVIDIA A100-SXM4 (GPU-aaaa) is used by `env.a` (a); NVIDIA A100-SXM4 (GPU-bbbb) is used by `env.b` (b)"
    assert state.handle(submitted("c", of=one)) == [TellWaiting(call="c", reason=reason)]
    assert state.handle(submitted("d")) == [start("d")]  # and nothing is told twice
    assert state.handle(ended("b")) == [EndCall(call="b", outcome="ok"), start("c", of=one, gpus=("GPU-bbbb",))]


def test_a_device_must_be_of_the_model_and_have_the_memory() -> None:
    """The smallest that does is chosen; what there is not is refused at once, with what there is."""
    state = machine(gpu("big", 80), gpu("small", 40), gpu("other", 16, name="Tesla T4"))
    assert state.handle(submitted("a", of=shape(gpus=1, model="a100")))[0] == start(
        "a", of=shape(gpus=1, model="a100"), gpus=("small",)
    )
    wants = shape(gpus=1, gpu_memory_bytes=10 * GiB)
    assert state.handle(submitted("b", of=wants)) == [start("b", of=wants, gpus=("other",))]
    [refused] = state.handle(submitted("c", of=shape(gpus=2, model="t4")))
    assert refused == EndCall(
        call="c",
        outcome="rejected",
        reason="it asks for 2 GPUs `t4`, and this machine has 1 such among NVIDIA A100-SXM4 (80 GiB), "
        "NVIDIA A100-SXM4 (40 GiB), Tesla T4 (16 GiB)",
    )


@pytest.mark.parametrize(
    ("seen", "told"),
    [
        (gpu("A", held="run 9c of alice"), "NVIDIA A100-SXM4 (A) is held by run 9c of alice"),
        (gpu("A", foreign="process 7 of bob"), "NVIDIA A100-SXM4 (A) is in use by process 7 of bob"),
        (gpu("A", free_bytes=GiB), "NVIDIA A100-SXM4 (A) has 1 GiB free"),
    ],
)
def test_a_device_that_others_hold_is_waited_for(seen: Device, told: str) -> None:
    """That is no dead end, even where nothing else runs: it says who has it, and goes on when it is free."""
    state = machine(seen)
    wants = shape(gpus=1, gpu_memory_bytes=2 * GiB)
    assert state.handle(submitted("a", of=wants)) == [TellWaiting(call="a", reason=told)]
    assert state.wants_devices
    assert state.handle(DevicesSeen(devices=(seen,))) == []
    assert started(state.handle(DevicesSeen(devices=(gpu("A"),)))) == ["a"]
    assert not state.wants_devices


def test_a_device_may_be_shared_with_strangers_who_asks_for_it() -> None:
    """If its memory is enough."""
    state = machine(gpu("A", foreign="process 7 of bob", free_bytes=GiB))
    assert started(state.handle(submitted("b", of=shape(gpus=1)))) == []
    assert started(state.handle(submitted("a", of=shape(gpus=1, gpu_shared=True)))) == ["a"]


def test_a_call_waiting_for_others_reserves_nothing() -> None:
    """Nothing of this run could ever help it."""
    state = machine(gpu("A", held="run 9c of alice"), gpu("B"))
    state.handle(submitted("wide", of=shape(gpus=2)))
    assert started(state.handle(submitted("narrow", of=shape(gpus=1)))) == ["narrow"]


def test_an_attempt_that_could_not_have_its_device_waits_again() -> None:
    """It was somebody else's in the end; the attempt does not count."""
    state = machine(gpu("A"))
    state.handle(submitted("a", of=shape(gpus=1)))
    state.handle(DevicesSeen(devices=(gpu("A", held="run 9c of alice"),)))
    assert [type(each) for each in state.handle(AttemptDeferred(call="a", attempt=1))] == [TellWaiting]
    assert state.handle(DevicesSeen(devices=(gpu("A"),))) == [start("a", 1, shape(gpus=1), ("A",))]


def test_a_device_that_is_gone_is_not_waited_for() -> None:
    """The driver has lost it."""
    state = machine(gpu("A", held="run 9c of alice"))
    state.handle(submitted("a", of=shape(gpus=1)))
    [refused] = state.handle(DevicesSeen(devices=()))
    assert refused == EndCall(call="a", outcome="rejected", reason="it asks for 1 GPU, and this machine has none")


def test_devices_are_never_lent() -> None:
    """A call that wants the device of its own caller is rejected by name."""
    state = machine(gpu("A"))
    state.handle(submitted("1", of=shape(gpus=1)))
    refused = state.handle(submitted("1.1", "1", shape(gpus=1)))[-1]
    assert isinstance(refused, EndCall)
    assert refused.reason.endswith(
        "1 GiB and 1 GPU, 15 GiB and 0 of those are free, and the rest is held by calls that wait for it: "
        "`env.1` (1 GiB, 1 GPU)"
    )


def test_a_thousand_calls_that_wait_cost_nothing_to_tell() -> None:
    """A fan-out makes no news but its starts and ends."""
    state = machine(cpus=2)
    told = [each for number in range(1000) for each in state.handle(submitted(f"c{number}"))]
    assert len(told) == 2


def test_ranks_are_medians_of_what_was_recorded() -> None:
    """Seconds from the start of a task's first call in a run to the end of the run."""
    runs = [
        [Recorded("env.a", 0.0, 10.0), Recorded("env.b", 4.0, 6.0)],
        [Recorded("env.a", 100.0, 130.0), Recorded("env.b", 120.0, 126.0), Recorded("env.b", 122.0, 128.0)],
        [Recorded("env.a", 0.0, 20.0)],
        [],
    ]
    assert ranks(runs) == {"env.a": 20.0, "env.b": 8.0}


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


SHAPES = st.builds(
    shape,
    cpus=st.sampled_from([0.5, 1, 2]),
    gib=st.sampled_from([0.5, 1, 3]),
    gpus=st.sampled_from([0, 0, 0, 1, 2]),
    most_gib=st.sampled_from([None, 3, 6]),
)
OUTCOMES: list[Outcome] = ["ok", "raised", "signal", "oom", "lost_agent"]
STATES_OF_A_DEVICE: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [{}, {}, {"held": "run 9c"}, {"foreign": "process 7"}]
)


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_nothing_is_over_allocated_and_nothing_hangs(data: st.DataObject) -> None:  # noqa: C901  one step, one line
    """Random call trees, endings and devices: the invariants hold after every fact, and every call ends once.

    The same facts make another machine of the same kind give the same commands.
    """
    state, twin = machine(gpu("A"), gpu("B"), cpus=2, gib=8), machine(gpu("A"), gpu("B"), cpus=2, gib=8)
    running: dict[str, StartAttempt] = {}
    later: list[str] = []
    done: list[str] = []
    parents: set[str | None] = set()

    def tell(fact: Any) -> None:
        nonlocal state
        commands = state.handle(fact)
        assert commands == twin.handle(fact)
        for command in commands:
            if isinstance(command, StartAttempt):
                assert command.call not in running
                running[command.call] = command
            elif isinstance(command, RetryLater):
                later.append(command.call)
            elif isinstance(command, EndCall):
                done.append(command.call)
        state.check()
        taken = [uuid for each in running.values() for uuid in each.gpus]
        assert len(taken) == len(set(taken))
        assert sum(each.shape.memory_bytes for each in running.values()) <= 8 * GiB
        state = pickle.loads(pickle.dumps(state))  # no thread, socket or file hides in the state

    made = 0
    for _ in range(data.draw(st.integers(1, 30))):
        step = data.draw(st.sampled_from(["submit", "submit", "end", "end", "see", "due", "defer", "cancel"]))
        if step == "end" and running:
            call = data.draw(st.sampled_from(sorted(running)))
            outcome = data.draw(st.sampled_from(OUTCOMES))
            tell(ended(call, outcome, running.pop(call).attempt))
        elif step == "see":
            tell(DevicesSeen(devices=tuple(gpu(uuid, **data.draw(STATES_OF_A_DEVICE)) for uuid in "AB")))
        elif step == "due" and later:
            tell(RetryDue(call=later.pop(0)))
        elif step == "defer" and (
            lacking := sorted(c for c, each in running.items() if each.gpus and c not in parents)
        ):
            tell(DevicesSeen(devices=(gpu("A", held="run 9c"), gpu("B", held="run 9c"))))
            tell(AttemptDeferred(call=lacking[0], attempt=running.pop(lacking[0]).attempt))
        elif step == "cancel" and made:
            tell(CallCancelled(call=f"c{data.draw(st.integers(1, made))}"))
        elif step == "submit":
            made += 1
            parent: str | None = data.draw(st.sampled_from([None, *sorted(running)]))
            parents.add(parent)
            retries = data.draw(st.integers(0, 1))
            tell(submitted(f"c{made}", parent, data.draw(SHAPES), retries, backoff=NOW))
    tell(DevicesSeen(devices=(gpu("A"), gpu("B"))))
    while running or later:
        if later:
            tell(RetryDue(call=later.pop()))
        else:
            call, command = running.popitem()
            tell(ended(call, "ok", command.attempt))
    assert not state.live
    assert sorted(done) == sorted(f"c{number}" for number in range(1, made + 1))
