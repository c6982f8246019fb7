"""Secrets do not show in what a task prints, wherever it is cut and however it is encoded."""

from __future__ import annotations

import base64
import json
import random
import urllib.parse

import pytest

from executor.worker.masking import Mask
from executor.worker.output import Output

VALUE = "hunter2-token+/="
PEM = "-----BEGIN KEY-----\nMIIBVgIBADANBg\nq8kTn0Y=\n-----END KEY-----\n"


@pytest.mark.parametrize("value", [VALUE, PEM, 'p"q\\r s', "pässwörd", "abcd"])
def test_a_value_does_not_show_as_it_is_usually_printed(value: str) -> None:
    """As it is, in JSON, in a repr, in a URL, and in base64."""
    mask = Mask([value])
    printed = {
        "plain": value,
        "json": json.dumps({"token": value}),
        "repr": repr([value]),
        "url": "https://x/?q=" + urllib.parse.quote(value, safe=""),
    }
    for name, text in printed.items():
        told = mask.text(f"<{text}>")
        assert "***" in told, name
        assert value not in told
    encoded = base64.b64encode(value.encode()).decode()
    if len(encoded) >= 10:
        assert encoded.rstrip("=") not in mask.text(f"<{encoded}>")


def test_base64_of_a_longer_text_does_not_show_the_value_in_it() -> None:
    """`user:password`, as HTTP sends it, wherever the value begins in a group of three bytes."""
    mask = Mask([VALUE])
    for before in ("", "u", "us", "use:", "user:"):
        for after in ("", "x", "xy"):
            text = base64.b64encode(f"{before}{VALUE}{after}".encode()).decode()
            masked = mask.text(text)
            assert "***" in masked
            kept = base64.b64decode(masked.partition("***")[0].encode() + b"===")
            assert VALUE[:3].encode() not in kept


def test_nothing_else_is_touched() -> None:
    """Text without the values, and text where there are none to be masked, stays as it is to the byte."""
    data = bytes(range(256)) * 3
    assert Mask([VALUE]).data(data) == data
    assert Mask().data(VALUE.encode()) == VALUE.encode()
    assert not Mask()
    told = {"message": f"bad {VALUE}", "cause": {"why": [VALUE]}, "line": 3, "none": None}
    assert Mask([VALUE]).story(told) == {"message": "bad ***", "cause": {"why": ["***"]}, "line": 3, "none": None}


@pytest.mark.parametrize("values", [[VALUE], [PEM], [VALUE, VALUE + "-and-more", PEM, "aaaa"]])
def test_a_stream_is_masked_wherever_it_is_cut(values: list[str]) -> None:
    """However the pieces come, what goes out is what the whole would be, and no value ever shows in it."""
    rng = random.Random(7)
    words = [*values, values[0][:5], "a line\n", "aa", "aaa", "\r", "x" * 9000, "\n"]
    for _ in range(60):
        whole = "".join(rng.choices(words, k=rng.randrange(1, 25))).encode()
        output, told, rest = Output(mask=Mask(values)), b"", whole
        while rest:
            size = rng.choice((1, 3, 17, 400, 5000))
            told += output.take("stdout", rest[:size])
            rest = rest[size:]
        told += output.take("stdout", b"", last=True)
        assert told == Mask(values).data(whole)
        assert not any(value.encode() in told for value in values)


def test_lines_do_not_wait_for_more_than_they_have_to() -> None:
    """A line goes out when it ends, also where there are values to be masked."""
    output = Output(mask=Mask([PEM]))
    assert output.take("stdout", b"one\ntwo") == b"one\n"
    assert output.take("stdout", b"\n-----BEGIN") == b"two\n"
    assert output.take("stdout", b" nothing\n") == b"-----BEGIN nothing\n"
    assert output.take("stderr", b"", last=True) == b""
