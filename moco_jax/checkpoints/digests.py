"""What the contents of a checkpoint are known by: a SHA-256 for each leaf, for its description, and for the list."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np


def of(leaves: Mapping[str, np.ndarray], about: Any) -> dict[str, Any]:
    """The list for leaves by name and a description: plain JSON, with a digest of its own."""
    listed = {"leaves": {name: entry(leaf) for name, leaf in leaves.items()}, "about": of_json(about)}
    return listed | {"list": of_json(listed)}


def entry(leaf: np.ndarray) -> list[Any]:
    """[dtype, shape, SHA-256 of the values in C order] of a leaf."""
    values = np.ascontiguousarray(leaf).reshape(-1).view(np.uint8)
    return [str(leaf.dtype), list(leaf.shape), hashlib.sha256(values.data).hexdigest()]


def of_json(content: Any) -> str:
    """SHA-256 of JSON as it is read back, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(json.loads(json.dumps(content)), sort_keys=True).encode()).hexdigest()


def checked(listed: Any) -> dict[str, Any]:
    """A list as it was read; raises ValueError where it is not the one that was written."""
    if not isinstance(listed, dict) or listed.get("list") != of_json({k: v for k, v in listed.items() if k != "list"}):
        raise ValueError("the list is not the one that was saved")
    return listed
