"""What ranks send one another: tensors, arrays and plain data, as bytes that run nothing when they are read.

A text of JSON says how things are nested; the numbers of tensors and arrays follow as they lie in memory. Floats come back to the
last bit, and so do types, shapes, tuples, keys that are numbers, and the order in which an array lies.
"""

from __future__ import annotations

import json
import math
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Bytes = NDArray[np.uint8]

MAX_TEXT_BYTES = 1 << 24
"""Of the JSON: names and single numbers. What has many numbers is a tensor or an array."""
MAX_BYTES = 1 << 36
"""Of all: more than a rank could hold."""
_ALIGN = 16
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    )
}
_ARRAY_DTYPES = frozenset(
    np.dtype(name).str for name in ("?", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8")
)
_Scalar = (bool, int, float, str, type(None))


def pack(value: Any) -> Tensor:
    """Make bytes of plain data.

    Parameters
    ----------
    value
        Numbers, text, None, tensors, arrays of numbers, and lists, tuples and dicts of them.

    Returns
    -------
    Tensor
        (n,) uint8, on the CPU.

    Raises
    ------
    TypeError
        If anything else is in it.
    ValueError
        If it is too large.
    """
    parts: list[Bytes] = []
    text = np.frombuffer(json.dumps(_described(value, parts, [0])).encode(), np.uint8)
    if len(text) > MAX_TEXT_BYTES:
        raise ValueError(f"plain data of {len(text)} bytes is more than ranks send one another ({MAX_TEXT_BYTES})")
    head = np.array([len(text)], "<u8").view(np.uint8)
    pieces = [piece for part in (np.concatenate([head, text]), *parts) for piece in (part, _padding(len(part)))]
    return torch.from_numpy(np.concatenate(pieces))


def _padding(n_bytes: int) -> Bytes:
    return np.zeros(-n_bytes % _ALIGN, np.uint8)


def _described(value: Any, parts: list[Bytes], end: list[int]) -> Any:
    """Describe a value in JSON; what its tensors and arrays hold goes into `parts`, which end at `end`."""
    if type(value) in _Scalar:
        return value
    if isinstance(value, str):  # numpy's
        return str(value)
    if isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous().reshape(-1)
        name = str(value.dtype).removeprefix("torch.")
        if name not in _DTYPES:
            raise TypeError(f"ranks send one another no tensors of {value.dtype}")
        return ["tensor", name, list(value.shape), _placed(flat.view(torch.uint8).numpy(), parts, end)]
    if isinstance(value, np.generic):
        return ["scalar", _described(np.asarray(value), parts, end)]
    if isinstance(value, np.ndarray):
        if value.dtype.str not in _ARRAY_DTYPES:
            raise TypeError(f"ranks send one another no arrays of {value.dtype}")
        order: Literal["C", "F"] = "F" if value.flags.f_contiguous and not value.flags.c_contiguous else "C"
        content = value.ravel(order).view(np.uint8)
        return ["array", value.dtype.str, list(value.shape), _placed(content, parts, end), order]
    if type(value) in (list, tuple):
        return [type(value).__name__, *(_described(item, parts, end) for item in value)]
    if isinstance(value, dict):
        if not all(type(key) in _Scalar for key in value):
            raise TypeError("ranks send one another no dicts with keys other than text and numbers")
        return ["dict", *([key, _described(item, parts, end)] for key, item in value.items())]
    raise TypeError(f"ranks send one another plain data, and no {type(value).__name__}")


def _placed(content: Bytes, parts: list[Bytes], end: list[int]) -> int:
    start = end[0]
    parts.append(content)
    end[0] += len(content) + -len(content) % _ALIGN
    return start


def unpack(packed: Tensor) -> Any:
    """Read what `pack` has made.

    Parameters
    ----------
    packed
        (n,) uint8.

    Returns
    -------
    Any
        As it was sent; tensors on the CPU.

    Raises
    ------
    ValueError
        If these are no such bytes.
    """
    content = packed.cpu().numpy()
    if len(content) < 8:
        raise ValueError("what another rank sent is too short")
    n_text = int(content[:8].view("<u8")[0])
    if n_text > min(MAX_TEXT_BYTES, len(content) - 8):
        raise ValueError("what another rank sent is longer than it says")
    start = 8 + n_text + -(8 + n_text) % _ALIGN
    try:
        return _made(json.loads(content[8 : 8 + n_text].tobytes()), content[start:])
    except (TypeError, KeyError, IndexError, RecursionError) as error:
        raise ValueError(f"what another rank sent cannot be read ({type(error).__name__})") from error


def _made(found: Any, content: Bytes) -> Any:
    """Make a value of its description."""
    if not isinstance(found, list):
        if type(found) not in _Scalar:
            raise ValueError("what another rank sent is no plain data")
        return found
    kind, *rest = found
    if kind in ("list", "tuple"):
        return (
            [_made(item, content) for item in rest] if kind == "list" else tuple(_made(item, content) for item in rest)
        )
    if kind == "scalar":
        return _made(rest[0], content)[()]
    if kind == "dict":
        return {key: _made(item, content) for key, item in rest}
    if kind == "tensor":
        name, shape, start = rest
        piece = _piece(content, shape, start, _DTYPES[name].itemsize)
        empty = torch.empty(shape, dtype=_DTYPES[name])
        return torch.from_numpy(piece).view(_DTYPES[name]).reshape(shape) if empty.numel() else empty
    if kind == "array":
        name, shape, start, order = rest
        if name not in _ARRAY_DTYPES:
            raise ValueError("what another rank sent is no array of numbers")
        return _piece(content, shape, start, np.dtype(name).itemsize).view(name).reshape(shape, order=order)
    raise ValueError("what another rank sent is of no known kind")


def _piece(content: Bytes, shape: list[int], start: int, item_bytes: int) -> Bytes:
    """Copy the bytes of one tensor."""
    if not all(type(size) is int and size >= 0 for size in [start, *shape]):
        raise ValueError("what another rank sent has no such shape")
    n_bytes = math.prod(shape) * item_bytes
    if start + n_bytes > len(content):
        raise ValueError("what another rank sent is shorter than it says")
    return content[start : start + n_bytes].copy()
