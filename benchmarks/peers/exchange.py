"""How a script of this folder gets its work and gives its result: two .npz files and one line of settings.

    PEER_PYTHON benchmarks/peers/run_X.py IN.npz OUT.npz '{"seed": 0}'

The result has the arrays of the script and ``about``: JSON with seconds, CPU seconds, peak bytes and versions.
"""

from __future__ import annotations

import json
import platform
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))
from record import measure

if TYPE_CHECKING:
    from collections.abc import Callable

Arrays = dict[str, Any]
Work = "Callable[[Arrays, dict[str, Any]], Arrays]"


def serve(
    packages: tuple[str, ...],
    prepare: Callable[[Arrays, dict[str, Any]], Any],
    work: Callable[[Any, dict[str, Any]], Arrays],
) -> None:
    """Do one piece of work.

    Parameters
    ----------
    packages
        Whose versions to tell.
    prepare
        (arrays, settings) to what `work` takes: imports, warming up, other forms of the arrays; not timed.
    work
        To the arrays of the result; timed. A key ``about`` adds to what is told.
    """
    warnings.simplefilter("ignore")
    source, target, settings = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    with np.load(source, allow_pickle=False) as loaded:
        arrays = dict(loaded)
    prepared = prepare(arrays, settings)
    with measure() as cost:
        found = work(prepared, settings)
    about = {
        **found.pop("about", {}),
        "seconds": cost.seconds,
        "cpu_seconds": cost.cpu_seconds,
        "peak_bytes": cost.peak_bytes,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }
    np.savez(target, about=np.array(json.dumps(about)), **found)
