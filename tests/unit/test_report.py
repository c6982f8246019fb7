"""The page of a run says what its record says, whatever that is, and nothing of it becomes more than text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import executor
from executor.cli.report import report_command
from executor.data.leases import hold_lease
from executor.data.records import Record, read_run
from executor.data.store import Store
from executor.errors import MachineError
from executor.events import (
    AttemptEnded,
    AttemptStarted,
    CallEnded,
    CallSubmitted,
    CallWaiting,
    EnvironmentReady,
    LogWritten,
    RunEnded,
    RunStarted,
)
from executor.manifest import Shape
from executor.page import render_page, write_page
from executor.page.texts import read_tail, render_bytes, render_seconds, visible
from executor.stories import outcome_story

RUN = "20260101-120000-abcd"
SHAPE = Shape(cpus=1, cpus_limit=1, memory_bytes=1, memory_limit_bytes=2**30, gpus=0, gpu_model="", shm_bytes=None)
HOSTILE = "</script><script>document.title='owned'</script><!--<img src=http://a.example/x onerror=owned()>]]>{{ 7*7 }}"


class Clock:
    """Says the time that it is set to."""

    def __init__(self) -> None:
        self.now = 1_750_000_000.0

    def __call__(self) -> float:
        return self.now


class Told:
    """Records a run by hand; every fact is a second after the one before."""

    def __init__(self, home: Path) -> None:
        self.clock = Clock()
        self.record = Record(home, RUN, self.clock)

    def __call__(self, *facts: Any) -> Told:
        for fact in facts:
            self.record(fact)
            self.clock.now += 1
        return self

    def started(self, workflow: str = "root.whole") -> Told:
        host = {
            "name": "bench-07",
            "kernel": "Linux 6.1",
            "cores": 16.0,
            "memory_bytes": 2**36,
            "engine": "Engine 27.3.1",
            "python": "3.12.4",
            "version": "1.2.3",
        }
        packages = (("conda", "numpy", "2.1.0"), ("pip", "biotite", "1.0.1"))
        return self(
            RunStarted(run=RUN, workflow=workflow, runtime="docker", root="project", snapshot="5a" * 16, host=host),
            EnvironmentReady(
                environment="root", key="0f" * 32, python="3.11.7", seconds=0.5, image="i", packages=packages
            ),
        )

    def called(self, call: str, parent: str | None, task: str = "root.whole", arguments: Any = None) -> Told:
        return self(
            CallSubmitted(call=call, parent=parent, task=task, environment="root", shape=SHAPE, arguments=arguments),
            AttemptStarted(call=call, attempt=1, container="c0ffee" * 10, slot=3),
        )

    def ended(self, call: str, **outcome: Any) -> Told:
        evidence = {"cpu_s": 1.5, "peak_bytes": 2**29}
        kind: Any = "ok" if outcome["status"] == "succeeded" else "raised"
        return self(
            AttemptEnded(call=call, attempt=1, outcome=kind, seconds=1.0, evidence=evidence),
            CallEnded(call=call, **outcome),
        )


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Told]:
    """A record that is still empty."""
    made = Told(tmp_path)
    yield made
    made.record.close()


def story(message: str = "no such residue", **more: Any) -> dict[str, Any]:
    """What is told of a call that raised."""
    made = outcome_story("raised", task="leaf.fold", environment="leaf", call="1.1", reason=message)
    return {**made, "code": "ValueError", "traceback": 'Traceback\n  File "flow.py", line 3, in fold\n', **more}


class Text(HTMLParser):
    """What a browser would show of a page without running its script, and which elements it would make."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self._skipped = 0
        self.feed(page)
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._skipped += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._skipped -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if not self._skipped:
            self.words.append(data)


def shown(home: Path, now: float = 1_750_000_100.0) -> Text:
    return Text(render_page(read_run(home, RUN), home, now=now))


