"""conda's words in PyPI's, and back: names of packages, and what is asked of their versions.

`pypi_names.json` holds the names that differ, other names under which conda has the same, and names that mean no Python
package, so that one on PyPI that happens to be called like a compiler is never taken for it.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rattler
from packaging.requirements import Requirement
from packaging.specifiers import InvalidSpecifier, Specifier
from packaging.utils import canonicalize_name

from executor.errors import LockError

_TERM = re.compile(r"(?P<operator>==|>=|<=|!=|~=|=|>|<|)(?P<version>[^=<>!~^$][^=<>~^$]*)")
_WHAT_NEXT = (
    "configure a mirror that has it (`RUN_LOCAL_MIRRORS`), or list it under `pip:` if PyPI has it under another name, "
    "or under `apt:` if it is a program"
)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One conda requirement, understood.

    text: as it was written; conda, pypi: what its package is called there
    specifier: what it asks of the version, in the words of PEP 440
    build: what it asks of the build, which a wheel does not have
    """

    text: str
    conda: str
    pypi: str
    specifier: str
    build: str = ""

    @property
    def line(self) -> str:
        """The requirement as pip would read it."""
        return f"{self.pypi}{self.specifier}"


def understand(text: str) -> Asked:
    """A requirement in conda's words; raises `LockError` where PyPI's have none for it."""
    spec = match_spec(text)
    name, build = spec.name.normalized, str(spec.build or "").strip("*")
    return Asked(
        text=text, conda=name, pypi=pypi_name(name), specifier=_specifier(text, str(spec.version or "*")), build=build
    )


def match_spec(text: str) -> Any:
    """A conda requirement as rattler reads it."""
    try:
        spec = rattler.MatchSpec(text)
    except Exception as exc:  # rattler's errors share no base that it exports
        raise LockError(f"`{text}` is no conda requirement", why=str(exc)) from exc
    if spec.name is None:
        raise LockError(f"`{text}` is no conda requirement", why="it names no package")
    return spec


def pypi_name(conda: str) -> str:
    """What a conda package is called on PyPI; raises `LockError` where it is known to be no Python package."""
    names = _names()
    if conda in names.to_pypi:
        return names.to_pypi[conda]
    if conda in names.no_python or conda.startswith(names.no_python_beginnings):
        called = names.to_conda.get(conda)
        raise LockError(
            f"`{conda}` cannot be had without a conda channel",
            why="no conda channel answers, and what is made from PyPI in its place is Python packages only",
            hint=(f"its Python package is called `{called}` in conda; else " if called else "") + _WHAT_NEXT,
        )
    canonical = canonicalize_name(conda)
    called = names.to_conda.get(canonical, canonical)
    if canonicalize_name(called) != canonical:
        raise LockError(
            f"`{conda}` is not what conda calls it", why="that is its name on PyPI", hint=f"write `{called}`"
        )
    return canonical


def conda_name(pypi: str) -> str:
    """What a package of PyPI is called in conda."""
    canonical = canonicalize_name(pypi)
    return _names().to_conda.get(canonical, canonical)


def is_python_package(conda: str) -> bool:
    """Whether the name could be a Python package's."""
    try:
        pypi_name(conda)
    except LockError:
        return False
    return True


def for_conda_lock() -> dict[str, dict[str, str]]:
    """The names that differ, as conda-lock reads them."""
    return {pypi: {"pypi_name": pypi, "conda_name": conda} for pypi, conda in _names().to_conda.items()}


def digest_of_names() -> str:
    """Changes when a name does."""
    return json.dumps(_names().to_conda, sort_keys=True)


def as_match_spec(requirement: Requirement) -> str:
    """A dependency of a wheel as conda writes it, without its extras and its marker."""
    terms = [_conda_term(term) for term in sorted(requirement.specifier, key=str)]
    return f"{conda_name(requirement.name)} {','.join(terms)}".strip()


def not_found(asked: Asked) -> LockError:
    """Neither a channel nor PyPI has it."""
    return LockError(
        f"`{asked.conda}` cannot be had without a conda channel",
        why=f"no conda channel answers, and PyPI, where Python packages are taken from instead, has no `{asked.pypi}`",
        hint=_WHAT_NEXT,
    )


def _specifier(text: str, version: str) -> str:
    if version == "*":
        return ""
    if re.search(r"[|()^$]", version):
        raise LockError(
            f"`{text}` cannot be had without a conda channel",
            why="alternatives (`|`) and patterns have no counterpart in what PyPI's packages are chosen by",
            hint="write one range, such as `>=1.26,<3`",
        )
    terms = [_pypi_term(text, each) for each in version.split(",") if each != "*"]
    return ",".join(dict.fromkeys(terms))


def _pypi_term(text: str, term: str) -> str:
    found = _TERM.fullmatch(term.strip())
    operator, version = (found["operator"], found["version"].strip()) if found else ("", term)
    fuzzy = version.endswith("*") or operator == "="
    version = version.rstrip("*").rstrip(".")
    if operator in ("", "=", "=="):
        written = f"=={version}.*" if fuzzy and re.fullmatch(r"[0-9!.]+", version) else f"=={version}"
    elif operator == "!=":
        written = f"!={version}.*" if fuzzy else f"!={version}"
    elif operator == "<":  # before all of it, which conda says with `0a0`, and PyPI without
        written = "<" + re.sub(r"(\.0)?a0$", "", version)
    else:
        written = f"{operator}{version}"
    try:
        return str(Specifier(written))
    except InvalidSpecifier:
        raise LockError(
            f"`{text}` cannot be had without a conda channel",
            why=f"`{term}` is no version of a Python package",
            hint="write a version as PyPI has it, such as `>=1.26,<3`",
        ) from None


def _conda_term(term: Specifier) -> str:
    version = term.version.partition("+")[0]
    if term.operator in ("==", "==="):
        return version if version.endswith(".*") else f"=={version}"
    return f"{term.operator}{version}"


@dataclass(frozen=True)
class _Names:
    to_conda: Mapping[str, str]
    to_pypi: Mapping[str, str]
    no_python: frozenset[str]
    no_python_beginnings: tuple[str, ...]


@functools.cache
def _names() -> _Names:
    document = json.loads(Path(__file__).with_name("pypi_names.json").read_bytes())
    to_conda: dict[str, str] = document["conda name of"]
    back = {conda: pypi for pypi, conda in to_conda.items()}
    return _Names(
        to_conda,
        {**back, **document["also called"]},
        frozenset(document["not python"]),
        tuple(document["not python if it begins with"]),
    )
