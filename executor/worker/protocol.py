"""The wire between the host and an agent: length-prefixed frames with a JSON header and an opaque body.

    frame = header length (u32) | body length (u32) | header (JSON object) | body (bytes)

    host → agent    TASK    call, task, module, qualname, environment, env_vars, timeout_s, value      + body
                    ANSWER  id, value | error                                                          + body
                    CANCEL  the attempt
    agent → host    HELLO   version, python, uid, and what is really in force (see `agent.facts`)
                    LOG     stream, and the bytes as body
                    CALL    id, task, value                                                            + body
                    CANCEL  id; the task does not wait for that call any more, and wants no answer
                    RESULT  value, preview                                                             + body
                    ERROR   error
                    ENDED   outcome, exit, usage; the attempt is over and nothing of it is left

`value` says where a value lies (see `payload`); `error` is the plain-data story of a failure (see `child`). The same
frames go between the agent and the child of an attempt. Reading is sans-IO: bytes in, frames out.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

VERSION = 1
MAX_HEADER_BYTES = 8 * 2**20
MAX_BODY_BYTES = 16 * 2**20

#: A value up to this size travels in its frame; a larger one as a file.
INLINE_BYTES = 64 * 2**10

_LENGTHS = struct.Struct(">II")

Frame = tuple[dict[str, Any], bytes]


class ProtocolError(Exception):
    """The other side sent what no frame is."""


def encode(header: dict[str, Any], body: bytes = b"") -> bytes:
    """The bytes of one frame; refuses one that the other side would refuse."""
    text = json.dumps(header, separators=(",", ":")).encode()
    if len(text) > MAX_HEADER_BYTES or len(body) > MAX_BODY_BYTES:
        raise ProtocolError(f"a frame of {len(text)} + {len(body)} bytes is too large")
    return _LENGTHS.pack(len(text), len(body)) + text + body


class FrameReader:
    """Cuts a stream of bytes into frames; keeps what is not yet whole."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Take bytes as they came; yield each frame that is now whole. Raises `ProtocolError`."""
        self._held += data
        while len(self._held) >= _LENGTHS.size:
            header_size, body_size = _LENGTHS.unpack_from(self._held)
            if header_size > MAX_HEADER_BYTES or body_size > MAX_BODY_BYTES:
                raise ProtocolError(f"a frame of {header_size} + {body_size} bytes is too large")
            start, end = _LENGTHS.size + header_size, _LENGTHS.size + header_size + body_size
            if len(self._held) < end:
                return
            header = _parse(bytes(self._held[_LENGTHS.size : start]))
            body = bytes(self._held[start:end])
            del self._held[:end]
            yield header, body


def _parse(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except ValueError as exc:
        raise ProtocolError(f"a header is not JSON: {text[:80]!r}") from exc
    if not isinstance(header, dict) or not isinstance(header.get("kind"), str):
        raise ProtocolError(f"a header names no kind: {text[:80]!r}")
    return header
