from __future__ import annotations

import contextlib
import errno
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from scamac_scale.durable.atomic import atomic_folder, check_output, partial_folder, writing
from scamac_scale.durable.locks import lock_file
from scamac_scale.errors import OutputError
from scamac_scale.store.reader import StoreReader
from tests.support.failing import failures
from tests.support.stores import Written, counts, write

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scipy import sparse


ROOT = Path(__file__).parents[2]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def failing(raw: sparse.csr_matrix, error: BaseException) -> Iterator[sparse.csr_matrix]:
    yield raw[:60]
    raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("a bad block"), OSError(errno.EIO, "bad sector")])
def test_nothing_is_left_behind_by_a_failure(tmp_path: Path, error: BaseException) -> None:
    raw = counts(100, 8)
    with pytest.raises(type(error)) as raised:
        write(tmp_path / "a.zarr", raw, blocks=failing(raw, error), chunk_values=16)
    assert raised.value is error  # an error of the input is not blamed on the output
    assert names(tmp_path) == []


def test_failure_leaves_the_store_that_was_to_be_replaced(tmp_path: Path) -> None:
    first = write(tmp_path / "a.zarr", counts(50, 8))
    raw = counts(100, 8, seed=1)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a.zarr", raw, blocks=failing(raw, KeyboardInterrupt()), overwrite=True)
    assert names(tmp_path) == ["a.zarr"]
    assert StoreReader(first.path).n_cells == 50


def test_overwrite_replaces_a_store_in_whole(tmp_path: Path) -> None:
    write(tmp_path / "a.zarr", counts(300, 8), chunk_values=16)
    (tmp_path / "a.zarr" / "stray").write_text("of the old store")
    write(tmp_path / "a.zarr", counts(50, 8, seed=1), overwrite=True)
    assert names(tmp_path) == ["a.zarr"]
    assert StoreReader(tmp_path / "a.zarr").n_cells == 50
    assert not (tmp_path / "a.zarr" / "stray").exists()


def test_existing_output_is_refused_before_any_work(tmp_path: Path) -> None:
    raw = counts(50, 8)
    write(tmp_path / "a.zarr", raw)
    blocks = iter([raw])
    with pytest.raises(OutputError, match=r"a\.zarr is already there; remove it"):
        write(tmp_path / "a.zarr", raw, blocks=blocks)
    assert next(blocks) is raw


def test_only_zarr_folders_are_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "final.docx").write_text("years of work")
    (tmp_path / "notes.txt").write_text("more")
    for name in ("thesis", "notes.txt"):
        with pytest.raises(OutputError, match=r"holds no zarr\.json|Not a directory"):
            write(tmp_path / name, counts(50, 8), overwrite=True)
    assert (tmp_path / "thesis" / "final.docx").exists()


def test_link_is_replaced_and_not_what_it_leads_to(tmp_path: Path) -> None:
    write(tmp_path / "a.zarr", counts(50, 8))
    (tmp_path / "b.zarr").symlink_to(tmp_path / "a.zarr")
    write(tmp_path / "b.zarr", counts(60, 8), overwrite=True)
    assert names(tmp_path) == ["a.zarr", "b.zarr"]
    assert StoreReader(tmp_path / "a.zarr").n_cells == 50
    assert StoreReader(tmp_path / "b.zarr").n_cells == 60


def test_output_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    def work() -> None:
        with atomic_folder(tmp_path / "a") as folder:
            (folder / "mine").write_text("1")
            (tmp_path / "a").mkdir()
            (tmp_path / "a" / "theirs").write_text("2")

    with pytest.raises(OutputError, match="appeared in the meantime"):
        work()
    assert names(tmp_path / "a") == ["theirs"]
    assert names(tmp_path) == ["a"]


def test_missing_folder_above_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=f"there is no folder {tmp_path / 'no'}; make it first"):
        check_output(tmp_path / "no" / "a.zarr")


def test_file_above_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is not a folder"):
        check_output(tmp_path / "file" / "a.zarr")
    with pytest.raises(OutputError):
        check_output(tmp_path / "file" / "deeper" / "a.zarr")


