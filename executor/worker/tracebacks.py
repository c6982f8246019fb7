"""The traceback of an exception in user code, as Python prints it, without run-local's own frames."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator

_MOST_TEXT = 64 * 2**10
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_NOT_THE_USERS = (
    _PACKAGE + os.sep,
    os.path.join(os.path.dirname(_PACKAGE), "cloudpickle") + os.sep,
    "<frozen importlib",
    os.path.join(os.path.dirname(os.path.abspath(os.__file__)), "importlib") + os.sep,
)
_CALLS_OF_TASKS = os.path.join(_PACKAGE, "authoring.py")


def render_traceback(exc: BaseException, project: str) -> str:
    """The traceback, the exception and what caused it; files below the folder `project` by their short names."""
    formatted = traceback.TracebackException.from_exception(exc)
    for link in _links(formatted):
        link.stack = traceback.StackSummary.from_list([_shorten(frame, project) for frame in user_frames(link.stack)])
        if isinstance(getattr(link, "filename", None), str):  # of a SyntaxError
            link.filename = short_name(link.filename, project)
    return "".join(formatted.format())


def shorten(text: str, most: int = _MOST_TEXT) -> str:
    """A text, or its beginning and its end where it is longer than anybody reads."""
    half = most // 2
    left_out = len(text) - 2 * half
    return f"{text[:half]}\n… {left_out} characters …\n{text[-half:]}" if left_out > 0 else text


def _links(first: traceback.TracebackException) -> Iterator[traceback.TracebackException]:
    """An exception, what caused it, and, where it is a group, what is in it."""
    front = [first]
    while front:
        link = front.pop()
        yield link
        front += [each for each in (link.__cause__, link.__context__) if each]
        front += getattr(link, "exceptions", None) or []


def user_frames(stack: traceback.StackSummary) -> list[traceback.FrameSummary]:
    """The frames between ours: from the first that is not, to the call of another task, below which all is ours."""
    kept: list[traceback.FrameSummary] = []
    for frame in stack:
        if not frame.filename.startswith(_NOT_THE_USERS):
            kept.append(frame)
        elif kept and frame.filename == _CALLS_OF_TASKS:
            break
    return kept


def short_name(file: str, project: str) -> str:
    """A file's name from the project's root, or its whole path where it lies elsewhere."""
    return file[len(project) + 1 :] if file.startswith(project + os.sep) else file


def _shorten(frame: traceback.FrameSummary, project: str) -> traceback.FrameSummary:
    line = frame.line  # read it now: under its short name the file will not be found
    return traceback.FrameSummary(short_name(frame.filename, project), frame.lineno, frame.name, line=line)
