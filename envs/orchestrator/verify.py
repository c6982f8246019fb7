"""The workflow calls tasks and computes nothing: what its children need is not in here."""

import importlib.util

for module in ("numpy", "torch", "matplotlib"):
    assert importlib.util.find_spec(module) is None, f"`{module}` is here, and should not be"
