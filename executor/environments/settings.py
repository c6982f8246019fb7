"""What a site says about its channels: an alias for their names, and mirrors in their place.

`$RUN_LOCAL_HOME/config.toml`, or a variable that wins over it:

    channel_alias = "https://conda.example.org"          RUN_LOCAL_CHANNEL_ALIAS
    [mirrors]                                            RUN_LOCAL_MIRRORS="conda-forge=/srv/conda-forge …"
    conda-forge = "/srv/conda-forge"

A lock names what a mirror served by the address of the channel that it stands for, so it holds at other sites, too.
"""

from __future__ import annotations

import os
import sys
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from executor.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ALIAS_VARIABLE, MIRRORS_VARIABLE = "RUN_LOCAL_CHANNEL_ALIAS", "RUN_LOCAL_MIRRORS"


@dataclass(frozen=True)
class Settings:
    """alias: what a bare name of a channel is appended to, or None for conda's own; mirrors: channel → where it is."""

    alias: str | None = None
    mirrors: Mapping[str, str] = field(default_factory=dict)

    def place(self, channel: str) -> str | None:
        """Where a channel is, if this site says so."""
        if channel in self.mirrors:
            return self.mirrors[channel]
        return f"{self.alias}/{channel}" if self.alias and "://" not in channel and "/" not in channel[:1] else None


def read_settings(home: Path) -> Settings:
    """The settings of this site; raises `UsageError` where they make no sense."""
    path = home / "config.toml"
    try:
        document: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError) as exc:
        raise UsageError("the settings cannot be read", why=f"{path}: {exc}") from exc
    unknown = sorted(document.keys() - {"channel_alias", "mirrors"})
    mirrors = document.get("mirrors", {})
    if unknown or not isinstance(mirrors, dict) or not all(isinstance(each, str) for each in mirrors.values()):
        raise UsageError(
            "the settings make no sense",
            why=f"{path}: unknown {', '.join(unknown)}" if unknown else f"{path}: `mirrors` is no table of texts",
            hint='known are `channel_alias = "…"` and a table `[mirrors]` of channel = "…"',
        )
    for each in os.environ.get(MIRRORS_VARIABLE, "").split():
        name, equals, place = each.rpartition("=")
        if not equals or not name or not place:
            raise UsageError(f"`{MIRRORS_VARIABLE}` makes no sense", why=f"`{each}`", hint="write `channel=address …`")
        mirrors = {**mirrors, name: place}
    alias = os.environ.get(ALIAS_VARIABLE) or document.get("channel_alias")
    return Settings(alias and _address(alias), {name: _address(place) for name, place in mirrors.items()})


def mirrored(url: str, beginnings: Mapping[str, str]) -> str:
    """An address with its longest known beginning replaced."""
    known = max((each for each in beginnings if url.startswith(each)), key=len, default="")
    return beginnings[known] + url[len(known) :] if known else url


def _address(place: str) -> str:
    """A folder as a URL; a URL as it is."""
    if "://" in place:
        return place.rstrip("/")
    return "file://" + urllib.parse.quote(str(Path(place).expanduser().absolute()))
