"""What every op shares: shape checks and a way out of reduced precision. No equation lives here."""

from __future__ import annotations

import torch
from torch import Tensor

from scamac_scale.errors import ShapeError


def require_dims(tensor: Tensor, dims: int, what: str) -> None:
    """Check the number of dimensions.

    Parameters
    ----------
    tensor
        The tensor that came.
    dims
        The number of dimensions expected.
    what
        Name and shape letters for the message, such as ``z (B, D)``.

    Raises
    ------
    ShapeError
        If the number differs.
    """
    if tensor.ndim != dims:
        raise ShapeError(f"{what} came with shape {tuple(tensor.shape)}; expected {dims} dimensions: reshape it.")


def require_equal(first: int, second: int, what: str) -> None:
    """Check that two sizes agree.

    Parameters
    ----------
    first, second
        The sizes.
    what
        Which sizes, for the message, such as ``latent width of z and c``.

    Raises
    ------
    ShapeError
        If they differ.
    """
    if first != second:
        raise ShapeError(f"{what}: got {first} and {second}; they must be equal: check which tensors are passed.")


def upcast(tensor: Tensor) -> Tensor:
    """Half precision to float32; float32 and float64 as they are.

    Parameters
    ----------
    tensor
        Any floating-point tensor.

    Returns
    -------
    Tensor
        Same shape, float32 or float64; the same object where nothing was to do. Gradients pass.
    """
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def full_precision(tensor: Tensor) -> torch.autocast:
    """Switch autocast off, so that sums over cells and small distances keep their digits.

    Parameters
    ----------
    tensor
        Any tensor on the device in question.

    Returns
    -------
    torch.autocast
        A context manager; inputs still in half precision must pass `upcast` inside.
    """
    return torch.autocast(tensor.device.type, enabled=False)
