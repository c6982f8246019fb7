"""The agent's and the child's parts that need no container: calls and answers, stories, folders, and processes."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import os
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any

import pytest

from executor.authoring import TaskEnvironment
from executor.errors import TaskError, UsageError
from executor.worker import agent, child, kernel, payload
from executor.worker.protocol import Frame, FrameReader, encode
from executor.worker.tracebacks import render_traceback, shorten

ENV = TaskEnvironment("worker-tests")
HEADER = {"task": "leaf.work", "call": "1.1"}
CONFIG = {"environment": "leaf", "project": "/project"}
STORY = {
    "code": "E",
    "message": "m",
    "why": "",
    "hint": "",
    "task": "leaf.work",
    "call": "1.1",
    "traceback": "the real one",
}


@ENV.task
def work(x: int) -> int:
    """Never run here."""
    return x


class Host:
    """The other end of a child's line."""

    def __init__(self, folder: Path) -> None:
        ours, theirs = socket.socketpair()
        ours.settimeout(5)
        self.folders = payload.Folders(str(folder), str(folder), [])
        self.link = child.Link(theirs, self.folders)
        self._theirs, self._ours = theirs, ours
        self._frames: list[Any] = []
        self._reader = FrameReader()

    def hear(self) -> dict[str, Any]:
        """The next frame of the child."""
        while not self._frames:
            self._frames += self._reader.feed(self._ours.recv(65536))
        header: dict[str, Any] = self._frames.pop(0)[0]
        return header

    def answer(self, number: int, value: Any) -> None:
        """The value of a call."""
        place, body, _, _ = payload.dump(value, self.folders, keep=False)
        self._ours.sendall(encode({"kind": "ANSWER", "id": number, "value": place}, body))

    def fail(self, number: int) -> None:
        """A call failed."""
        self._ours.sendall(encode({"kind": "ANSWER", "id": number, "error": STORY}))

    def close(self) -> None:
        """End the line, and with it the child's listener."""
        self._ours.shutdown(socket.SHUT_WR)
        if self.link._listener:
            self.link._listener.join(5)
        self._ours.close()
        self._theirs.close()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path)
    yield made
    made.close()


class Noisy:
    """Notes which thread opens it."""

    opened_by: str

    def __init__(self) -> None:
        self.content = 1

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.opened_by = threading.current_thread().name


def test_a_call_given_up_keeps_no_other_from_its_answer(host: Host) -> None:
    """The host hears of it, what it still answers is dropped, and later calls are answered."""
    given_up = host.link.submit(work, (1,), {})
    assert host.hear()["id"] == 1
    assert given_up.cancel()
    assert host.hear() == {"kind": "CANCEL", "id": 1}
    for answer in (host.answer, lambda number, _: host.fail(number)):
        answer(1, "late")
    later = host.link.submit(work, (2,), {})
    host.answer(host.hear()["id"], "in time")
    assert later.result(5)() == "in time"
    assert not later.cancel()
    with pytest.raises(CancelledError):
        given_up.result(0)


def test_a_call_that_does_not_fit_is_not_sent(host: Host) -> None:
    """The mistake is told before a container starts, and before anything is pickled."""
    for args in ((1, 2), ("1",), ()):
        with pytest.raises(UsageError, match=r"task `.*work` cannot be called like this"):
            host.link.submit(work, args, {})
    host.link.submit(work, (1,), {})
    assert host.hear()["id"] == 1


def test_an_awaited_call_that_times_out_is_given_up(host: Host) -> None:
    """`asyncio.wait_for` reaches the host."""

    async def wait() -> None:
        await asyncio.wait_for(asyncio.wrap_future(host.link.submit(work, (1,), {})), 0.01)

    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(wait())
    assert [host.hear()["kind"] for _ in range(2)] == ["CALL", "CANCEL"]


def test_a_value_is_opened_by_who_waits_for_it(host: Host) -> None:
    """Opening runs code of the user's, which may call tasks: the thread that hears the answers is not kept by it."""
    future: Future[Any] = host.link.submit(work, (1,), {})
    host.answer(1, Noisy())
    assert future.result(5)().opened_by == threading.current_thread().name


def test_a_failed_call_is_told_in_few_words(host: Host) -> None:
    """The story is whole; the message of the exception grows with no level of callers."""
    future = host.link.submit(work, (1,), {})
    host.fail(1)
    with pytest.raises(TaskError, match=r"leaf\.work") as caught:
        future.result(5)
    assert caught.value.traceback == "the real one"
    assert len(str(child._task_error({**STORY, "message": "x" * 10**6}))) < 3000


