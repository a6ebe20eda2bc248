"""A page about a run and its result: what was done, what came out, and what looks wrong.

`scamac_scale.report` is the function of the public face, too: Python puts this package in its place once a part of it is
imported, so the package can be called, and does what the function does.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Any:  # Any: as of the function
        """Write a report; see `scamac_scale.api.report`."""
        import scamac_scale

        return scamac_scale.__getattr__("report")(*args, **options)


sys.modules[__name__].__class__ = _Callable
