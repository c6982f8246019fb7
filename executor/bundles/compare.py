"""Two runs of the same workflow, call by call: which values are the same, and how far those are apart that are not."""

from __future__ import annotations

import array
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from executor.data.parsed import Array, Made, Unreadable, parse_value
from executor.data.records import CallView, RunView
from executor.data.store import FileRef, Store, ValueRef, read_value

Verdict = Literal["equal", "different", "not comparable"]

_CHUNK = 2**20
#: numpy's short names of what can be compared number by number → the type code of `array.array`, and a name for people.
_NUMBERS = {
    "f8": ("d", "float64"), "f4": ("f", "float32"), "i8": ("q", "int64"), "i4": ("i", "int32"), "i2": ("h", "int16"),
    "i1": ("b", "int8"), "u8": ("Q", "uint64"), "u4": ("I", "uint32"), "u2": ("H", "uint16"), "u1": ("B", "uint8"),
    "b1": ("B", "bool"),
}  # fmt: skip
_NATIVE = "<" if sys.byteorder == "little" else ">"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One call in both runs; why: what is different, or why it cannot be said, a line each."""

    call: str
    task: str
    verdict: Verdict
    why: tuple[str, ...] = ()


def compare_runs(expected: RunView, found: RunView, store: Store) -> list[Comparison]:
    """What each call of a run came to, beside the recorded one; both have their values in the store."""
    return [
        _compare(expected.calls.get(name), found.calls.get(name), store) for name in {**expected.calls, **found.calls}
    ]


def _compare(expected: CallView | None, found: CallView | None, store: Store) -> Comparison:
    one = expected or found
    assert one is not None

    def told(verdict: Verdict, *why: str) -> Comparison:
        return Comparison(call=one.id, task=one.task, verdict=verdict, why=why)

    if expected is None or found is None:
        return told("not comparable", "it was made in one of the runs only")
    if expected.task != found.task:
        return told("not comparable", f"it was a call of `{expected.task}`, and is one of `{found.task}`")
    if expected.value is None or found.value is None:
        if expected.value is None and found.value is None:
            return told("not comparable", f"it {expected.status} then, and {found.status} now: there is no value")
        return told("different", f"it {expected.status} then, and {found.status} now")
    different, unknown = compare_values(store, read_value(expected.value), read_value(found.value))
    if different:
        return told("different", *different)
    return told("not comparable", unknown) if unknown else told("equal")


def compare_values(store: Store, expected: ValueRef, found: ValueRef) -> tuple[list[str], str]:
    """What is different between two stored values, a line each; or else why nobody can tell, or nothing."""
    files = _named(expected.files), _named(found.files)
    lines = list(_files(store, *files))
    if expected.sha256 == found.sha256:
        return lines, ""
    try:
        lines += _values(parse_value(store, expected), parse_value(store, found), "the value")
    except (Unreadable, RecursionError) as exc:
        return lines, f"its bytes are others, and what is in it cannot be read: {exc}"
    except OSError:
        return lines, "its bytes are others, and the recorded ones are not here"
    return lines, ""


def _named(files: Sequence[FileRef]) -> list[FileRef]:
    return [each for each in files if each.name]


def _files(store: Store, expected: Sequence[FileRef], found: Sequence[FileRef]) -> Iterator[str]:
    if [each.name for each in expected] != [each.name for each in found]:
        yield f"its files are {[each.name for each in found]}, and were {[each.name for each in expected]}"
        return
    for one, other in zip(expected, found, strict=True):
        if one.tree is None and other.tree is None:
            if one.sha256 != other.sha256:
                yield f"`{one.name}` {_bytes(store, one.sha256, other.sha256, one.size, other.size)}"
        elif one.tree != other.tree:
            before = {each.path: each for each in one.tree or ()}
            after = {each.path: each for each in other.tree or ()}
            changed = [path for path in {**before, **after} if before.get(path) != after.get(path)]
            yield f"`{one.name}`: {len(changed)} of {len({**before, **after})} entries differ, first `{changed[0]}`"


def _bytes(store: Store, expected: str, found: str, size: int, now: int) -> str:
    """Where two files begin to differ, and how long they are."""
    lengths = f"has {now} bytes, and had {size}" if size != now else f"has {now} bytes as before"
    at = 0
    try:
        with store.path(expected).open("rb") as one, store.path(found).open("rb") as other:
            while (chunk := one.read(_CHUNK)) == (beside := other.read(_CHUNK)) and chunk:
                at += len(chunk)
        same = next((n for n, pair in enumerate(zip(chunk, beside, strict=False)) if pair[0] != pair[1]), None)
        at += min(len(chunk), len(beside)) if same is None else same
    except OSError:
        return lengths
    return f"{lengths}; they differ from byte {at}"


def _values(expected: Any, found: Any, path: str) -> Iterator[str]:
    """What is different, by where it stands; floats that are not a number are the same as each other."""
    if type(expected) is not type(found):
        yield f"{path} was {_short(expected)}, and is {_short(found)}"
        return
    rules: dict[type, Callable[[Any, Any, str], Iterator[str]]] = {
        Array: _arrays, dict: _mappings, list: _sequences, tuple: _sequences, Made: _made,
    }  # fmt: skip
    compare = rules.get(type(expected), _plain)
    yield from compare(expected, found, path)


def _arrays(expected: Array, found: Array, path: str) -> Iterator[str]:
    if told := compare_arrays(expected, found):
        yield f"{path}: {told}"


def _mappings(expected: dict[Any, Any], found: dict[Any, Any], path: str) -> Iterator[str]:
    for key in {**expected, **found}:
        if key not in expected or key not in found:
            yield f"{path}[{key!r}] is {'new' if key in found else 'gone'}"
        else:
            yield from _values(expected[key], found[key], f"{path}[{key!r}]")


def _sequences(expected: Sequence[Any], found: Sequence[Any], path: str) -> Iterator[str]:
    if len(expected) != len(found):
        yield f"{path} has {len(found)} elements, and had {len(expected)}"
    for number, pair in enumerate(zip(expected, found, strict=False)):
        yield from _values(*pair, f"{path}[{number}]")


def _made(expected: Made, found: Made, path: str) -> Iterator[str]:
    if expected.name != found.name:
        yield f"{path} was a {expected.name}, and is a {found.name}"
        return
    for part in fields(Made)[1:]:
        yield from _values(getattr(expected, part.name), getattr(found, part.name), path)


def _plain(expected: Any, found: Any, path: str) -> Iterator[str]:
    if expected != found and not (expected != expected and found != found):
        apart = f", {abs(found - expected):.3g} apart" if isinstance(expected, float) else ""
        yield f"{path} was {_short(expected)}, and is {_short(found)}{apart}"


def compare_arrays(expected: Array, found: Array) -> str:
    """How far two arrays are apart; empty where they hold the same."""
    if (expected.kind, expected.shape) != (found.kind, found.shape):
        return f"it is {_called(found)}, and was {_called(expected)}"
    if expected.data == found.data and expected.order == found.order:
        return ""
    kind = _NUMBERS.get(expected.kind.removeprefix(_NATIVE).removeprefix("|"))
    if kind is None or expected.order != found.order:
        return f"the content of {_called(expected)} is another"
    numbers = (array.array(kind[0], each.data) for each in (expected, found))
    apart = [
        abs(one - other) for one, other in zip(*numbers, strict=True) if one != other and (one == one or other == other)
    ]
    if not apart:
        return ""
    largest = "one that is no number" if any(map(math.isnan, apart)) else f"at most {max(apart):.3g}"
    return f"{len(apart)} of {math.prod(expected.shape)} elements of {_called(expected)} differ, by {largest}"


def _called(made: Array) -> str:
    plain = made.kind.removeprefix(_NATIVE).removeprefix("|")
    return f"{_NUMBERS[plain][1] if plain in _NUMBERS else made.kind}{list(made.shape)}"


def _short(value: Any) -> str:
    if isinstance(value, Array):
        return _called(value)
    if isinstance(value, Made):
        return f"a {value.name}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
