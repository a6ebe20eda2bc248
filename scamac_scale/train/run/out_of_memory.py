"""Out of memory, told with the peak, the limit and the settings to lower."""

from __future__ import annotations

import os
import resource
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from scamac_scale.errors import MemoryLimitError
from scamac_scale.train.run.provenance import peak_memory_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scamac_scale.config import LoaderConfig

_CGROUP_FILES = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_CPU_WORDS = ("can't allocate memory", "not enough memory")
"""What torch says on the CPU, where it has no class for it."""


@contextmanager
def memory_explained(loader: LoaderConfig) -> Iterator[None]:
    """Turn every way of running out of memory inside into one error that says what to lower.

    Raises
    ------
    MemoryLimitError
        In place of the errors of torch, NumPy and Python. A process that the system kills for its memory cannot say anything.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        free, total = torch.cuda.mem_get_info()
        raise MemoryLimitError(
            f"out of memory on the GPU: {torch.cuda.max_memory_allocated():,} bytes at the peak, {total:,} in all, {free:,} free; lower "
            f"train.batch_cells{_device_advice(loader)}."
        ) from error
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(words in str(error) for words in _CPU_WORDS):
            raise
        raise MemoryLimitError(
            f"out of memory: {peak_memory_bytes():,} bytes at the peak of this process, {memory_limit_bytes():,} allowed; set "
            "loader.cache=none where the cells are kept in memory, or lower loader.window_bytes, loader.ahead, train.batch_cells or the number "
            "of processes on this machine."
        ) from error


def _device_advice(loader: LoaderConfig) -> str:
    return ", or set loader.cache to host or none" if loader.cache == "device" else ""


def memory_limit_bytes() -> int:
    """Bytes that this process may use: of the machine, its container, or its own limit, whichever is least."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in map(Path, _CGROUP_FILES):
        try:
            limits.append(int(path.read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    own, _ = resource.getrlimit(resource.RLIMIT_AS)
    if own != resource.RLIM_INFINITY:
        limits.append(own)
    return min(limits)
