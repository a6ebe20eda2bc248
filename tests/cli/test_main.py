import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scamac_scale import __version__
from scamac_scale.cli.commands import COMMANDS, Command
from scamac_scale.cli.main import main
from scamac_scale.errors import NumericalError

Install = Callable[[Callable[[Any], dict[str, Any]]], None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Add a command ``work --run RUN`` that does what the test says."""

    def add(run: Callable[[Any], dict[str, Any]]) -> None:
        def declare(parser: Any) -> None:
            parser.add_argument("--run", type=str, default=None)

        monkeypatch.setitem(COMMANDS, "work", Command(summary="Work.", usage="", declare=declare, run=run))

    return add


def raiser(error: BaseException) -> Callable[[Any], dict[str, Any]]:
    def run(args: Any) -> dict[str, Any]:
        raise error

    return run


HEAVY = ("torch", "lightning", "scanpy", "anndata", "zarr", "numpy", "numba", "pandas", "h5py", "sklearn")
HELP = f"""
import sys
from scamac_scale.cli.main import main
assert main(["--help"]) == 0 and main(["--version"]) == 0
for command in {list(COMMANDS)}:
    assert main([command, "--help"]) == main([command, "--help-all"]) == 0, command
assert main(["train", "--print_config"]) == 0
print(sorted(set({HEAVY}) & set(sys.modules)))
"""


def test_help_and_print_config_import_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_option(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"usage: scamac-scale {command}" in text
    assert "\\x" not in text  # nothing that a terminal is not shown
    for option in ("--config", "--print_config", "--json", "--quiet", "--debug"):
        assert option in text


def test_help_of_train_comes_from_the_docs_of_the_config(capsys: pytest.CaptureFixture[str]) -> None:
    main(["train", "--help-all"])
    assert "Width D of the hidden layer and of the fused latent." in capsys.readouterr().out


@pytest.mark.parametrize("command", ["cluster", "train", "ingest"])
def test_a_short_help_leaves_out_the_settings_of_parts_and_says_so(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--help"]) == 0
    short = capsys.readouterr().out
    assert not re.search(r"^ {2}--\w+\.", short, flags=re.MULTILINE)
    assert f"scamac-scale {command} --help-all" in short
    assert main([command, "--help-all"]) == 0
    whole = capsys.readouterr().out
    assert set(re.findall(r"^ {2}(--[\w-]+)", short, flags=re.MULTILINE)) <= set(re.findall(r"--[\w-]+", whole))
    n_more = int(re.search(r"^(\d+) settings more", short, flags=re.MULTILINE)[1])
    assert len(set(re.findall(r"^ {2}(--[\w.]+\.\w+)", whole, flags=re.MULTILINE))) >= n_more > 15


def test_no_command_shows_the_commands_and_is_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    text = capsys.readouterr().out
    assert [name for name in COMMANDS if f"  {name} " not in text] == []


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"scamac-scale {__version__}\n"


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert "Did you mean 'train'?" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["scamac_scale", "scamac_scale.cli.main"])
def test_the_process_returns_the_exit_code(module: str) -> None:
    code = f"import sys; from {module} import *; from scamac_scale.cli.main import main; sys.exit(main(['trian']))"
    argv = ["-m", module, "trian"] if module == "scamac_scale" else ["-c", code]
    done = subprocess.run([sys.executable, *argv], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")


def test_a_bug_is_one_line_and_exit_code_1(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install(raiser(RuntimeError("two\nlines")))
    assert main(["work"]) == 1
    assert capsys.readouterr().err == "error: RuntimeError: two lines This is a bug; --debug shows where.\n"


def test_debug_shows_the_traceback(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install(raiser(RuntimeError("lost")))
    assert main(["work", "--debug"]) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT])
def test_an_output_that_fails_is_exit_code_4(number: int, install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install(raiser(OSError(number, os.strerror(number), "out.zarr")))
    assert main(["work"]) == 4
    assert capsys.readouterr().err == f"error: out.zarr: {os.strerror(number)}.\n"


def test_another_system_error_is_a_bug(install: Install) -> None:
    install(raiser(OSError(errno.EBADF, "bad descriptor")))
    assert main(["work"]) == 1


def test_our_errors_bring_their_exit_code(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install(raiser(NumericalError("the loss is nan")))
    assert main(["work"]) == 5
    assert capsys.readouterr().err == "error: the loss is nan\n"


def test_an_interrupt_without_checkpoint_is_exit_code_130(install: Install, tmp_path: Path) -> None:
    install(raiser(KeyboardInterrupt()))
    (tmp_path / "checkpoints").mkdir()
    assert main(["work"]) == 130
    assert main(["work", "--run", str(tmp_path)]) == 130


def test_an_interrupt_that_can_be_gone_on_from_is_exit_code_75(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(COMMANDS, "train", replace(COMMANDS["train"], run=raiser(KeyboardInterrupt())))
    assert main(["train", "--run", str(tmp_path), "--store", "STORE"]) == 75
    assert "--resume" in capsys.readouterr().err


def test_termination_unwinds_like_an_interrupt(install: Install) -> None:
    unwound = []

    def run(args: Any) -> dict[str, Any]:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)
        finally:
            unwound.append(True)
        return {}

    before = signal.getsignal(signal.SIGTERM)
    install(run)
    assert main(["work"]) == 130
    assert unwound == [True]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_reader_that_has_gone_is_no_error() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    argv = [sys.executable, "-m", "scamac_scale", "--help"]
    with os.fdopen(write_end, "w") as gone:
        done = subprocess.run(argv, stdout=gone, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_json_alone_stands_on_standard_output(
    pipeline: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scamac_scale.progress.SHORT_S", 0.0)
    assert main(["inspect", str(pipeline / "store.zarr"), "--verify", "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("{")
    assert captured.out.endswith("}\n")
    assert re.search(r"verify: ([0-9,]+)/\1 values", captured.err)


def test_quiet_prints_nothing(pipeline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(pipeline / "store.zarr"), "--verify", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_log_lines_go_to_standard_error(tiny_atlas: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ingest", str(tiny_atlas), "--out", str(tmp_path / "store.zarr")]) == 0
    captured = capsys.readouterr()
    assert "values taken as counts" in captured.err
    assert "values taken as counts" not in captured.out
