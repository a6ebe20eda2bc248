"""Progress of the functions of the Python API: one process of a job reports it, unless `show_progress` has said otherwise."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from scamac_scale.progress import reported
from scamac_scale.ranks.place import is_first

if TYPE_CHECKING:
    from collections.abc import Callable

Given = ParamSpec("Given")
Found = TypeVar("Found")


def reports(function: Callable[Given, Found]) -> Callable[Given, Found]:
    """Let a function that takes a while report how far it is, on standard error."""

    @wraps(function)
    def reporting(*args: Given.args, **options: Given.kwargs) -> Found:
        if not is_first():
            return function(*args, **options)
        with reported():
            return function(*args, **options)

    return reporting
