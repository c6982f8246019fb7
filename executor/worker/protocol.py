"""The wire between the host and an agent: length-prefixed frames with a JSON header and an opaque body.

    frame = header length (u32) | body length (u32) | header (JSON object) | body (bytes)

With a frame may come open files (SCM_RIGHTS): as many as its header's `fds` says, sent along with its first byte. They
are sealed memory, which a large value travels in; whoever receives a frame closes them.

    host → agent    TASK    call, task, module, qualname, environment, env_vars, timeout_s, value      + body
                            secrets: variables (name → value) and files (path below their folder → value)
                            interaction, where somebody sits at it: mode, command, controlling; its standard streams are
                            the last three open files that come with the frame
                    ANSWER  id, value | error                                                          + body
                    CANCEL  the attempt
    agent → host    HELLO   version, python, uid, and what is really in force (see `confinement.facts`)
                    LOG     stream, and the bytes as body
                    CALL    id, task, value                                                            + body
                    CANCEL  id; the task does not wait for that call any more, and wants no answer
                    REPORT  tab, replace; the HTML that a task logs for people                         + body
                    RESULT  value, preview                                                             + body
                    ERROR   error
                    ENDED   outcome and evidence (see `agent._verdict`); the attempt is over and nothing of it is left
                    FAULT   reason; the agent cannot go on, and ends

`value` says where a value lies (see `payload`); `error` is the plain-data story of a failure (see `child`). The same
frames go between the agent and the child of an attempt. Reading is sans-IO: bytes in, frames out.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

VERSION = 2
MAX_HEADER_BYTES = 8 * 2**20
MAX_BODY_BYTES = 16 * 2**20

#: A value up to this size travels in its frame; a larger one as a file.
INLINE_BYTES = 64 * 2**10

#: Open files that may come with one frame; Linux allows 253 in one message.
MOST_FDS = 64

#: How deeply a header may be nested; stories of failures are, by as many callers as a story tells of.
_DEEPEST = 250

_LENGTHS = struct.Struct(">II")


class Frame(NamedTuple):
    """One frame; the open files are the receiver's to close."""

    header: dict[str, Any]
    body: bytes
    fds: list[int]


class ProtocolError(Exception):
    """The other side sent what no frame is."""


def encode(header: dict[str, Any], body: bytes = b"", fds: Sequence[int] = ()) -> bytes:
    """The bytes of one frame; refuses one that the other side would refuse, or misread.

    How many files belong to it is said by its own field `fds`, which no header may have.
    """
    if "fds" in header:
        raise ProtocolError("a header has a field `fds`, which says how many files come with a frame")
    if fds:
        header = {**header, "fds": len(fds)}
    text = json.dumps(header, separators=(",", ":")).encode()
    if len(text) > MAX_HEADER_BYTES or len(body) > MAX_BODY_BYTES or len(fds) > MOST_FDS:
        raise ProtocolError(f"a frame of {len(text)} + {len(body)} bytes and {len(fds)} files is too large")
    return _LENGTHS.pack(len(text), len(body)) + text + body


def send(channel: socket.socket, data: bytes, fds: Sequence[int] = ()) -> None:
    """Send the bytes of a frame, and the open files that belong to it, on a blocking socket."""
    sent = socket.send_fds(channel, [data], list(fds)) if fds else 0
    channel.sendall(memoryview(data)[sent:])


def receive(channel: socket.socket, size: int) -> tuple[bytes, list[int]]:
    """Bytes from a socket, and the open files that came with them."""
    data, fds, flags, _ = socket.recv_fds(channel, size, MOST_FDS, socket.MSG_CMSG_CLOEXEC)
    if flags & socket.MSG_CTRUNC:
        close_all(fds)
        raise ProtocolError("open files were lost on the way: this process may open no more")
    return data, fds


def close_all(fds: Iterable[int]) -> None:
    """Close open files that came with a frame."""
    for fd in fds:
        os.close(fd)


class FrameReader:
    """Cuts a stream of bytes into frames; keeps what is not yet whole."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._fds: deque[int] = deque()

    def feed(self, data: bytes, fds: Iterable[int] = ()) -> Iterator[Frame]:
        """Take bytes and open files as they came; yield each frame that is now whole. Raises `ProtocolError`."""
        self._held += data
        self._fds.extend(fds)
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
            count = header.pop("fds", 0)
            if type(count) is not int or not 0 <= count <= len(self._fds):
                raise ProtocolError(f"a frame came without the {count!r} files that it speaks of")
            yield Frame(header, body, [self._fds.popleft() for _ in range(count)])

    def close(self) -> None:
        """Close the open files of frames that never became whole."""
        close_all(self._fds)
        self._fds.clear()


class Outbox:
    """Frames that wait for a non-blocking socket to take them."""

    def __init__(self) -> None:
        self._frames: deque[tuple[memoryview, list[int]]] = deque()

    def __bool__(self) -> bool:
        return bool(self._frames)

    def put(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Take the bytes of a frame, and its open files, which are then ours to close."""
        self._frames.append((memoryview(data), list(fds)))

    def flush(self, channel: socket.socket) -> None:
        """Send what the socket takes now. Raises `OSError` where nobody is at its other end."""
        while self._frames:
            data, fds = self._frames[0]
            try:
                sent = socket.send_fds(channel, [data], fds) if fds else channel.send(data)
            except BlockingIOError:
                return
            except OSError as exc:
                if exc.errno == errno.ETOOMANYREFS:  # too many open files are on their way to somebody: later
                    return
                raise
            close_all(fds)
            if sent < len(data):
                self._frames[0] = (data[sent:], [])
            else:
                self._frames.popleft()

    def close(self) -> None:
        """Drop what was not sent."""
        while self._frames:
            close_all(self._frames.popleft()[1])


def _parse(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise ProtocolError(f"a header is not JSON: {text[:80]!r}") from exc
    if not isinstance(header, dict) or not isinstance(header.get("kind"), str):
        raise ProtocolError(f"a header names no kind: {text[:80]!r}")
    if text.count(b"[") + text.count(b"{") > _DEEPEST and _is_too_deep(header):
        raise ProtocolError(f"a header is nested too deeply: {text[:80]!r}")
    return header


def _is_too_deep(header: dict[str, Any]) -> bool:
    """Whether somebody who walks through a header by recursion might not come back."""
    front: list[Any] = [header]
    for _ in range(_DEEPEST):
        inside = (each.values() if isinstance(each, dict) else each for each in front)
        front = [inner for values in inside for inner in values if isinstance(inner, (dict, list))]
    return bool(front)
