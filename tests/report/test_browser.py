"""The page of a run in a browser: it can be read, worked by keyboard, printed, and asks nobody for anything."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from executor.data.records import Record, read_run
from executor.data.store import Store
from executor.events import (
    AttemptEnded,
    AttemptStarted,
    CallEnded,
    CallSubmitted,
    EnvironmentReady,
    LogWritten,
    ReportWritten,
    RunEnded,
    RunStarted,
)
from executor.manifest import Shape
from executor.page import write_page
from executor.stories import outcome_story
from scripts.benchmarks.records import RUN, write_run
from tests.demo.browser import Page, opened

HOSTILE = "</script><script>window.owned=1</script><!--<img src=http://a.example/x onerror=owned=1>]]>\u202e{{data}}"
SHAPE = Shape(cpus=1, cpus_limit=1, memory_bytes=1, memory_limit_bytes=2**30, gpus=0, gpu_model="", shm_bytes=None)
LOADED = "new Promise((tell) => document.readyState === 'complete' ? tell() : addEventListener('load', tell))"
DRAWN = "new Promise((tell) => requestAnimationFrame(() => requestAnimationFrame(tell)))"

Visit = Callable[..., AbstractContextManager[Page]]


def picture() -> bytes:
    """A PNG of one pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0\xff\0\0")) + chunk(b"IEND", b"")


@pytest.fixture
def failed(tmp_path: Path) -> Path:
    """The page of a run of four calls, one of which failed, and in which everything that others chose is hostile."""
    now = [1.75e9]
    record = Record(tmp_path, RUN, lambda: now[0])
    store = Store(tmp_path, tmp_path / "tmp")
    svg = b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'><script>top.owned=1</script></svg>"
    contents = {"plot.png": picture(), "plot.svg": svg, f"{HOSTILE[:20]}.csv": b"name,score\n<b>,1\n"}
    listed = [{"sha256": store.put_bytes(data), "size": len(data), "name": name} for name, data in contents.items()]
    value = {"sha256": "0" * 64, "size": 1, "type": "list", "environment": "root", "files": listed}
    story = {
        **outcome_story("raised", task=f"leaf.{HOSTILE}", environment="leaf", call="1.2", reason=HOSTILE, evidence={}),
        "code": HOSTILE,
        "traceback": HOSTILE * 20,
    }

    def told(*facts: Any) -> None:
        for fact in facts:
            record(fact)
            now[0] += 0.25

    told(RunStarted(run=RUN, workflow=HOSTILE, runtime="docker", root=HOSTILE))
    for name in ("root", "leaf"):
        packages = tuple(("conda", f"{name}-{n}", "1.0") for n in range(40))
        told(EnvironmentReady(environment=name, key="0" * 64, python="3.11", seconds=1, packages=packages))
    told(
        CallSubmitted(call="1", parent=None, task="root.whole", environment="root", shape=SHAPE),
        AttemptStarted(call="1", attempt=1, container="c0ffee" * 10, slot=1),
    )
    for call, task, seconds in (("1.1", "leaf.quick", 1.0), ("1.2", f"leaf.{HOSTILE}", 3.0), ("1.3", "leaf.slow", 9.0)):
        arguments = {HOSTILE: {"json": [{HOSTILE: HOSTILE}]}, "n": {"text": HOSTILE}}
        told(
            CallSubmitted(call=call, parent="1", task=task, environment="leaf", shape=SHAPE, arguments=arguments),
            AttemptStarted(call=call, attempt=1, container=None, slot=2),
            LogWritten(call=call, stream="stdout", data=b"\x1b[1;31mred\x1b[0m " + HOSTILE.encode() + b"\xff" * 9000),
            AttemptEnded(call=call, attempt=1, outcome="ok", seconds=seconds, evidence={"cpu_s": 1 / seconds}),
        )
    told(
        CallEnded(call="1.1", status="succeeded", preview={"json": [{"$file": 0}]}, value=value),
        CallEnded(call="1.2", status="failed", error=story),
        CallEnded(call="1.3", status="succeeded", preview={"text": HOSTILE}),
        AttemptEnded(call="1", attempt=1, outcome="raised", seconds=20, evidence={}),
        CallEnded(call="1", status="failed", error={**story, "task": "root.whole", "call": "1", "cause": story}),
        RunEnded(status="failed", seconds=20),
    )
    record.close()
    return write_page(read_run(tmp_path, RUN), tmp_path)


@pytest.fixture
def visit(chromium: Path, tmp_path: Path) -> Visit:
    """Opens a page in a browser with a fresh profile."""
    return partial(opened, chromium, profile=tmp_path / "profile")


