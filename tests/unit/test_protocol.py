"""Frames: what was sent arrives, however the stream is cut, and nonsense is refused."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.worker.protocol import MAX_BODY_BYTES, FrameReader, ProtocolError, encode

HEADERS = st.dictionaries(
    st.text().filter(lambda name: name != "fds"), st.none() | st.booleans() | st.integers() | st.text()
).map(lambda fields: {**fields, "kind": "TEST"})


@given(st.lists(st.tuples(HEADERS, st.binary())), st.lists(st.integers(1, 40)))
def test_frames_survive_any_cut(frames: list[tuple[dict[str, object], bytes]], cuts: list[int]) -> None:
    """The reader gives back every frame, in order, whatever the sizes of the pieces that arrive."""
    stream = b"".join(encode(header, body) for header, body in frames)
    reader, got = FrameReader(), []
    while stream:
        size = cuts.pop() if cuts else len(stream)
        got += list(reader.feed(stream[:size]))
        stream = stream[size:]
    assert got == [(header, body, []) for header, body in frames]


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">II", 2**31, 0),
        struct.pack(">II", 2, MAX_BODY_BYTES + 1),
        struct.pack(">II", 4, 0) + b"nope",
        struct.pack(">II", 2, 0) + b"[]",
        struct.pack(">II", 2, 0) + b"{}",
        struct.pack(">II", 10, 0) + b'{"kind":1}',
        struct.pack(">II", 23, 0) + b'{"kind":"X","fds":null}',
        struct.pack(">II", 24, 0) + b'{"kind":"X","fds":false}',
        struct.pack(">II", 20, 0) + b'{"kind":"X","fds":1}',
    ],
)
def test_what_is_no_frame_is_refused(data: bytes) -> None:
    """A length beyond the limit, a header that is no JSON object, has no kind, or speaks of other files than came."""
    with pytest.raises(ProtocolError):
        list(FrameReader().feed(data))


def test_a_frame_too_large_is_never_sent() -> None:
    """What the other side would refuse is refused here."""
    with pytest.raises(ProtocolError):
        encode({"kind": "X"}, bytes(MAX_BODY_BYTES + 1))


def test_a_header_does_not_speak_of_files() -> None:
    """The field is the frame's: the reader would take it, and the files of a later frame with it."""
    with pytest.raises(ProtocolError):
        encode({"kind": "X", "fds": 1})
