"""Stands in for srun: starts the tasks of a step on this machine, each with the variables that it has there.

Slurm itself gives SLURM_NTASKS and SLURM_NTASKS_PER_NODE to the batch script; machines are made up. The exit code is the highest of the
tasks, 128 and more for signals, as srun has it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import dropwhile
from pathlib import Path


def main() -> int:
    """Run the command behind the options in all tasks."""
    own = [argument for argument in sys.argv[1:] if argument.startswith("--")]
    command = list(dropwhile(lambda argument: argument.startswith("--"), sys.argv[1:]))
    n_tasks, n_per_node = int(os.environ["SLURM_NTASKS"]), int(os.environ["SLURM_NTASKS_PER_NODE"])
    n_nodes = n_tasks // n_per_node
    step = {
        "SLURM_STEP_ID": "0",
        "SLURM_STEPID": "0",
        "SLURM_STEP_NODELIST": os.environ["SLURM_JOB_NODELIST"],
        "SLURM_STEP_NUM_NODES": str(n_nodes),
        "SLURM_STEP_NUM_TASKS": str(n_tasks),
        "SLURM_STEP_TASKS_PER_NODE": f"{n_per_node}(x{n_nodes})",
    }
    tasks = []
    for rank in range(n_tasks):
        node, local = divmod(rank, n_per_node)
        place = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(local), "SLURM_NODEID": str(node)}
        tasks.append(subprocess.Popen(command, env={**os.environ, **step, **place}))
    record = Path(os.environ["SRUN_RECORD"])
    partial = record.with_suffix(".partial")
    partial.write_text(json.dumps({"options": own, "pids": [task.pid for task in tasks]}))
    partial.rename(record)
    codes = [task.wait() for task in tasks]
    return max(128 - code if code < 0 else code for code in codes)


if __name__ == "__main__":
    sys.exit(main())