def calls_in(page: Page) -> list[str]:
    """The ids of the calls that are in the list, from the top, as far as they can be seen."""
    page.run(DRAWN)
    found: list[str] = page.run(
        """[...document.querySelectorAll('#sizer [role=row]')].map((row) => [parseFloat(row.style.top) || 0,
        row.firstChild.textContent.replace(/[▾▸ ]/g, '')]).sort((a, b) => a[0] - b[0]).map((pair) => pair[1])"""
    )
    return found


def press(page: Page, selector: str, *keys: str) -> None:
    """Put the focus somewhere, and press keys there as a person does."""
    page.run(f"document.querySelector({json.dumps(selector)}).focus()")
    for key in keys:
        for kind in ("keyDown", "keyUp"):
            text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
            code = {"Escape": 27, "Enter": 13}.get(key, 0)
            page.devtools.call("Input.dispatchKeyEvent", type=kind, key=key, text=text, windowsVirtualKeyCode=code)
    page.run(DRAWN)


def test_nothing_of_what_others_wrote_runs_or_is_fetched(failed: Path, visit: Visit) -> None:
    """Whatever is opened, the console stays empty, the only request is the page, and no script of a task runs."""
    with visit(page=failed) as page:
        page.run(LOADED)
        for call in ("1", "1.1", "1.2", "1.3"):
            page.run(f"location.hash = 'call={call}'")
            page.run(DRAWN)
            assert page.run("document.getElementById('call-title').textContent").endswith(f"call {call}")
        text = page.run("document.body.innerText")
        assert "<script>window.owned=1</script>" in text
        assert "\u202e" not in text
        assert "\\u202e" in text
        assert page.run("typeof owned") == "undefined"
        assert page.complaints == []
        assert [url for url in page.requests if not url.startswith("data:")] == [failed.as_uri()]


HOSTILE_REPORT = """<style>div { background: rgb(1, 200, 3) }</style><div style="height: 80px">Loss</div>
<script>top.owned = 1; document.title = "owned"</script><img src="http://a.example/x.png" onerror="top.owned = 1">
<meta http-equiv="refresh" content="0; url=http://a.example/"><link rel="stylesheet" href="http://a.example/x.css">
<iframe src="http://a.example/frame"></iframe><form action="http://a.example/"><button autofocus>go</button></form>
<a href="http://a.example/" target="_top">leave</a><style>@import url("http://a.example/y.css");</style>
<style>body { background: url("http://a.example/z.png") }</style>
</script></iframe><b>the end</b>"""


def pixel(page: Page, selector: str, right: int, down: int) -> tuple[int, ...]:
    """The colour of one point of an element, as it is on the screen."""
    page.run(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{ block: 'center' }})")
    page.run(DRAWN)
    x, y = page.run(f"(({{ x, y }}) => [x, y])(document.querySelector({json.dumps(selector)}).getBoundingClientRect())")
    clip = {"x": int(x) + right, "y": int(y) + down, "width": 1, "height": 1, "scale": 1}
    png = base64.b64decode(page.devtools.call("Page.captureScreenshot", format="png", clip=clip)["data"])
    packed, at = b"", 8
    while at < len(png):
        size, kind = struct.unpack_from(">I4s", png, at)
        packed += png[at + 8 : at + 8 + size] if kind == b"IDAT" else b""
        at += size + 12
    return tuple(zlib.decompress(packed)[1:4])


def test_the_report_of_a_task_runs_and_fetches_nothing(tmp_path: Path, visit: Visit) -> None:
    """Its HTML looks as it should, in a frame that runs no script, asks nobody, and cannot leave."""
    record = Record(tmp_path, RUN)
    image = f'<img id="plot" src="data:image/png;base64,{base64.b64encode(picture()).decode()}">'
    seen = {"peak_bytes": 2**30, "utilisation": 0.634, "samples": 9}
    for fact in (
        RunStarted(run=RUN, workflow="root.whole", runtime="docker", root="/p"),
        CallSubmitted(call="1", parent=None, task="root.whole", environment="root", shape=SHAPE),
        AttemptStarted(call="1", attempt=1, container=None, slot=1, gpus=("GPU-3f2a",)),
        ReportWritten(call="1", tab="Report", html=HOSTILE_REPORT, replace=False),
        ReportWritten(call="1", tab=HOSTILE[:40], html=image + "<p>a figure</p>", replace=False),
        ReportWritten(call="1", tab="large", html="x" * (5 * 2**20), replace=False),
        AttemptEnded(call="1", attempt=1, outcome="ok", seconds=1, evidence={"gpus": {"GPU-3f2a": seen}}),
        CallEnded(call="1", status="succeeded", preview={"json": 1}),
        RunEnded(status="succeeded", seconds=1),
    ):
        record(fact)
    record.close()
    written = write_page(read_run(tmp_path, RUN), tmp_path)
    with visit(page=written) as page:
        page.run(LOADED)
        page.run("location.hash = 'call=1'")
        page.run(DRAWN)
        page.run("new Promise((done) => setTimeout(done, 500))")
        frames = page.run(
            "[...document.querySelectorAll('iframe.report')].map((e) => [e.getAttribute('sandbox'), e.contentDocument])"
        )
        assert frames == [["", None], ["", None]]
        assert "5.0 MiB are too much for this page" in page.run("document.getElementById('call-body').innerText")
        assert "GPU-3f2a (at most 1.0 GiB, 63 % busy)" in page.run("document.getElementById('call-body').innerText")
        assert page.run("[typeof owned, document.title.includes('owned')]") == ["undefined", False]
        assert [url for url in page.requests if not url.startswith(("data:", "about:"))] == [written.as_uri()]
        assert pixel(page, "iframe.report", 100, 50) == (1, 200, 3), "its styles are in force"
    assert len(written.read_text()) < 2**20


