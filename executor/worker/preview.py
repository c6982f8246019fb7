"""What a person may see of a value without opening it: JSON where it can be, else its type and a short text.

Made where the value was made, because only there its packages are sure to be at hand.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
import json
import math
import os
import pathlib
from typing import Any

_MOST_BYTES = 256 * 2**10
_MOST_TEXT = 300


class _NotJson(Exception):
    """Some part of the value has no JSON form."""


def preview(value: Any, attached: dict[str, int]) -> dict[str, Any]:
    """`{"json": …}` or `{"text": …}`; a file of the value stands as `{"$file": index}`, see `payload.dump`."""
    try:
        doc = _render(value, attached, 0)
        if len(json.dumps(doc)) <= _MOST_BYTES:
            return {"json": doc}
    except _NotJson:
        pass
    except Exception:  # noqa: BLE001  a property or __repr__ of the user's may raise anything; it is only a preview
        return {"text": f"<{type(value).__qualname__}>"}
    return {"text": _shorten(value)}


def _shorten(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001  user code
        text = f"<{type(value).__qualname__}>"
    return text if len(text) <= _MOST_TEXT else text[:_MOST_TEXT] + "…"


def _render(value: Any, attached: dict[str, int], depth: int) -> Any:  # noqa: C901  one branch a kind of value
    if depth > 50:
        raise _NotJson
    if isinstance(value, enum.Enum):
        return _render(value.value, attached, depth + 1)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, pathlib.PurePath):
        index = attached.get(os.path.realpath(value))
        return str(value) if index is None else {"$file": index}
    if isinstance(value, (datetime.datetime, datetime.date)):
        return value.isoformat()
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _render(each, attached, depth + 1) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_render(each, attached, depth + 1) for each in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _render(getattr(value, f.name), attached, depth + 1) for f in dataclasses.fields(value)}
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        return _render(value.item(), attached, depth + 1)
    raise _NotJson
