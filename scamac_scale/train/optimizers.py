"""The optimizers of the phases, as torch has them, but for what they prepare for `torch.compile`."""

from __future__ import annotations

import inspect
from functools import partial
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable


def uncompiled(optimizer: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    """Take the decorators for `torch.compile` off an optimizer, and nothing else.

    Parameters
    ----------
    optimizer
        A class of `torch.optim`.

    Returns
    -------
    Callable
        A class of the same name. Its steps have the same bits.

    Notes
    -----
    The decorators import the compiler, which takes two seconds or more, in order to tell it what not to compile. Nothing here is
    compiled. They also switch gradients off, which `no_grad` does here.
    """
    names = ("step", "zero_grad", "add_param_group", "state_dict", "load_state_dict")
    plain = {name: inspect.unwrap(getattr(optimizer, name)) for name in names}
    return type(optimizer.__name__, (optimizer,), {**plain, "step": torch.no_grad()(plain["step"])})


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": partial(uncompiled(torch.optim.AdamW), fused=True),
    "adam": partial(uncompiled(torch.optim.Adam), fused=True),
    "sgd": partial(uncompiled(torch.optim.SGD), fused=True),
}
"""Called with parameters and ``lr``. Fused: one kernel for all weights, where a small network would wait for hundreds."""
