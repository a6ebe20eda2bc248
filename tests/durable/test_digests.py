from __future__ import annotations

import hashlib

import numpy as np

from scamac_scale.durable.digests import sha256_of, sha256_of_all


def test_parts_count_by_their_bytes_one_behind_the_other() -> None:
    array = np.arange(6, dtype=np.int64).reshape(2, 3)
    whole = b"raw" + "µ".encode() + array.T.copy().tobytes() + b'{"a": 1, "b": [2, null]}'
    parts = b"raw", "µ", array.T, {"b": (2, None), "a": 1}
    assert sha256_of(*parts) == sha256_of_all(iter(parts)) == hashlib.sha256(whole).hexdigest()
    assert sha256_of("ab") == sha256_of("a", "b") != sha256_of("b", "a")
