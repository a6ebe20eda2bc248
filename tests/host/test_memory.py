import errno
import os
import resource
from typing import Any

import pytest
import torch

from scamac_scale.cli.commands import COMMANDS, Command
from scamac_scale.cli.main import main
from scamac_scale.errors import InputError, LockedError, MemoryLimitError, NumericalError
from scamac_scale.host.memory import TO_LOWER, explained, readvised, shortage


def chained(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "out of memory: "),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "out of memory: "),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), "out of memory: "),
        (RuntimeError("std::bad_alloc"), "out of memory: "),
        (ImportError("libx.so: failed to map segment from shared object"), "out of memory: "),
        (torch.OutOfMemoryError("CUDA out of memory."), "out of memory on the GPU"),
        (RuntimeError("can't start new thread"), "no further thread can be started"),
        (BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)), "no further thread can be started"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "ulimit -n"),
        (chained(InputError("cannot be read"), MemoryError()), "out of memory: "),
        (chained(InputError("is damaged"), RuntimeError("can't start new thread")), "no further thread can be started"),
        (chained(RuntimeError("x"), chained(InputError("y"), OSError(errno.EMFILE, "z"))), "ulimit -n"),
    ],
)
def test_what_runs_out_is_told(error: Exception, words: str) -> None:
    found = shortage(error)
    assert words in str(found)
    with pytest.raises(MemoryLimitError, match="block_cells"):
        explained("ingest")(raised)(error)


def raised(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    "error",
    [
        ValueError("out of memory"),
        InputError("gene 'not enough memory'"),
        NumericalError("nan"),
        OSError(errno.EIO, "x"),
        chained(LockedError("is being written"), BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))),
        chained(InputError("cannot be locked"), OSError(errno.EAGAIN, "unable to lock file")),
    ],
)
def test_other_errors_are_what_they_were(error: Exception) -> None:
    assert shortage(error) is None
    with pytest.raises(type(error)) as caught:
        explained("ingest")(raised)(error)
    assert caught.value is error


def test_what_has_been_said_is_not_said_again() -> None:
    assert shortage(chained(MemoryLimitError("said"), MemoryError())) is None


def test_the_advice_is_that_of_the_command_that_was_typed() -> None:
    with pytest.raises(MemoryLimitError) as caught:
        explained("inspect")(raised)(MemoryError())
    assert "--verify" in str(caught.value)
    again = str(readvised(caught.value, "ingest"))
    assert "--verify" not in again
    assert "ingest.block_cells" in again


def test_every_command_has_advice() -> None:
    assert set(TO_LOWER) == set(COMMANDS)


@pytest.mark.parametrize("rank", [0, 1])
def test_each_rank_says_that_it_has_run_out(
    rank: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(args: Any) -> dict[str, Any]:
        raise MemoryError

    monkeypatch.setitem(COMMANDS, "train", Command(summary="x", usage="", declare=lambda parser: None, run=run))
    for name, value in {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    assert main(["train"]) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: out of memory" if rank == 0 else "error: rank 1: out of memory")
    assert "train.batch_cells" in text


@pytest.mark.parametrize("is_limited", [True, False])
def test_compiled_code_that_says_nothing_has_run_out_of_memory_where_it_is_limited(
    is_limited: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 2**33 if is_limited else resource.RLIM_INFINITY
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    found = shortage(SystemError("error return without exception set"))
    assert (found is not None) == is_limited
