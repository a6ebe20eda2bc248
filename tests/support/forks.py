"""What a forked process gets."""

from __future__ import annotations

import os
import traceback
from typing import Any


def in_a_fork(use: Any) -> str:
    """What a forked process gets when it uses something of its parent: the last line of the error, or nothing."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            use()
        except BaseException:  # noqa: BLE001  told to the parent
            os.write(writer, traceback.format_exc().splitlines()[-1].encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as file:
        return file.read()