def test_folder_that_is_not_writable_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    nobody = 65534
    is_root = os.geteuid() == 0
    try:
        if is_root:
            os.seteuid(nobody)
        with pytest.raises(OutputError, match=r"not writable|may not write") as raised:
            write(tmp_path / "a.zarr", counts(50, 8))
    finally:
        if is_root:
            os.seteuid(0)
        tmp_path.chmod(0o755)
    assert raised.value.exit_code == 4
    assert names(tmp_path) == []


def test_full_disk_is_said_and_nothing_is_left_behind(tmp_path: Path) -> None:
    mount = shutil.which("mount")
    disk = tmp_path / "disk"
    disk.mkdir()
    if not mount or subprocess.run([mount, "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], check=False).returncode:
        pytest.skip("a small disk can only be mounted by root")
    try:
        raw = counts(4000, 100)
        with pytest.raises(OutputError, match=r"No space left on device; free some space") as raised:
            write(disk / "a.zarr", raw, chunk_values=4096)
        assert raised.value.errno == errno.ENOSPC
        assert names(disk) == []
    finally:
        subprocess.run(["umount", disk], check=True)


INTERRUPTED = """
import signal
import sys
from pathlib import Path
from tests.support.stores import counts, write
raw = counts(20000, 50)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
print("ready", flush=True)
while True:
    write(Path(sys.argv[1]), raw, chunk_values=1000, block_cells=500, overwrite=True)
    print("written", flush=True)
"""


@pytest.mark.slow
def test_interrupt_at_any_time_leaves_a_whole_store_or_none(tmp_path: Path) -> None:
    command = [sys.executable, "-c", INTERRUPTED, tmp_path / "a.zarr"]
    for wait_s in (0.05, 0.3):
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(wait_s)
            errors = interrupted(process)
        assert "\nKeyboardInterrupt\n" in errors  # Python may warn of a coroutine of zarr behind it
        assert names(tmp_path) in ([], ["a.zarr"])
    if names(tmp_path):
        assert StoreReader(tmp_path / "a.zarr").n_cells == 20000


def interrupted(process: subprocess.Popen[str]) -> str:
    """Interrupt until it ends: Python drops an exception that is raised in a callback, such as one of an import, and goes on."""
    while True:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=20)[1]


def test_rest_of_a_killed_run_is_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (partial_folder(tmp_path / "a.zarr") / "new" / "deep").mkdir(parents=True)
    lock_file(tmp_path / "a.zarr").write_text('{"host": "gone"}')
    with caplog.at_level(logging.INFO):
        write(tmp_path / "a.zarr", counts(20, 4))
    assert "what a stopped run has left is removed" in caplog.text
    assert names(tmp_path) == ["a.zarr"]
    assert "deep" not in names(tmp_path / "a.zarr")


def test_a_second_writer_is_refused_and_does_no_harm(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "a") as folder:
        (folder / "mine").write_text("1")
        with pytest.raises(OutputError, match=f"being written by another job: host .*, pid {os.getpid()}, since 20"):
            write(tmp_path / "a", counts(20, 4))
    assert names(tmp_path / "a") == ["mine"]
    assert names(tmp_path) == ["a"]


def test_a_writer_that_resumes_finds_what_was_kept(tmp_path: Path) -> None:
    def work(error: BaseException | None, *, resumes: bool = True) -> None:
        with atomic_folder(tmp_path / "a", resumes=resumes, keeps_on=(KeyboardInterrupt,)) as folder:
            with (folder / "lines").open("a") as file:
                file.write("x")
            (folder.parent / "journal").touch()
            if error is not None:
                raise error

    with pytest.raises(KeyboardInterrupt):
        work(KeyboardInterrupt())
    assert names(tmp_path) == [".a.partial"]
    work(None)
    assert (tmp_path / "a" / "lines").read_text() == "xx"
    assert names(tmp_path / "a") == ["lines"]
    assert names(tmp_path) == ["a"]
    shutil.rmtree(tmp_path / "a")
    for error in (KeyboardInterrupt(), ValueError()):
        with pytest.raises(type(error)):
            work(error)
    assert names(tmp_path) == []  # any other error removes it
    with pytest.raises(KeyboardInterrupt):
        work(KeyboardInterrupt())
    work(None, resumes=False)
    assert (tmp_path / "a" / "lines").read_text() == "x"


@pytest.mark.parametrize("name", ["atlas.h5ad", "atlas.H5AD", "atlas.loom"])
def test_a_folder_is_not_named_like_a_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match=r"would be a folder.*atlas\.zarr"), atomic_folder(tmp_path / name):
        pass
    assert names(tmp_path) == []


