"""The one way to compile a kernel: with its machine code kept where there is a safe place, and without elsewhere."""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numba

from scamac_scale.host.places import REMEDY, code_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger(__name__)

_LOCK = threading.RLock()  # a library may import kernels of ours
_SAID: set[str] = set()
"""What a person knows already."""


def _say(reason: str) -> None:
    """Say why machine code is not kept, once for all kernels."""
    if not _SAID:
        logger.info("compiled code is not kept, so that each start takes some seconds more (%s); %s", reason, REMEDY)
    _SAID.add(reason)


def compiled(function: Any) -> Any:  # Any: numba's kernels are not typed
    """Compile a function by numba when it is called, without the interpreter's lock.

    Parameters
    ----------
    function
        Of arrays and numbers alone.

    Returns
    -------
    Any
        The kernel. Its machine code is kept in `code_folder`; where there is none, or numba cannot use it, each process compiles.
    """
    folder = code_folder()
    if folder is not None:
        try:
            kernel = _kept(function, folder)
        except (RuntimeError, OSError) as error:  # numba's "no locator available"
            _say(str(error))
        else:
            if kernel is not None:
                return kernel
            _say("numba keeps it elsewhere")
    return numba.njit(nogil=True)(function)


@contextmanager
def kept_for_libraries() -> Iterator[None]:
    """Import a library with kernels of its own, such as umap, which keep their machine code where ours do.

    Such a library cannot be imported at all where numba finds no folder that it can write, as for a user without a home on a root
    that is read-only.
    """
    folder = code_folder()
    settings: Any = numba.config
    with _LOCK:
        before = settings.CACHE_DIR
        settings.CACHE_DIR = str(folder) if folder is not None else before
        try:
            yield
        finally:
            settings.CACHE_DIR = before


def _kept(function: Any, folder: Path) -> Any:  # Any: as of `compiled`
    """Make a kernel that is kept in a folder; None where numba would keep it elsewhere."""
    settings: Any = numba.config
    with _LOCK:
        before = settings.CACHE_DIR
        settings.CACHE_DIR = str(folder)  # numba looks here once, when a kernel is made
        try:
            kernel: Any = numba.njit(nogil=True, cache=True)(function)  # Any: its cache has no public way in
        finally:
            settings.CACHE_DIR = before
    cache = getattr(kernel, "_cache", None)
    if cache is None:  # NUMBA_DISABLE_JIT leaves the function as it is
        return kernel
    if not Path(cache.cache_path or "/").is_relative_to(folder):
        return None
    kernel._cache = _Forgiving(cache)
    return kernel


class _Forgiving:
    """A cache of numba whose damage, full disk or loss means compiling again, and nothing worse."""

    def __init__(self, cache: Any) -> None:  # Any: numba's
        self._cache = cache

    def load_overload(self, signature: Any, context: Any) -> Any:  # Any: numba's
        try:
            return self._cache.load_overload(signature, context)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001  a damaged pickle raises anything
            logger.info(
                "compiled code that was kept cannot be read (%s: %s); it is made anew", type(error).__name__, error
            )
            self._try(self._cache.flush)
            return None

    def save_overload(self, signature: Any, data: Any) -> None:  # Any: numba's
        self._try(self._cache.save_overload, signature, data)

    def _try(self, work: Any, *arguments: Any) -> None:  # Any: numba's
        try:
            work(*arguments)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001  no room, no permission, a damaged index
            _say(f"{type(error).__name__}: {error}")
            self._cache.disable()

    def __getattr__(self, name: str) -> Any:  # Any: numba's
        return getattr(self._cache, name)
