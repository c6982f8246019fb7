"""Where this machine gets its Python packages from: what pip is configured with, for uv to honour.

A site says in pip's configuration which mirror it has; a user does not want to say it again.
"""

from __future__ import annotations

import ast
import hashlib
import os
import subprocess
import sys
import urllib.parse
from pathlib import Path

_FLAGS = {"index-url": "--index-url", "extra-index-url": "--extra-index-url", "find-links": "--find-links"}
_SWITCHES = {"no-index": "--no-index"}
_OTHERS = frozenset({"cert"})
_YES = frozenset({"1", "true", "yes", "on", "y", "t"})


def uv_options() -> list[str]:
    """Uv's options for the indexes and find-links of `pip config`; they are merged, as pip merges them."""
    options = ["--index-strategy", "unsafe-best-match"]
    for name, values in _pip_settings().items():
        if name in _SWITCHES:
            options += [_SWITCHES[name]] if values[-1:] and values[-1].lower() in _YES else []
        for value in values if name in _FLAGS else ():
            options += [_FLAGS[name], value]
    return options


def certificates() -> str | None:
    """The file of certificates that pip is told to trust, if it is told."""
    return next(iter(_pip_settings().get("cert", [])), None)


def credentials() -> dict[str, tuple[str, str]]:
    """Host → user and password, where the address of an index holds them."""
    found, settings = {}, _pip_settings()
    for name in _FLAGS:
        for address in settings.get(name, []):
            parts = urllib.parse.urlsplit(address)
            if parts.hostname and parts.username:
                login = (urllib.parse.unquote(parts.username), urllib.parse.unquote(parts.password or ""))
                found[parts.hostname] = login
    return found


def settings_digest() -> str:
    """Changes when pip's settings do; reads their files and variables only, so that it costs nothing."""
    digest = hashlib.sha256()
    for name in sorted(os.environ):
        if name.startswith(("PIP_INDEX", "PIP_EXTRA_INDEX", "PIP_FIND_LINKS", "PIP_NO_INDEX", "PIP_CONFIG_FILE")):
            digest.update(f"{name}={os.environ[name]}\n".encode())
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    files = (
        Path("/etc/pip.conf"),
        Path("/etc/xdg/pip/pip.conf"),
        config / "pip/pip.conf",
        Path.home() / ".pip/pip.conf",
        Path(sys.prefix, "pip.conf"),
    )
    for path in (*files, Path(os.environ.get("PIP_CONFIG_FILE", "/nonexistent"))):
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _pip_settings() -> dict[str, list[str]]:
    """Setting → values, the most specific place of each winning, as in pip: environment, then `install`, then `global`."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    found: dict[str, tuple[int, list[str]]] = {}
    ranks = {"global": 0, "install": 1, ":env:": 2}
    for line in listed.stdout.splitlines():
        key, _, text = line.partition("=")
        section, _, name = key.rpartition(".")
        rank = ranks.get(section, -1)
        if (name in _FLAGS or name in _SWITCHES or name in _OTHERS) and rank >= found.get(name, (-1, []))[0]:
            values = str(ast.literal_eval(text)).split()
            found[name] = (rank, [value for value in values if _is_there(value)])
    return {name: values for name, (_, values) in found.items()}


def _is_there(place: str) -> bool:
    """Leave out folders that are configured and not there, as pip does."""
    path = place.removeprefix("file://")
    return not path.startswith("/") or Path(path).exists()
