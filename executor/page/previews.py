"""Values and files as a page shows them: JSON, text, pictures, tables; each up to a size."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MOST_OF_A_PICTURE = 2 * 2**20
MOST_PICTURES = 16 * 2**20
_MOST_OF_A_TEXT = 8 * 2**10
_MOST_ROWS = 50

_LARGE = re.compile(r"\d{16}")
_PICTURES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif"}


def shorten(preview: Mapping[str, Any], most: int) -> tuple[dict[str, Any], int]:
    """A preview of the record with no more than `most` characters, and how many it has now."""
    if "json" not in preview:
        return {"text": str(preview.get("text", ""))[:most]}, min(most, len(str(preview.get("text", ""))))
    text = json.dumps(preview["json"], ensure_ascii=False)
    if len(text) <= most:
        return {"json": _exact(preview["json"], text)}, len(text)
    return {"text": text[:most], "of": len(text)}, most


def _exact(doc: Any, text: str) -> Any:
    """A document in which whole numbers that a browser would round are texts."""
    if not _LARGE.search(text):
        return doc
    return json.loads(text, parse_int=lambda digits: digits if _LARGE.search(digits) else int(digits))


class Pictures:
    """The pictures of a page, each once, by digest; no more than fit."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}
        self._left = MOST_PICTURES

    def add(self, file: Mapping[str, Any], content: Path) -> bool:
        """Whether a file is a picture that the page holds."""
        if file["sha256"] in self.found:
            return True
        if file["size"] > min(MOST_OF_A_PICTURE, self._left):
            return False
        try:
            with content.open("rb") as opened:
                kind = _picture_kind(file["name"], opened.read(512))
            data = content.read_bytes() if kind else b""
        except OSError:
            return False
        if not kind:
            return False
        self._left -= len(data)
        self.found[file["sha256"]] = f"data:{kind};base64,{base64.b64encode(data).decode()}"
        return True


def _picture_kind(name: str, head: bytes) -> str:
    if name.lower().endswith(".svg") and head.lstrip()[:5] in (b"<?xml", b"<svg ", b"<svg>", b"<!DOC"):
        return "image/svg+xml"  # as a picture, it runs no script and fetches nothing
    return next((kind for start, kind in _PICTURES.items() if head.startswith(start)), "")


def describe_file(file: Mapping[str, Any], name: str, content: Path, pictures: Pictures) -> dict[str, Any]:
    """A file of a value: its name and size, and what can be shown of it.

    file: as the record has it (see `store.FileRef`); content: where its content lies
    """
    told: dict[str, Any] = {"name": name, "size": file["size"]}
    if file.get("tree") is not None:
        entries = [each for each in file["tree"] if each["kind"] == "file"]
        told["size"] = sum(each["size"] for each in entries)
        told["entries"] = [[each["path"], each["size"]] for each in entries[:_MOST_ROWS]]
        told["count"] = len(entries)
    elif file["size"] <= MOST_OF_A_PICTURE and not _is_intact(content, file["sha256"]):
        told.update({"text": "(its content in the store is gone, or damaged)", "whole": True})
    elif pictures.add(file, content):
        told["picture"] = file["sha256"]
    else:
        told.update(_read_text(name, file["size"], content))
    return told


def _is_intact(content: Path, sha256: str) -> bool:
    try:
        return hashlib.sha256(content.read_bytes()).hexdigest() == sha256
    except OSError:
        return False


def _read_text(name: str, size: int, content: Path) -> dict[str, Any]:
    """The beginning of a text file, as a table where its name says that it is one."""
    try:
        with content.open("rb") as file:
            head = file.read(_MOST_OF_A_TEXT)
        text = head[: head.rfind(b"\n") + 1 or None].decode() if size > len(head) else head.decode()
    except (OSError, UnicodeDecodeError):
        return {}
    if "\0" in text:
        return {}
    suffix = Path(name).suffix.lower()
    if suffix in (".csv", ".tsv"):
        rows = list(csv.reader(text.splitlines(), delimiter="\t" if suffix == ".tsv" else ","))
        return {"table": rows[: _MOST_ROWS + 1], "whole": len(text.encode()) == size and len(rows) <= _MOST_ROWS + 1}
    return {"text": text, "whole": len(text.encode()) == size}