@pytest.mark.parametrize("can_exchange", [True, False])
def test_overwriting_works_with_and_without_the_exchange_of_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
) -> None:
    if not can_exchange:
        monkeypatch.setattr("scamac_scale.durable.atomic._exchange", lambda first, second: False)
    for content in ("1", "2"):
        with atomic_folder(tmp_path / "a", overwrite=True, marker="file") as folder:
            (folder / "file").write_text(content)
    assert (tmp_path / "a" / "file").read_text() == "2"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("is_lasting", [False, True])
@pytest.mark.parametrize("can_exchange", [True, False])
@pytest.mark.parametrize("is_old_there", [False, True])
def test_an_error_leaves_what_was_there_whatever_call_fails(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    is_old_there: bool,
    can_exchange: bool,
    is_lasting: bool,
) -> None:
    if not can_exchange:
        monkeypatch.setattr("scamac_scale.durable.atomic._exchange", lambda first, second: False)
    monkeypatch.setattr("scamac_scale.durable.atomic._REMOVE_WAIT_S", 0.0)
    home = tmp_path / "home"
    out = home / "a"

    def prepare() -> None:
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir()
        if is_old_there:
            put("old")

    def put(content: str) -> None:
        with atomic_folder(out, overwrite=True, marker="file") as folder, writing(out):
            (folder / "file").write_text(content)

    prepare()
    for state, error in failures(lambda: put("new"), home, errno.EIO, is_lasting=is_lasting):
        expected = "new" if error is None else "old" if is_old_there else ""
        if expected == "old" and not out.exists():  # the first of two renames went well, and nothing after it
            assert is_lasting
            assert not can_exchange
            with pytest.raises(OutputError, match="already there"), atomic_folder(out):
                pass
        assert error is None or isinstance(error, OutputError), state.failed
        assert names(home) == (["a"] if expected else []), state.failed
        assert not expected or (out / "file").read_text() == expected, state.failed
        prepare()
    assert "does not confirm its name" in caplog.text


def test_an_output_whose_writer_was_killed_between_two_renames_is_put_back(tmp_path: Path) -> None:
    old = partial_folder(tmp_path / "a.zarr") / "old"
    old.parent.mkdir()
    write(old, counts(50, 8))
    with pytest.raises(OutputError, match="already there"):
        write(tmp_path / "a.zarr", counts(20, 4))
    assert StoreReader(tmp_path / "a.zarr").n_cells == 50
    assert names(tmp_path) == ["a.zarr"]


FILE_TOO_LARGE = """
import resource, sys
from pathlib import Path
from scamac_scale.errors import OutputError
from tests.support.stores import counts, write
raw = counts(2000, 100)
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, resource.RLIM_INFINITY))
try:
    write(Path(sys.argv[1]), raw, chunk_values=32768)
except OutputError as error:
    print(error)
"""


@pytest.mark.slow
def test_limit_on_file_sizes_is_said_and_nothing_is_left_behind(tmp_path: Path) -> None:
    assert hasattr(resource, "RLIMIT_FSIZE")
    done = subprocess.run(
        [sys.executable, "-c", FILE_TOO_LARGE, tmp_path / "a.zarr"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "a.zarr cannot be written: File too large" in done.stdout, done.stderr
    assert names(tmp_path) == []


def test_store_is_readable_by_others_like_any_new_folder(tmp_path: Path) -> None:
    stored: Written = write(tmp_path / "a.zarr", counts(20, 4))
    (tmp_path / "plain").mkdir()
    assert stored.path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert np.all(StoreReader(stored.path).read(np.arange(20)).data > 0)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that takes no files")
def test_a_folder_that_takes_no_files_is_refused_before_the_work() -> None:
    with pytest.raises(OutputError, match="/proc takes no files"):
        check_output("/proc/x.zarr")
