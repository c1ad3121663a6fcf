"""Changes to nested dictionaries, such as the sections of params.yaml."""

from collections.abc import Mapping
from typing import Any


def deep_merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `changes`; a dictionary on both sides is merged, any other value is replaced."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = deep_merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged
