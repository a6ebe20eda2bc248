"""SHA-256 of data, by which work tells what it belongs to."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable


def sha256_of(*parts: Any) -> str:  # Any: bytes, text, arrays and plain data
    """Digest of some parts, one behind the other.

    Parameters
    ----------
    parts
        Bytes; text, as UTF-8; arrays, by the bytes of their values in C order; other plain data, as JSON with sorted keys.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    return sha256_of_all(parts)


def sha256_of_all(parts: Iterable[Any]) -> str:
    """`sha256_of` for parts that come one after the other; holds one."""
    found = hashlib.sha256()
    for part in parts:
        found.update(_bytes_of(part))
    return found.hexdigest()


def _bytes_of(part: Any) -> bytes:
    if isinstance(part, bytes):
        return part
    if isinstance(part, np.ndarray):
        return part.tobytes()
    return (part if isinstance(part, str) else json.dumps(part, sort_keys=True)).encode()
