"""What a task shows to people beside its value: HTML, figures and tables, kept in the record of its call.

    from executor import report

    report.log("<h2>Loss</h2>")
    report.image(figure, "after 10 epochs")
    report.table([{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.3}])

The page of `run-local report` shows it with the call, in a frame that runs no script and fetches nothing. It is sent when
it is logged, so a task that is killed afterwards loses nothing. Outside a task nothing is kept. The names are those of
`flyte.report`, with `image` and `table` besides; each function has an `aio`.
"""

import base64
import html
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Callable, Union

from executor.errors import UsageError

MAIN = "Report"

#: What sends a piece of HTML to the record: tab, HTML, whether it takes the place of what the tab has. Empty outside a task.
SENDER: list[Callable[[str, str, bool], None]] = []

_LONGEST_TAB = 60
_KINDS = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"RIFF": "webp", b"<": "svg+xml"}


class Tab:
    """One of the tabs of a report."""

    def __init__(self, name: str) -> None:
        self.name = name[:_LONGEST_TAB]

    def log(self, content: str) -> None:
        """Add HTML to what the tab shows."""
        _send(self.name, content, replace=False)

    def replace(self, content: str) -> None:
        """Show this HTML instead of what the tab shows."""
        _send(self.name, content, replace=True)

    def image(self, picture: Any, caption: str = "") -> None:
        """Add a picture; see `executor.report.image`."""
        self.log(_image(picture, caption))

    def table(self, rows: Iterable[Union[Mapping[str, Any], Sequence[Any]]], head: Sequence[str] = ()) -> None:
        """Add a table; see `executor.report.table`."""
        self.log(_table(rows, head))


def get_tab(name: str, create_if_missing: bool = True) -> Tab:
    """The tab with this name; tabs come in the order in which something is first logged to them."""
    return Tab(name)


def log(content: str, do_flush: bool = False) -> None:
    """Add HTML to the report of this call. Plain text goes through `html.escape` first."""
    Tab(MAIN).log(content)


def replace(content: str, do_flush: bool = False) -> None:
    """Show this HTML instead of what has been logged to the main tab."""
    Tab(MAIN).replace(content)


def flush() -> None:
    """For scripts written for Flyte 2: here everything is sent when it is logged."""


def image(picture: Any, caption: str = "") -> None:
    """Add a picture: PNG, JPEG, GIF, WebP or SVG as bytes or as the path of a file, or a figure with `savefig`.

    Raises `UsageError` for anything else.
    """
    Tab(MAIN).image(picture, caption)


def table(rows: Iterable[Union[Mapping[str, Any], Sequence[Any]]], head: Sequence[str] = ()) -> None:
    """Add a table of rows: mappings with the same names, or sequences. head: names of the columns"""
    Tab(MAIN).table(rows, head)


def _send(tab: str, content: str, *, replace: bool) -> None:
    if not isinstance(content, str):
        raise UsageError(
            f"a report takes text, and this is of type {type(content).__name__}",
            hint="`report.image` takes pictures and figures, `report.table` rows",
        )
    if SENDER:
        SENDER[0](tab, content, replace)


def _image(picture: Any, caption: str) -> str:
    if hasattr(picture, "savefig"):
        buffer = io.BytesIO()
        picture.savefig(buffer, format="png", bbox_inches="tight")
        data = buffer.getvalue()
    elif isinstance(picture, (bytes, bytearray)):
        data = bytes(picture)
    elif isinstance(picture, (str, os.PathLike)):
        with open(picture, "rb") as file:  # noqa: PTH123  a task that shows nothing need not load pathlib
            data = file.read()
    else:
        data = b""
    kind = next((kind for start, kind in _KINDS.items() if data.lstrip().startswith(start)), None)
    if kind is None:
        raise UsageError(
            "what is to be shown is no picture",
            why=f"it is of type {type(picture).__name__} and does not begin as PNG, JPEG, GIF, WebP or SVG do",
            hint="give bytes, a path, or a figure that has `savefig`",
        )
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    told = html.escape(caption)
    below = f"<figcaption>{told}</figcaption>" if caption else ""
    return f'<figure><img src="{source}" alt="{told or "picture"}">{below}</figure>'


def _table(rows: Iterable[Union[Mapping[str, Any], Sequence[Any]]], head: Sequence[str]) -> str:
    listed = list(rows)
    names = list(head)
    for row in listed:
        if isinstance(row, Mapping) and not head:
            names += [name for name in row if name not in names]
    lines = [[row.get(name, "") for name in names] if isinstance(row, Mapping) else list(row) for row in listed]
    made = "".join(f"<th>{html.escape(str(name))}</th>" for name in names)
    top = f"<thead><tr>{made}</tr></thead>" if names else ""
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in line) + "</tr>" for line in lines)
    return f"<table>{top}<tbody>{body}</tbody></table>"


def _with_aio(function: Callable[..., Any]) -> None:
    """Give a function the `aio` that it has in Flyte 2."""

    async def aio(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    function.aio = aio  # type: ignore[attr-defined]


for _function in (log, replace, flush, image, table):
    _with_aio(_function)
