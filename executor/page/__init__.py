"""One run as one page: a file that needs no network, no script of anybody else, and no run-local to be read.

    record → document (plain data) → report.html, report.css and report.js, put together

What a task printed, named or returned is text in it and nothing else; what it logged to its report is HTML in a frame of
its own, which runs no script. The page's policy lets no script run but ours, which it names by digest, and lets nothing be
fetched.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import json
import math
import os
import secrets
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from executor.data.records import RunView
from executor.data.store import full_disk
from executor.errors import MachineError
from executor.page.document import describe_run
from executor.page.texts import printed, render_bytes, render_seconds, render_time, visible

__all__ = ["render_page", "write_page"]

_PARTS = files("executor.page")


def write_page(view: RunView, home: Path, target: Path | None = None) -> Path:
    """Write the page of a run, and answer with its absolute path; whoever reads it meanwhile has the old one, whole.

    target: `report.html` in the folder of the record, unless somebody says otherwise

    Raises `MachineError` where it cannot be written.
    """
    target = (view.folder / "report.html" if target is None else target).resolve()
    text = render_page(view, home, beside=target.parent)
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}")
    try:
        with full_disk("the report cannot be written"):
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(target)
    except OSError as exc:
        raise MachineError(
            "the report cannot be written", why=f"{exc.strerror}: {exc.filename}", hint="`-o FILE` writes it elsewhere"
        ) from exc
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return target


@functools.cache
def _template() -> jinja2.Template:
    templates = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    templates.filters.update(seconds=render_seconds, bytes=render_bytes, time=render_time, printed=printed)
    return templates.from_string(_read("report.html"))


def render_page(view: RunView, home: Path, *, beside: Path | None = None, now: float | None = None) -> str:
    """The page of a run as a text.

    beside: the folder that it will lie in, from where its links to the run's outputs lead
    now:    seconds since the epoch; what still runs has run until then
    """
    document = describe_run(view, home, now=time.time() if now is None else now)
    style, script = _read("report.css"), _read("report.js")
    outputs = os.path.relpath(view.outputs, beside) if beside else str(view.outputs)
    return _template().render(
        **document.shown,
        outputs=outputs,
        style=style,
        script=script,
        style_digest=_digest(style),
        script_digest=_digest(script),
        data=_embed({**document.data, "outputs": outputs}),
        details=_embed(document.details),
    )


def _read(name: str) -> str:
    return _PARTS.joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """How a content security policy names a script or a style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _embed(doc: Any) -> str:
    """JSON that can stand in a script element: nothing in it can end that, or begin a comment."""
    try:
        text = json.dumps(doc, separators=(",", ":"), allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(doc), separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _finite(doc: Any) -> Any:
    """The same with the numbers that JSON does not know as texts; Python's JSON, and so a journal, may hold them."""
    if isinstance(doc, dict):
        return {name: _finite(each) for name, each in doc.items()}
    if isinstance(doc, (list, tuple)):
        return [_finite(each) for each in doc]
    return str(doc) if isinstance(doc, float) and not math.isfinite(doc) else doc