class BadError(Exception):
    """Cannot be told."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def raised(exc: BaseException) -> BaseException:
    try:
        raise exc
    except BaseException as caught:  # noqa: BLE001  that is the point
        return caught


def test_any_failure_has_a_story() -> None:
    """Without a text, with one of megabytes, and with facts that nobody can write down."""
    assert "RuntimeError" in child._story(raised(BadError()), HEADER, CONFIG)["message"]
    long = child._story(raised(ValueError("x" * 5_000_000)), HEADER, CONFIG)
    assert max(map(len, filter(None, long.values()))) < 70_000
    assert long["message"].startswith("x" * 1000)
    sent: list[dict[str, Any]] = []

    class Line:
        def send(self, header: dict[str, Any], body: bytes = b"", fds: Any = ()) -> None:
            encode(header, body)
            sent.append(header)

    line: Any = Line()
    folders = payload.Folders("/in", "/out", [])
    child._tell(line, raised(TaskError("mine", facts={"mine": object()})), HEADER, CONFIG, folders)
    assert (sent[0]["error"]["code"], sent[0]["error"]["message"]) == ("TaskError", "mine")


def test_a_long_text_keeps_both_its_ends() -> None:
    """The short one is left alone."""
    assert shorten("short") == "short"
    cut = shorten("begin" + "-" * 1000 + "end", 100)
    assert cut.startswith("begin")
    assert cut.endswith("end")
    assert "908 characters" in cut
    assert len(cut) < 130


@pytest.mark.skipif(sys.version_info < (3, 11), reason="there are no groups")
def test_a_group_is_told_by_what_is_in_it() -> None:
    """The story of the call behind it, and its frames without ours."""
    inner = raised(TaskError("failed", facts=STORY))
    group: BaseException = raised(vars(builtins)["ExceptionGroup"]("several", [ValueError("mine"), inner]))
    assert child._inner_story(group) == STORY
    ours = Path(child.__file__).parent
    try:
        exec(compile("raise ValueError('ours')", f"{ours}/child.py", "exec"))
    except ValueError as exc:
        group = raised(vars(builtins)["ExceptionGroup"]("several", [exc]))
    told = render_traceback(group, "/project")
    assert "ValueError: ours" in told
    assert f'File "{ours}' not in told


@pytest.mark.parametrize("spoiled", ["full", "gone", "a file", "a link", "locked"])
def test_a_folder_is_empty_again_whatever_was_done_to_it(tmp_path: Path, spoiled: str) -> None:
    """Removed, replaced or locked: the next attempt finds an empty folder, and nothing else was touched."""
    folder, other = tmp_path / "task" / "work", tmp_path / "other"
    (folder / "deep" / "deeper").mkdir(parents=True)
    other.mkdir()
    (other / "kept").touch()
    (folder / "link").symlink_to(other)
    if spoiled == "full":
        (folder / "deep").chmod(0)
    elif spoiled == "locked":
        folder.chmod(0)
        folder.parent.chmod(0)
    else:
        folder.rename(tmp_path / "moved")
        if spoiled == "a file":
            folder.touch()
        elif spoiled == "a link":
            folder.symlink_to(other)
    agent._empty(str(folder))
    assert not folder.is_symlink()
    assert list(folder.iterdir()) == []
    assert [path.name for path in other.iterdir()] == ["kept"]


@pytest.mark.parametrize("timeout", [30 * 24 * 3600.0, 1e300, float("inf")])
def test_a_deadline_far_away_can_be_waited_for(timeout: float) -> None:
    """The kernel takes no more than 24 days at once."""
    idle: Any = agent.Agent.__new__(agent.Agent)
    idle._waiting = None
    idle._attempt = agent._Attempt(1, None, {}, time.monotonic() + timeout)  # type: ignore[arg-type]
    assert 0 < idle._patience() <= 3600


def test_a_child_that_does_not_read_keeps_nobody_waiting() -> None:
    """What it does not take is kept for it, and arrives whole and in order once it reads."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    busy: Any = agent.Agent.__new__(agent.Agent)
    busy._selector = selectors.DefaultSelector()
    busy._selector.register(ours, selectors.EVENT_READ)
    busy._attempt = agent._Attempt(1, ours, {}, None)
    sent = [encode({"kind": "ANSWER", "id": number}, bytes(60_000)) for number in range(50)]
    for number in range(50):
        busy._obey(Frame({"kind": "ANSWER", "id": number}, bytes(60_000), []))
    got = b""
    while len(got) < len(b"".join(sent)):
        got += theirs.recv(65536)
        busy._pass_on(busy._attempt)
    assert got == b"".join(sent)
    theirs.close()
    busy._obey(Frame({"kind": "ANSWER", "id": 51}, b"x", []))
    assert not busy._attempt.answers
    busy._selector.close()
    ours.close()


def test_many_files_may_be_open() -> None:
    """As many as the machine lets us, up to a number that programs can still walk through."""
    code = """
        import resource
        from executor.worker.kernel import allow_many_files
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(96, hard), hard))
        allow_many_files()
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        assert soft == (65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)), (soft, hard)
    """
    subprocess.run([sys.executable, "-c", "\n".join(map(str.strip, code.splitlines()))], check=True)


def test_a_zombie_is_nobody() -> None:
    """What has ended and was not waited for is no descendant that could be killed."""
    process = subprocess.Popen(["sleep", "60"])
    assert process.pid in kernel.descendants(os.getpid())
    process.kill()
    deadline = time.monotonic() + 5
    while process.pid in kernel.descendants(os.getpid()):
        assert time.monotonic() < deadline
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)
    assert process.returncode == -9
