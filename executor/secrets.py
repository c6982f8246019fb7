"""What secrets are on this machine: where they are looked for, and who may read them there.

    a variable of the caller named after it       `HF_TOKEN` for `hf-token`, `HUB_TOKEN` for `token` of the group `hub`
    $RUN_LOCAL_HOME/secrets/[<group>/]<key>       a file that nobody but its owner may read

A value goes from there into the frame of an attempt (`Secrets.reveal`) and nowhere else: no image, no configuration of a
container, no record, no key of a cache, no message. `worker.masking` keeps it out of what tasks print.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from executor.authoring import SECRET_FILES
from executor.errors import MachineError
from executor.manifest import Manifest, SecretEntry

#: A shorter value cannot be masked in what tasks print: too much else would look like it.
LEAST_CHARACTERS = 4
_MOST_BYTES = 64 * 2**10


class Secrets:
    """What the tasks of one environment are told; shows nothing of it unless it is asked to.

    variables: name → value; files: path below `SECRET_FILES` → value
    """

    def __init__(self, variables: Mapping[str, str] | None = None, files: Mapping[str, str] | None = None) -> None:
        self._variables, self._files = dict(variables or {}), dict(files or {})

    def reveal(self) -> dict[str, Any]:
        """The values, for the frame of an attempt."""
        return {"variables": self._variables, "files": self._files}

    def __repr__(self) -> str:
        return f"Secrets({[*self._variables, *self._files]})"

    def __reduce__(self) -> Any:
        raise TypeError("secrets are not pickled")


def find_secrets(manifest: Manifest, names: Sequence[str], runtime: str, home: Path) -> dict[str, Secrets]:
    """The secrets of these environments. Raises `MachineError` with all that are not there, or not to be trusted."""
    found: dict[str, Secrets] = {}
    problems, hints = [], []
    for entry in (manifest.environments[name] for name in names):
        variables, files = {}, {}
        for secret in entry.secrets:
            try:
                if secret.file and runtime == "process":
                    raise _no_files(secret)
                value = read_secret(secret, home)
            except MachineError as exc:
                problems.append(f"`{entry.name}` ({entry.file}:{entry.line}): {exc.what}")
                hints.append(exc.hint)
                continue
            if secret.variable:
                variables[secret.variable] = value
            if secret.file:
                files[secret.name] = value
        found[entry.name] = Secrets(variables, files)
    if problems:
        raise MachineError("secrets cannot be told to tasks", "\n".join(problems), "\n".join(dict.fromkeys(hints)))
    return found


def read_secret(secret: SecretEntry, home: Path) -> str:
    """The value of a secret on this machine; raises `MachineError` where there is none, or others may read it."""
    variable, path = source_variable(secret), home / "secrets" / secret.name
    value = os.environ.get(variable, "")
    place = f"the variable `{variable}`"
    if not value:
        value, place = _read(secret, variable, path), f"`{path}`"
    if len(value) < LEAST_CHARACTERS:
        what = f"secret `{secret.name}` in {place} has fewer than {LEAST_CHARACTERS} characters"
        raise MachineError(what, hint="is that all of it? So short a text cannot be kept out of what tasks print")
    if len(value.encode(errors="surrogateescape")) > _MOST_BYTES or "\0" in value or not _is_text(value):
        what = f"secret `{secret.name}` in {place} is no text of at most {_MOST_BYTES // 2**10} KiB"
        raise MachineError(what, hint="encode it, for example with `base64`, and decode it in the task")
    return value


def source_variable(secret: SecretEntry) -> str:
    """The variable of the caller that a secret is looked for in."""
    name = "_".join(filter(None, (secret.group, secret.key)))
    return name.replace("-", "_").replace(".", "_").upper()


def _read(secret: SecretEntry, variable: str, path: Path) -> str:
    """The text of a file, without the end of its last line."""
    try:
        with path.open("rb") as file:
            told = os.fstat(file.fileno())
            if stat.S_IMODE(told.st_mode) & 0o077:
                raise MachineError(
                    f"secret `{secret.name}`: others may read `{path}` (mode {stat.S_IMODE(told.st_mode):04o})",
                    hint=f"`chmod 600 {path}`",
                )
            text = file.read(_MOST_BYTES + 2).decode(errors="surrogateescape")
    except FileNotFoundError:
        raise MachineError(
            f"secret `{secret.name}` is not on this machine: neither a variable `{variable}` nor a file `{path}`",
            hint=f"set the variable, or write it to that file: `install -D -m 600 /dev/stdin {path}`",
        ) from None
    except OSError as exc:
        raise MachineError(
            f"secret `{secret.name}`: `{path}` cannot be read ({exc.strerror})", hint="is it a file of yours?"
        ) from None
    return text[:-1] if text.endswith("\n") else text


def _no_files(secret: SecretEntry) -> MachineError:
    return MachineError(
        f"secret `{secret.name}` cannot be a file in `{SECRET_FILES}`: a process finds this machine's own files there",
        hint="use `as_env_var` instead of `mount`, or `--runtime docker`",
    )


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
