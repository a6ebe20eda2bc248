"""Out of memory in a fit, told with the settings to lower."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scamac_scale.host.memory import memory_explained

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from scamac_scale.config import LoaderConfig


def fit_explained(loader: LoaderConfig) -> AbstractContextManager[None]:
    """Turn every way of running out of memory inside into one error; see `memory_explained`."""
    advice = ", or set loader.cache to host or none" if loader.cache == "device" else ""
    return memory_explained("train", gpu=f"lower train.batch_cells{advice}")
