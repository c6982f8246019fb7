"""Amounts in Flyte's spellings become plain numbers, or are refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.errors import UsageError
from executor.resources import Resources, parse_cpus, parse_gpus, parse_memory


@pytest.mark.parametrize(
    ("amount", "size"),
    [
        (1, 1),
        (2**30, 2**30),
        ("512Mi", 512 * 2**20),
        ("4Gi", 4 * 2**30),
        ("1.5Gi", 3 * 2**29),
        ("2G", 2 * 10**9),
        ("10k", 10_000),
        ("1Ti", 2**40),
        (" 3 GiB ", 3 * 2**30),
    ],
)
def test_memory_in_every_spelling(amount: Any, size: int) -> None:
    """Bytes, powers of ten, powers of two."""
    assert parse_memory(amount) == size


@pytest.mark.parametrize(
    "amount", ["", "x", "-1", "0", "4 Xi", "Gi", "1e3", "1 2", True, None, "0.1", "1.2.3", "ki", "1ki"]
)
def test_what_is_no_memory_is_refused(amount: Any) -> None:
    """With how it is written."""
    with pytest.raises(UsageError, match="is not an amount of memory"):
        parse_memory(amount)


@pytest.mark.parametrize(("amount", "cores"), [(2, 2.0), (0.5, 0.5), ("500m", 0.5), ("2", 2.0), ("0.1", 0.1)])
def test_cores_in_every_spelling(amount: Any, cores: float) -> None:
    """Whole, fractions, thousandths."""
    assert parse_cpus(amount) == cores


@pytest.mark.parametrize("amount", [0, -1, "x", "", "0m", True, None, "1k"])
def test_what_is_no_number_of_cores_is_refused(amount: Any) -> None:
    """Zero is none, too."""
    with pytest.raises(UsageError, match="is not a number of cores"):
        parse_cpus(amount)


@pytest.mark.parametrize(
    ("amount", "gpus"),
    [
        (None, (0, "")),
        (0, (0, "")),
        (2, (2, "")),
        ("1", (1, "")),
        ("A100", (1, "A100")),
        ("A100 80G:2", (2, "A100 80G")),
    ],
)
def test_gpus_by_count_and_model(amount: Any, gpus: tuple[int, str]) -> None:
    """Whole devices, of a model where one is named."""
    assert parse_gpus(amount) == gpus


@pytest.mark.parametrize("amount", [-1, 0.5, True, "", ":2", "A100:x", "A100:-1", "A100:1:2"])
def test_what_is_no_request_for_gpus_is_refused(amount: Any) -> None:
    """A GPU is never shared, so there is no half."""
    with pytest.raises(UsageError, match="is not a request for GPUs"):
        parse_gpus(amount)


def test_a_pair_is_request_and_limit() -> None:
    """One amount is both; without any, memory is admitted with a default and not limited."""
    both = Resources(cpu=("500m", 2), memory=("1Gi", "4Gi"), shm="64Mi").to_json()
    assert (both["cpus"], both["cpus_limit"]) == (0.5, 2.0)
    assert (both["memory_bytes"], both["memory_limit_bytes"], both["shm_bytes"]) == (2**30, 2**32, 2**26)
    none = Resources().to_json()
    assert (none["cpus"], none["cpus_limit"], none["memory_bytes"]) == (1.0, 1.0, 2 * 2**30)
    assert (none["memory_limit_bytes"], none["gpus"], none["shm_bytes"]) == (None, 0, None)


@pytest.mark.parametrize("pair", [("4Gi", "1Gi"), ("1Gi", "2Gi", "3Gi"), ("1Gi",), ()])
def test_a_pair_that_is_none_is_refused(pair: Any) -> None:
    """The request is not the larger, and two are two."""
    with pytest.raises(UsageError):
        Resources(memory=pair).to_json()


@given(st.integers(1, 2**50), st.sampled_from(["", "Ki", "Mi", "Gi"]))
def test_memory_is_exact(count: int, unit: str) -> None:
    """No byte is lost on the way through text."""
    factor = {"": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}[unit]
    assert parse_memory(f"{count}{unit}") == count * factor
