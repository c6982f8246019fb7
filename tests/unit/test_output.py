"""What a task prints, from its own streams to the console."""

from __future__ import annotations

import subprocess
import sys

import pytest

from executor.console import printable
from executor.worker.output import Output
from tests.harness import ROOT


def test_lines_are_put_together() -> None:
    """Each stream's own; what is not finished comes with the last, and a long line does not wait."""
    output = Output()
    assert output.take("stdout", b"one") == b""
    assert output.take("stderr", b"1\n2") == b"1\n"
    assert output.take("stdout", b" line\nnext") == b"one line\n"
    assert output.take("stdout", b"\r50%") == b"next\r"
    assert output.take("stdout", b"", last=True) == b"50%"
    assert output.take("stderr", b"", last=True) == b"2"
    assert output.take("stdout", b"x" * 100_000) == b"x" * 100_000


@pytest.mark.parametrize(("limit", "told"), [(4, "4 bytes"), (2048, "2 KiB"), (3 * 2**20, "3 MiB"), (2**30, "1 GiB")])
def test_the_notice_says_the_limit(limit: int, told: str) -> None:
    """Once, on a line of its own."""
    output = Output(limit)
    output.written = limit - 4
    notice = f"… output of this attempt beyond {told} is not kept\n".encode()
    assert output.take("stdout", b"abc\n") == b"abc\n"
    assert output.take("stdout", b"d\n") == b"\n" + notice
    assert output.take("stderr", b"e\n") == b""
    assert output.written == limit + 4


@pytest.mark.parametrize(
    ("line", "plain", "coloured"),
    [
        (b"plain\ttext  ", "plain\ttext", "plain\ttext"),
        (b"\x1b[1;31mred\x1b[0m", "red", "\x1b[1;31mred\x1b[0m"),
        (b"a\x1b[2Kb\x1b[10;10Hc\x1b[?1049hd", "abcd", "abcd"),
        (b"\x1b]0;title\x07a\x1b]8;;http://x\x1b\\b\x1bPq#\x1b\\c", "abc", "abc"),
        (b"\x1bcreset \x1b(0line", "reset line", "reset line"),
        (b"\x1b]never ended", "", ""),
        (b"\x07\x08\x00\x7f\xc2\x9b31mnul\xe2\x80\xaeesrever", "nulesrever", "nulesrever"),
        (b"10%\r99%\r\n", "99%", "99%"),
        (b"\xff\xc3\xa9", "\N{REPLACEMENT CHARACTER}é", "\N{REPLACEMENT CHARACTER}é"),
    ],
)  # fmt: skip
def test_a_line_is_shown_safely(line: bytes, plain: str, coloured: str) -> None:
    """On a terminal with its colours, elsewhere without."""
    assert printable(line, colours=False) == plain
    assert printable(line, colours=True) == coloured


def test_streams_keep_nothing_back() -> None:
    """What was written is out before anything else happens, and threads lose nothing."""
    program = """
        import os, sys, threading
        from executor.worker.output import open_streams
        open_streams()
        def write(name):
            for number in range(500):
                sys.stdout.write(f"{name}{number}\\n")
        threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        print("first", end="")
        print("é", file=sys.stderr, end="")
        sys.stdout.buffer.write(b"\\xff")
        print(sys.stdout.encoding, sys.stdout.isatty(), sys.stdout.fileno(), end="")
        os._exit(0)
    """
    code = "\n".join(line.removeprefix("        ") for line in program.splitlines())
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    *lines, last = done.stdout.split(b"\n")
    assert sorted(lines) == sorted(f"{name}{number}".encode() for name in "abcd" for number in range(500))
    assert (last, done.stderr) == (b"first\xffutf-8 False 1", "é".encode())
