"""Keeps secrets out of what a task prints and out of the story of its failure.

Masked is a value as it is, and as it looks in the encodings that it is most often printed in: base64 (also as a part of
a longer text), JSON, the repr of Python, a URL. A task that wants to show its secret can: it may print it backwards.
"""

from __future__ import annotations

import base64
import json
import re
import urllib.parse
from collections.abc import Iterable, Iterator
from typing import Any

_MASK = "***"
_LEAST_OF_A_PART = 8  # characters of base64; a shorter part of it is found by chance


class Mask:
    """Replaces values by `***`; without values it does nothing."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        known = {form for value in values for form in _forms(value)}
        self._longest_first = sorted((form.encode() for form in known), key=len, reverse=True)
        pattern = b"|".join(map(re.escape, self._longest_first))
        self._pattern = re.compile(pattern) if known else None

    def __bool__(self) -> bool:
        return self._pattern is not None

    def data(self, data: bytes) -> bytes:
        """The same bytes, masked."""
        return self._pattern.sub(_MASK.encode(), data) if self._pattern else data

    def text(self, text: str) -> str:
        """The same text, masked."""
        return self.data(text.encode(errors="surrogatepass")).decode(errors="surrogatepass")

    def story(self, told: Any) -> Any:
        """The same plain data, all texts in it masked."""
        if isinstance(told, str):
            return self.text(told)
        if isinstance(told, dict):
            return {name: self.story(each) for name, each in told.items()}
        return [self.story(each) for each in told] if isinstance(told, list) else told

    def hides(self, data: bytes) -> bool:
        """Whether any of the values is in there."""
        return bool(self._pattern and self._pattern.search(data))

    def safe_end(self, data: bytes, end: int) -> int:
        """Where to cut data that goes on: not after `end`, nor within a value, nor after what may become one."""
        for form in self._longest_first:
            start = data.find(form[:1], max(0, len(data) - len(form) + 1))
            while 0 <= start < end and not form.startswith(data[start:]):
                start = data.find(form[:1], start + 1)
            if 0 <= start < end:
                end = start
        across = (found.start() for found in self._found(data) if found.start() < end < found.end())
        return next(across, end)

    def _found(self, data: bytes) -> Iterator[re.Match[bytes]]:
        return self._pattern.finditer(data) if self._pattern else iter(())


def _forms(value: str) -> set[str]:
    """A value as it is and as it is likely to be printed."""
    data = value.encode(errors="surrogatepass")
    forms = {value, json.dumps(value)[1:-1], repr(value)[1:-1], urllib.parse.quote(data, safe="")}
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        forms.add(encode(data).decode().rstrip("="))
        for before in (1, 2):  # bytes of something else in the group of three that the value begins in
            begins = -(-before * 8 // 6)
            ends = (before + len(data)) * 8 // 6  # what comes after them also depends on what follows
            forms.add(encode(b"\0" * before + data).decode()[begins:ends])
        forms.add(encode(data).decode()[: len(data) * 8 // 6])
    return {form for form in forms if form == value or len(form) >= max(_LEAST_OF_A_PART, len(value))}
