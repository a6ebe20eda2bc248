"""Where address space is limited, every end is one sentence; real processes."""

import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command_line import QUICK

START = """
import os, resource, signal, sys, threading, time
resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
from scamac_scale.cli import main as home
from scamac_scale.host import watched
watched.END_S = 0.3
home._answer = lambda arguments, **options: {answer}
sys.exit(home.main(["ingest"]))
"""
LIMITS = [300, 1000, 1350]
"""MB: too few for the imports, for threads, for the work."""


def start(answer: str) -> "subprocess.Popen[str]":
    code = START.format(answer=answer)
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        ("0", 0, ""),
        ("75", 75, ""),
        ("os.abort()", 2, "out of memory: the process ended by SIGABRT"),
        ("os._exit(127)", 2, "out of memory: the process ended with 127"),
        ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM, ""),
        ("threading.Thread(target=time.sleep, args=(60,)).start() or 2", 2, ""),
        ("threading.Thread(target=time.sleep, args=(60,)).start() or 0", 0, ""),
    ],
)
@pytest.mark.slow
def test_the_process_that_watches_tells_how_the_other_has_ended(answer: str, code: int, words: str) -> None:
    with start(answer) as process:
        text = process.communicate(timeout=50)[1]
    assert process.returncode == code
    assert words in text
    assert not words or "ingest.block_cells" in text


def test_signals_reach_the_process_that_works() -> None:
    answer = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(33)) and 0 or print('on', flush=True) or time.sleep(60)"
    with start(answer) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "on\n"
        process.terminate()
        process.communicate(timeout=50)
    assert process.returncode == 2  # it ended without telling a code


@pytest.mark.slow  # two ranks from the start
def test_ranks_start_under_a_limit_too(tiny_atlas: Path, tmp_path: Path) -> None:
    command = ["train", "--store", str(tiny_atlas), "--run", str(tmp_path / "run"), "--devices", "2", "--quiet", *QUICK]
    done = limited(command, 2**16)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow  # ten starts of the whole program
def test_each_command_with_too_little_memory_says_what_to_lower(tiny_atlas: Path, tmp_path: Path) -> None:
    store, run, out = (str(tmp_path / name) for name in ("store", "run", "out.zarr"))
    commands = {
        "--genes": ["simulate", "--cells", "300", "--out", str(tmp_path / "atlas.zarr")],
        "block_cells": ["ingest", str(tiny_atlas), "--out", store],
        "window_bytes": ["train", "--store", store, "--run", run, *QUICK],
        "--denoised": ["predict", "--run", run, "--input", store, "--out", out],
        "--label": ["evaluate", out, "--label", "cell_type"],
        "--verify": ["inspect", store, "--verify"],
    }
    made = {"simulate": "atlas.zarr", "ingest": "store", "train": "run", "predict": "out.zarr"}
    for words, command in commands.items():
        for limit in [*LIMITS, None]:
            if command[0] in made:  # it may have been written, and memory ended as it was told of
                shutil.rmtree(tmp_path / made[command[0]], ignore_errors=True)
            done = limited(command, limit)
            assert done.returncode in ((0, 2) if limit else (0,)), (command, limit, done.stderr)
            if done.returncode == 0:
                break
            line = next(line for line in done.stderr.splitlines() if line.startswith("error: "))
            assert line.startswith("error: out of memory"), (command, limit)
            assert words in line


def limited(command: list[str], megabytes: int | None) -> "subprocess.CompletedProcess[str]":
    def limit() -> None:
        if megabytes:
            resource.setrlimit(resource.RLIMIT_AS, (megabytes * 2**20, megabytes * 2**20))

    argv = [sys.executable, "-m", "scamac_scale", *command]
    return subprocess.run(argv, preexec_fn=limit, capture_output=True, text=True, check=False, timeout=120)