def test_the_policy_lets_nothing_else_run(failed: Path, visit: Visit) -> None:
    """If markup came through all the same, the browser would refuse its scripts and its pictures."""
    with visit(page=failed) as page:
        page.run(LOADED)
        page.run(
            """(() => { const made = document.createElement('script'); made.textContent = 'window.owned = 1';
            document.body.append(made); document.body.insertAdjacentHTML('beforeend',
            '<img src="http://a.example/x.png" onerror="window.owned = 1">'); })()"""
        )
        page.run(DRAWN)
        assert page.run("typeof owned") == "undefined"
        assert sum("Content Security Policy" in each for each in page.complaints) >= 2


def test_calls_can_be_sorted_searched_and_folded(failed: Path, visit: Visit) -> None:
    """The tree, the order of a column, what fits a word and a status; and the way back."""
    with visit(page=failed) as page:
        page.run(LOADED)
        assert calls_in(page) == ["1", "1.1", "1.2", "1.3"]
        column = "[...document.querySelectorAll('#columns button')].find((each) => each.textContent === '%s').click()"
        page.run(column % "Ran")
        assert calls_in(page) == ["1", "1.3", "1.2", "1.1"]
        assert page.run("document.querySelector('#columns [aria-sort=descending]').textContent") == "Ran"
        page.run(column % "Ran")
        assert calls_in(page) == ["1.1", "1.2", "1.3", "1"]
        page.run("document.getElementById('search').focus()")
        page.devtools.call("Input.insertText", text="QUICK")
        assert calls_in(page) == ["1.1"]
        assert page.run("document.getElementById('found').textContent") == "1 of 4"
        page.run(
            """for (const [id, value, kind] of [['search', '', 'input'], ['status', 'failed', 'change']])
            { const each = document.getElementById(id); each.value = value; each.dispatchEvent(new Event(kind)); }"""
        )
        assert calls_in(page) == ["1.2", "1"]
        page.run(
            "const all = document.getElementById('status'); all.value = ''; all.dispatchEvent(new Event('change'))"
        )
        page.run(column % "Call")
        page.run("document.getElementById('fold').click()")
        assert calls_in(page) == ["1"]
        page.run("document.getElementById('fold').click()")
        assert calls_in(page) == ["1", "1.1", "1.2", "1.3"]
        assert page.complaints == []


def test_everything_can_be_done_with_the_keyboard(failed: Path, visit: Visit) -> None:
    """Walk the list, fold it, open a call, close it, and be where one was; walk the timeline, too."""
    with visit(page=failed) as page:
        page.run(LOADED)
        press(page, "#scroller", "ArrowDown", "ArrowDown", "Enter")
        assert page.run("document.getElementById('call').open")
        assert page.run("document.getElementById('call-title').lastChild.textContent") == "call 1.2"
        assert page.run("document.activeElement.closest('dialog') !== null"), "the focus is not in what was opened"
        press(page, "#close", "Escape")
        assert not page.run("document.getElementById('call').open")
        assert page.run("document.activeElement.id") == "scroller"
        press(page, "#scroller", "Home", "ArrowLeft")
        assert calls_in(page) == ["1"]
        press(page, "#scroller", "ArrowRight", "End")
        chosen = "document.getElementById(document.getElementById('scroller').getAttribute('aria-activedescendant'))"
        assert page.run(f"{chosen}.firstChild.textContent.trim()") == "1.3"
        press(page, "#timeline", "ArrowRight", "+")
        assert "1.1 leaf.quick" in page.run("document.getElementById('readout').textContent")
        press(page, "#timeline", "Enter")
        assert page.run("document.getElementById('call-title').lastChild.textContent") == "call 1.1"
        assert page.complaints == []


