import io
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from scamac_scale.host.outlet import Outlet, drawing, outlets

PROGRAM = [sys.executable, "-m", "scamac_scale"]


class Failing(io.StringIO):
    """A stream whose disk is full, or whose reader has gone."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self._error = error

    def write(self, text: str) -> int:
        raise self._error


def test_text_is_escaped_and_drawings_are_not() -> None:
    stream = io.StringIO()
    outlet = Outlet(stream)
    print("a\x1b\n\x9b", file=outlet)
    drawing(outlet).write("\x1b[1m")  # type: ignore[arg-type]
    assert stream.getvalue() == "a\\x1b\n\\x9b\n\x1b[1m"
    assert drawing(sys.__stderr__) is sys.__stderr__  # type: ignore[arg-type]


def test_a_full_disk_is_remembered_and_a_reader_who_has_gone_is_not() -> None:
    full, gone, closed = Outlet(Failing(OSError(28, "full"))), Outlet(Failing(BrokenPipeError())), Outlet(None)
    for outlet in (full, gone, closed):
        print("text", file=outlet)
        outlet.flush()
        assert not outlet.isatty()
    assert full.error is not None
    assert gone.error is closed.error is None


def test_a_full_disk_under_a_drawing_is_remembered_too() -> None:
    outlet = Outlet(Failing(OSError(28, "full")))
    print("text", file=drawing(outlet))  # type: ignore[arg-type]
    assert outlet.error is not None


@pytest.mark.parametrize(("command", "code"), [("inspect", 4), ("work", 0)])
def test_a_table_that_is_lost_fails_only_a_command_whose_result_it_is(command: str, code: int) -> None:
    """Tables are drawn, unlike the version; where files were written, the loss is told and the work stays done."""
    program = (
        "import sys; from scamac_scale.cli.commands import COMMANDS, Command; from scamac_scale.cli.main import main\n"
        f"COMMANDS[{command!r}] = Command(summary='x', usage='', declare=lambda parser: None, run=lambda args: {{'cells': 3}})\n"
        f"sys.exit(main([{command!r}]))"
    )
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == code
    assert done.stderr.startswith(
        f"{'error' if code else 'warning'}: standard output cannot be written: No space left on device"
    )
    assert ("the work itself is done" in done.stderr) == (code == 0)


def test_an_encoding_without_the_letters_gets_their_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(file, encoding="ascii"))
    with outlets():
        sys.stdout.write("Ψ遺\n")
    assert file.getvalue() == b"\\u03a8\\u907a\n"


def test_a_warning_is_one_line_without_commands(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr("scamac_scale.host.outlet._SHOWWARNING", warnings.showwarning)
        with outlets():
            warnings.warn("of \x1b\nerror: x", UserWarning, stacklevel=1)
    assert capsys.readouterr().err == "warning: of \\x1b\\nerror: x\n"


@pytest.mark.parametrize(
    ("redirection", "code"),
    [
        (">&-", 0),
        ("2>&-", 0),
        ("<&- >&- 2>&-", 0),
        ("| true; exit ${PIPESTATUS[0]}", 0),
        ("> /dev/full", 4),
        ("2> /dev/full", 0),
    ],
)
def test_finished_work_keeps_its_exit_code(redirection: str, code: int) -> None:
    command = f"{' '.join(PROGRAM)} --version {redirection}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert ("cannot be written: No space" in done.stderr) == (code == 4)
    assert "Traceback" not in done.stderr


def test_a_closed_output_is_not_taken_for_a_file_that_is_opened(tmp_path: Path) -> None:
    code = f"from scamac_scale.host.outlet import outlets\nwith outlets():\n open({str(tmp_path / 'f')!r}, 'w').fileno() > 2 or 1/0"
    done = subprocess.run(["bash", "-c", f'{sys.executable} -c "$0" <&- >&- 2>&-', code], check=False)
    assert done.returncode == 0
    assert os.path.exists(tmp_path / "f")