def embedded(home: Path, part: str) -> Any:
    page = render_page(read_run(home, RUN), home, now=1_750_000_100.0)
    found = re.search(rf'<script type="application/json" id="{part}">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_attempts_have_times_and_places(told: Told, tmp_path: Path) -> None:
    """When a call was made, when each attempt began and ended, in which slot, and what it used."""
    told.started().called("1", None).ended("1", status="succeeded", preview={"json": 3})
    call = read_run(tmp_path, RUN).calls["1"]
    assert (call.submitted, call.started, call.waited, call.ended) == (1_750_000_002, 1_750_000_003, 1, 1_750_000_005)
    (attempt,) = call.history
    assert (attempt.number, attempt.slot, attempt.outcome) == (1, 3, "ok")
    assert (attempt.started, attempt.ended, attempt.evidence["cpu_s"]) == (1_750_000_003, 1_750_000_004, 1.5)
    view = read_run(tmp_path, RUN)
    assert (view.host["cores"], view.snapshot[:4], call.shape["memory_limit_bytes"]) == (16, "5a5a", 2**30)


def test_a_success_is_summed_up(told: Told, tmp_path: Path) -> None:
    """Status, duration, machine, usage of what was asked, environments and their packages; no word of a failure."""
    told.started().called("1", None, arguments={"n": {"json": 5}})
    told.ended("1", status="succeeded", preview={"json": 3})(RunEnded(status="succeeded", seconds=7.25))
    text = shown(tmp_path).text
    for words in ("✓ succeeded", "7.25 s", "bench-07", "16 cores, 64.0 GiB", "Engine 27.3.1", "run-local 1.2.3"):
        assert words in text
    for words in ("512 MiB of 1.0 GiB", "numpy 2.1.0", "biotite 1.0.1 pip", "5a" * 6, "1 succeeded"):
        assert words in text
    assert "failed" not in text
    assert embedded(tmp_path, "details")["calls"][0]["arguments"] == {"n": {"json": 5}}
    row = embedded(tmp_path, "data")["calls"][0]
    assert row[:4] == ["1", -1, 0, "succeeded"]


def test_a_failure_comes_first_and_the_innermost_of_it(told: Told, tmp_path: Path) -> None:
    """The task that raised, its traceback, the last that it printed; then who called it; before everything else."""
    inner = story(hint="look at the input")
    outer = {**inner, "task": "root.whole", "environment": "root", "call": "1", "cause": inner}
    told.started().called("1", None).called("1.1", "1", "leaf.fold")
    told(LogWritten(call="1.1", stream="stdout", data=b"\x1b[31mreading\x1b[0m \x1b]0;title\x07x\nlast line\n"))
    told.ended("1.1", status="failed", error=inner).ended("1", status="failed", error=outer)
    told(RunEnded(status="failed", seconds=9))
    text = shown(tmp_path).text
    parts = [
        "Task leaf.fold failed",
        "ValueError : no such residue",
        "look at the input",
        'File "flow.py", line 3, in fold',
        "reading x last line",
        "in environment leaf , call 1.1",
        "called by root.whole , call 1",
        "Summary",
    ]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


def test_a_failure_that_was_dealt_with_is_told_below(told: Told, tmp_path: Path) -> None:
    """A run that succeeded is not called failed because a call of it was."""
    told.started().called("1", None).called("1.1", "1", "leaf.fold")
    told.ended("1.1", status="failed", error=story()).ended("1", status="succeeded", preview={"json": 1})
    told(RunEnded(status="succeeded", seconds=9))
    text = shown(tmp_path).text
    assert "1 failed call, which their callers dealt with" in text.replace(" , ", ", ").replace("call ,", "call,")
    assert "Task leaf.fold failed" not in text


def test_a_run_that_could_not_begin(told: Told, tmp_path: Path) -> None:
    """What, why and hint, and no empty lists."""
    told(RunStarted(run=RUN, workflow="root.whole", runtime="docker", root="p"))
    told(
        RunEnded(
            status="failed", seconds=1, error={"what": "no lock", "why": "it is offline", "hint": "run-local lock"}
        )
    )
    page = shown(tmp_path)
    assert "The run could not begin no lock why it is offline hint run-local lock" in page.text
    assert "Timeline" not in page.text


def test_a_run_that_was_cancelled(told: Told, tmp_path: Path) -> None:
    """It says so, and what was stopped."""
    told.started().called("1", None)
    told(AttemptEnded(call="1", attempt=1, outcome="cancelled", seconds=1, evidence={}))
    stopped = outcome_story("cancelled", task="root.whole", environment="root", call="1")
    told(CallEnded(call="1", status="cancelled", error=stopped), RunEnded(status="cancelled", seconds=2))
    assert "⊘ Task root.whole was stopped" in shown(tmp_path).text


def test_a_run_that_goes_on_is_told_until_now(told: Told, tmp_path: Path) -> None:
    """What runs has run until the page was written."""
    told.started().called("1", None)
    with hold_lease(tmp_path / "runs" / RUN):
        assert "▶ running as of" in shown(tmp_path).text
        (bar,) = embedded(tmp_path, "data")["bars"]
    assert bar[1:] == [0, 1, 3.0, 100.0, ""]


def test_a_run_whose_process_was_killed(told: Told, tmp_path: Path) -> None:
    """Nobody knows how it would have ended; it ran at least until the last that is known of it."""
    told.started().called("1", None)
    assert "The run was interrupted" in shown(tmp_path).text
    data = embedded(tmp_path, "data")
    assert (data["span"], data["calls"][0][3]) == (3.0, "interrupted")


def test_records_of_earlier_versions_can_be_shown(tmp_path: Path) -> None:
    """A journal without machine, slots, packages and arguments, as 0.3 wrote it."""
    folder = tmp_path / "runs" / RUN
    (folder / "logs").mkdir(parents=True)
    shape = {"cpus": 1, "cpus_limit": 1, "memory_bytes": 1, "memory_limit_bytes": None, "gpus": 0}
    lines: list[dict[str, Any]] = [
        {"fact": "RunStarted", "at": 1.0, "run": RUN, "workflow": "a.f", "runtime": "process", "root": "."},
        {"fact": "EnvironmentReady", "at": 1.5, "environment": "a", "key": "k", "python": "3.9.1", "seconds": 0.1},
        {"fact": "CallSubmitted", "at": 2.0, "call": "1", "parent": None, "task": "a.f", "environment": "a"},
        {"fact": "CallSubmitted", "at": 2.0, "call": "1.1", "parent": "1", "task": "a.f", "environment": "a"},
        {"fact": "AttemptStarted", "at": 2.5, "call": "1", "attempt": 1, "container": None},
        {"fact": "AttemptStarted", "at": 2.5, "call": "1.1", "attempt": 1, "container": None},
        {"fact": "AttemptEnded", "at": 3.0, "call": "1", "attempt": 1, "outcome": "ok", "seconds": 1, "evidence": {}},
        {"fact": "CallEnded", "at": 3.0, "call": "1", "status": "succeeded", "value": None, "preview": None}
        | {"error": None},
        {"fact": "RunEnded", "at": 4.0, "status": "succeeded", "seconds": 3.0},
    ]
    lines[2]["shape"] = shape
    (folder / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "did not list packages" in shown(tmp_path).text
    data = embedded(tmp_path, "data")
    assert data["lanes"] == [["a", "at once 1"], ["a", "at once 2"]]
    assert "Machine" not in shown(tmp_path).text


def test_more_slots_than_can_be_shown_are_packed(told: Told, tmp_path: Path) -> None:
    """A run that used hundreds of containers has as many lanes as ran at once."""
    told.started()
    for number in range(1, 200):
        call = str(number)
        told(
            CallSubmitted(call=call, parent=None, task="root.whole", environment="root", shape=SHAPE),
            AttemptStarted(call=call, attempt=1, container=None, slot=number),
            AttemptEnded(call=call, attempt=1, outcome="ok", seconds=1, evidence={}),
        )
    assert embedded(tmp_path, "data")["lanes"] == [["root", "at once 1"]]


def test_what_others_wrote_is_text(told: Told, tmp_path: Path) -> None:
    """A name, a message, a log, a preview: whatever they hold, no element comes of it, and JSON stays JSON."""
    told.started(workflow=HOSTILE).called("1", None, task=HOSTILE, arguments={HOSTILE: {"text": HOSTILE}})
    told(LogWritten(call="1", stream="stdout", data=HOSTILE.encode() + b"\xff\xfe \xe2\x80\xae reversed\n"))
    told.ended("1", status="failed", error=story(HOSTILE, task=HOSTILE, traceback=HOSTILE, hint=HOSTILE, call="1"))
    told(RunEnded(status="failed", seconds=1))
    page = shown(tmp_path)
    assert [tag for tag, _ in page.elements].count("script") == 3
    assert not [tag for tag, _ in page.elements if tag in ("img", "iframe", "object", "embed", "link", "form", "base")]
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert page.text.count(HOSTILE) >= 5
    assert "49" not in page.text.split("Summary")[0]
    details = embedded(tmp_path, "details")["calls"][0]
    assert details["arguments"] == {HOSTILE: {"text": HOSTILE}}
    assert details["logs"][0][0] == HOSTILE + "\ufffd\ufffd  reversed"


def test_what_turns_text_around_is_seen() -> None:
    """Overrides of direction, control characters and halves of characters have a sign; line ends and tabs stay."""
    assert visible("a\u202eb\x00c\ud800\ufeff\n\td") == "a\\u202eb\\u0000c\\ud800\\ufeff\n\td"


def test_halves_of_characters_do_not_spoil_a_page(told: Told, tmp_path: Path) -> None:
    """A journal may hold a text that is no UTF-8; the page is."""
    told.started().called("1", None)
    told.ended("1", status="failed", error=story("\ud800", call="1"))(RunEnded(status="failed", seconds=1))
    assert "\\ud800" in write_page(read_run(tmp_path, RUN), tmp_path).read_text(encoding="utf-8")


def test_long_logs_are_cut_and_say_so(tmp_path: Path) -> None:
    """The end is kept, from the start of a line; a line that fills the page is cut; nothing but colours is left."""
    log = tmp_path / "1.log"
    log.write_bytes(b"".join(b"line %d\n" % number for number in range(10_000)))
    text, size = read_tail(log, 1000)
    assert (text.split("\n")[-1], size) == ("line 9999", 98890)
    assert text.split("\n")[0].startswith("line 9")
    log.write_bytes(b"x" * 50_000 + b"\x1b[2J\x1b[31mred\n10%\r100%\n")
    text, _ = read_tail(log, 10**6)
    assert text == "x" * 4000 + "\x1b[0m … and 46008 more characters\n100%"
    assert read_tail(tmp_path / "none.log", 10) == ("", 0)


def test_calls_say_why_they_waited_and_who_computed_them(told: Told, tmp_path: Path) -> None:
    """What a call waited for, and where the value of a cached one comes from."""
    told.started()(CallSubmitted(call="1", parent=None, task="root.whole", environment="root", shape=SHAPE))
    told(CallWaiting(call="1", reason="GPU-3f2a is held by run 9c of alice"))
    told(CallEnded(call="1", status="cached", preview={"json": 1}, origin={"run": "2025", "call": "1.7"}))
    details = embedded(tmp_path, "details")["calls"][0]
    assert (details["waiting"], details["origin"]["call"]) == ("GPU-3f2a is held by run 9c of alice", "1.7")
    assert "1 cached" in shown(tmp_path).text


def test_files_are_shown_as_what_they_are(told: Told, tmp_path: Path) -> None:
    """A picture is embedded, a table is rows, a text its beginning; a page of HTML is a name and a size."""
    store = Store(tmp_path, tmp_path / "tmp")
    contents = {
        "a.png": b"\x89PNG\r\n\x1a\n" + b"0" * 20,
        "b.svg": b"<svg xmlns='http://www.w3.org/2000/svg'><script>owned()</script></svg>",
        "c.csv": b"name,score\na,1\n",
        "d.html": b"<script>owned()</script>",
        "e.bin": b"\x00\x01\xff",
        "f.png": b"not a picture",
    }
    entries = [
        {"sha256": store.put_bytes(content), "size": len(content), "name": name} for name, content in contents.items()
    ]
    value = {"sha256": "0" * 64, "size": 1, "type": "list", "environment": "root", "files": entries, "later": 1}
    told.started().called("1", None)
    told.ended("1", status="succeeded", preview={"json": [{"$file": 0}]}, value=value)
    told(RunEnded(status="succeeded", seconds=1))
    details = embedded(tmp_path, "details")
    picture, svg, table, html, binary, false = details["calls"][0]["files"]
    assert details["pictures"][picture["picture"]].startswith("data:image/png;base64,")
    assert details["pictures"][svg["picture"]].startswith("data:image/svg+xml;base64,")
    assert table["table"] == [["name", "score"], ["a", "1"]]
    assert (html["text"], "picture" in html) == ("<script>owned()</script>", False)
    assert set(binary) == {"name", "size", "at"}
    assert "picture" not in false
    for entry in entries:
        path = store.path(str(entry["sha256"]))
        path.chmod(0o600)
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    files = embedded(tmp_path, "details")["calls"][0]["files"]
    assert {each["text"] for each in files} == {"(its content in the store is gone, or damaged)"}


def test_numbers_are_what_they_were(told: Told, tmp_path: Path) -> None:
    """Those that a browser would round, or could not read at all, are texts."""
    numbers = [2**63, 12, float("nan"), float("-inf"), 0.5]
    told.started().called("1", None, arguments={"x": {"json": numbers}})
    page = render_page(read_run(tmp_path, RUN), tmp_path)
    assert '"arguments":{"x":{"json":["9223372036854775808",12,"nan","-inf",0.5]}}' in page


def test_large_values_are_cut_and_say_so(told: Told, tmp_path: Path) -> None:
    """A page does not grow with what tasks return."""
    told.started().called("1", None).called("1.1", "1", "leaf.fold")
    told.ended("1.1", status="succeeded", preview={"json": ["x" * 100_000]})
    preview = embedded(tmp_path, "details")["calls"][1]["value"]
    assert len(preview["text"]) < 5000
    assert preview["of"] == 100_004


def test_the_command_writes_the_page_into_the_record(
    told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It prints the path, `-o` names another one, and what could not be written is an error; so does `Run.report`."""
    told.started().called("1", None).ended("1", status="succeeded")(RunEnded(status="succeeded", seconds=1))
    monkeypatch.setenv("RUN_LOCAL_HOME", str(tmp_path))
    done = CliRunner().invoke(report_command, [])
    assert done.output == f"{tmp_path}/runs/{RUN}/report.html\n"
    other = tmp_path / "other.html"
    assert CliRunner().invoke(report_command, [RUN, "-o", str(other)]).output == f"{other}\n"
    assert "root.whole" in other.read_text()
    assert executor.Run.load("last").report == tmp_path / "runs" / RUN / "report.html"
    with pytest.raises(MachineError, match="the report cannot be written"):
        write_page(read_run(tmp_path, RUN), tmp_path, tmp_path / "missing" / "x.html")
    assert not list(tmp_path.glob(".*")), "a half-written page is left"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (0.004, "0.00 s"), (12.34, "12.3 s"), (245, "4 min 05 s"), (3725, "1 h 02 min"), (59.99, "60.0 s")],
)
def test_durations_are_read_at_a_glance(seconds: float | None, text: str) -> None:
    """Two or three digits, and units of people."""
    assert render_seconds(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"), [(None, "–"), (812, "812 B"), (2**20, "1.0 MiB"), (300 * 2**20, "300 MiB"), (2**50, "1024 TiB")]
)
def test_sizes_are_read_at_a_glance(size: int | None, text: str) -> None:
    """As many digits as matter."""
    assert render_bytes(size) == text


def palettes() -> list[dict[str, str]]:
    """The colours of the page: light, dark, and printed."""
    css = files("executor.page").joinpath("report.css").read_text()
    return [
        dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{3,6})", block)) for block in re.findall(r":root \{(.*?)\}", css, re.S)
    ]


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = (each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("palette", range(3))
@pytest.mark.parametrize("text", ["ink", "quiet", "accent", "good", "bad", "warn"])
def test_every_text_can_be_read_on_every_ground(palette: int, text: str) -> None:
    """4.5 to 1, as WCAG 2 AA asks of small text."""
    colours = palettes()[palette]
    for ground in ("ground", "card", "soft", "bad-soft"):
        one, other = sorted((luminance(colours[text]), luminance(colours[ground])))
        assert (other + 0.05) / (one + 0.05) >= 4.5, f"{text} on {ground}"