def test_the_focus_is_seen(failed: Path, visit: Visit) -> None:
    """Whatever takes the focus has an outline, or marks what is chosen in it."""
    with visit(page=failed) as page:
        page.run(LOADED)
        for _ in range(8):
            page.devtools.call("Input.dispatchKeyEvent", type="keyDown", key="Tab", windowsVirtualKeyCode=9)
            page.run(DRAWN)
            style = page.run(
                """(() => { const it = document.activeElement, style = getComputedStyle(it);
                return [it.tagName + '#' + it.id, style.outlineStyle, parseFloat(style.outlineWidth)]; })()"""
            )
            assert style[1] == "solid", style
            assert style[2] >= 2, style


def test_pictures_tables_and_colours_are_shown(failed: Path, visit: Visit) -> None:
    """A picture that a call returned is one, a table is one, and what was printed in red is."""
    with visit(page=failed) as page:
        page.run(LOADED)
        page.run("location.hash = 'call=1.1'")
        page.run(DRAWN)
        width = "(each) => each.decode().then(() => each.naturalWidth)"
        assert page.run(f"Promise.all([...document.querySelectorAll('#call img')].map({width}))") == [1, 9]
        cells = "[...document.querySelectorAll('#call-body td')].map((each) => each.textContent)"
        assert "<b>" in page.run(cells)
        assert page.run("document.querySelector('#call .log .c1').textContent") == "red"
        assert "more characters" in page.run("document.querySelector('#call .log').textContent")
        assert page.complaints == []


def test_packages_can_be_found(failed: Path, visit: Visit) -> None:
    """One search through all environments; where there is something, it opens."""
    with visit(page=failed) as page:
        page.run(LOADED)
        page.run("document.getElementById('packages').focus()")
        page.devtools.call("Input.insertText", text="leaf-39")
        assert page.run("document.getElementById('packages-found').textContent") == "1 found"
        assert page.run("[...document.querySelectorAll('.environment')].map((each) => each.open)") == [False, True]


@pytest.mark.parametrize("width", [320, 360, 768])
def test_a_phone_does_not_scroll_sideways(failed: Path, visit: Visit, width: int) -> None:
    """Neither the page nor what it opens is wider than the screen, whatever the names are."""
    with visit(page=failed, width=width) as page:
        page.run(LOADED)
        assert page.run("document.documentElement.scrollWidth") <= width
        page.run("location.hash = 'call=1.2'")
        page.run(DRAWN)
        assert page.run("document.documentElement.scrollWidth") <= width
        assert page.run("document.getElementById('call').scrollWidth") <= width
        assert page.complaints == []


def test_it_can_be_printed(failed: Path, visit: Visit) -> None:
    """On paper there is no button, every call is in the list, and dark is light."""
    with visit(page=failed) as page:
        page.run(LOADED)
        dark = [{"name": "prefers-color-scheme", "value": "dark"}]
        page.devtools.call("Emulation.setEmulatedMedia", media="print", features=dark)
        page.run("dispatchEvent(new Event('beforeprint'))")
        assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert page.run("getComputedStyle(document.querySelector('.tools')).display") == "none"
        assert page.run("getComputedStyle(document.querySelector('#sizer [role=row]')).position") == "static"
        assert len(calls_in(page)) == 4
        assert base64.b64decode(page.devtools.call("Page.printToPDF")["data"]).startswith(b"%PDF")


def test_dark_is_dark(failed: Path, visit: Visit) -> None:
    """Who prefers it has a dark page."""
    with visit(page=failed) as page:
        page.run(LOADED)
        dark = [{"name": "prefers-color-scheme", "value": "dark"}]
        page.devtools.call("Emulation.setEmulatedMedia", media="", features=dark)
        assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"


def test_ten_thousand_calls_open_and_scroll(tmp_path: Path, visit: Visit) -> None:
    """What is in the document is what can be seen, however many calls there are; the last is a key away."""
    write_run(tmp_path, 10_000)
    path = write_page(read_run(tmp_path, RUN), tmp_path)
    assert path.stat().st_size < 8 * 2**20
    with visit(page=path) as page:
        page.run(LOADED)
        rows = "document.querySelectorAll('#sizer [role=row]').length"
        assert 10 < page.run(rows) < 60
        assert page.run("document.querySelectorAll('*').length") < 3000
        press(page, "#scroller", "End")
        assert calls_in(page)[-1] == "1.9999"
        assert 10 < page.run(rows) < 60
        page.run("document.getElementById('scroller').scrollTop = 5000 * 36")
        page.run(DRAWN)
        assert "1.5000" in calls_in(page)
        page.run("document.getElementById('search').focus()")
        page.devtools.call("Input.insertText", text="1.777")
        assert calls_in(page)[:3] == ["1.777", "1.7770", "1.7771"]
        press(page, "#scroller", "Home", "Enter")
        assert "one line of what it printed" in page.run("document.getElementById('call-body').textContent")
        assert page.complaints == []
