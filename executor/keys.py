"""The key of a call: the digest of all that its value may depend on.

Two calls with one key come to the same value, as far as a task is a function of its code, its environment and its inputs.
The parts are kept beside the digest, so that it can be said what made two keys differ.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

_FORMAT = 1  # of the parts; another one makes every key another


@dataclass(frozen=True, kw_only=True)
class CallKey:
    """What the value of a call depends on.

    task:         its name
    environments: environment → key, of its own and of those that calls below it run in
    code:         part of the project's code that it reaches → digest (see `reach`); code_digest is that of all of it
    variables:    the environment variables that it was called with, and those of the environments below it
    mounts:       path in the environment → what lies there, by path, size and time, because it is too large to be read
    inputs:       digests of the payload and of what is attached to it
    versions:     task → what its author wrote, of its own and of those that it calls
    """

    task: str
    environments: Mapping[str, str]
    code: Mapping[str, str]
    code_digest: str
    inputs: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict)
    mounts: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data, for the record."""
        return asdict(self)

    def told(self) -> dict[str, Any]:
        """What the record of a call says of it: names of environments, a digest of the code, and what is not empty."""
        few = {"variables": self.variables, "mounts": self.mounts, "versions": self.versions}
        found = {name: dict(each) for name, each in few.items() if each}
        return {"environments": list(self.environments), "code": self.code_digest, **found}

    @property
    def digest(self) -> str:
        """The key itself: 64 hexadecimal digits."""
        doc = {"format": _FORMAT, **{field.name: getattr(self, field.name) for field in fields(self)}, "code": ""}
        return hashlib.sha256(json.dumps(doc, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
