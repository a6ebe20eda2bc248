"""A run folder that is damaged, or of a stranger: sound checkpoints are used, and nothing outside of it is opened."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import shutil
import signal
import zipfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from scamac_scale import ScAMAC, inspect
from scamac_scale.durable.differences import plain
from scamac_scale.durable.plain import SEAL, sealed
from scamac_scale.errors import ConfigError, InputError, OutputError, ScamacError, StoppedError, StoreError
from scamac_scale.train import stepper
from scamac_scale.train.run.checkpoints import VERSION
from scamac_scale.train.run.report import read_report
from tests.support.failing import contents
from tests.support.settings import QUICK

if TYPE_CHECKING:
    from collections.abc import Callable

    import anndata as ad

OFTEN = replace(QUICK, train=replace(QUICK.train, checkpoint_every_steps=5))


@pytest.fixture(scope="module")
def finished(_tiny_adata: ad.AnnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("finished") / "run"
    ScAMAC(config=OFTEN).fit(_tiny_adata.copy(), run=run)
    return run


@pytest.fixture(scope="module")
def stopped(_tiny_adata: ad.AnnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run that got a signal in its first round: two checkpoints."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    n_reached = itertools.count(1)

    def reach(point: str) -> None:
        if point == "train.step" and next(n_reached) == 13:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(stepper, "reach", reach)
        with pytest.raises(StoppedError):
            ScAMAC(config=OFTEN).fit(_tiny_adata.copy(), run=run)
    assert len(list((run / "checkpoints").glob("*.pt"))) == 2
    return run


def copied(run: Path, folder: Path) -> Path:
    return Path(shutil.copytree(run, folder / "run"))


def go_on(run: Path, data: ad.AnnData) -> None:
    ScAMAC(config=OFTEN).fit(data, run=run, resume=True)


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def spoil(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


# ---------------------------------------------------------------------- damage that keeps nobody from going on


@pytest.mark.slow
def test_a_run_goes_on_whatever_has_become_of_its_metrics_and_reports(
    finished: Path, stopped: Path, tmp_path: Path, tiny_adata: ad.AnnData, caplog: pytest.LogCaptureFixture
) -> None:
    run = copied(stopped, tmp_path)
    spoil(run / "metrics.csv", b"0.", b"\xb0.")
    (run / "run.json").write_text("[" * 10**5)
    shutil.rmtree(run / "tensorboard")
    damaged = {name: (run / name).read_bytes() for name in ("run.json", "metrics.csv")}
    with pytest.raises(InputError, match=r"run\.json is damaged"):
        inspect(run)
    go_on(run, tiny_adata)
    for name, content in damaged.items():
        assert f"{name} is damaged" in caplog.text
        assert f"{name}.damaged" in caplog.text
        assert (run / f"{name}.damaged").read_bytes() == content
    assert weights(run) == weights(finished)
    assert "config.yaml, metrics.csv, model/model.json, 2 checkpoints" in inspect(run, verify=True)["verified"]


TABLES: dict[str, Callable[[bytes], bytes]] = {
    "a word for a number": lambda content: content.replace(b"0.", b"no", 1),
    "a null byte": lambda content: content[:-20] + b"\0" + content[-19:],
    "no step": lambda content: content.replace(b"step", b"stop"),
    "a column twice": lambda content: content.replace(b"step", b"step,step"),
    "a cell more": lambda content: content.replace(b"\r\n", b"\r\n1,", 2),
    "a line without end": lambda content: content + b"1" * 10**6,
    "a quote that stays open": lambda content: content.replace(b"\r\n", b'\r\n"', 1),
    "an empty file": lambda content: b"",
}


@pytest.mark.parametrize("name", TABLES)
def test_a_damaged_table_is_set_aside_and_told_of(
    name: str, stopped: Path, tmp_path: Path, tiny_adata: ad.AnnData, caplog: pytest.LogCaptureFixture
) -> None:
    run = copied(stopped, tmp_path)
    table = run / "metrics.csv"
    table.write_bytes(content := TABLES[name](table.read_bytes()))
    with pytest.raises(InputError, match=r"metrics\.csv is damaged"):
        inspect(run)
    with pytest.raises(ConfigError, match="other cells or genes"):  # so that it ends before it begins
        go_on(run, tiny_adata[:250].copy())
    if name != "a line without end":  # it lies beyond the rows that a checkpoint knows
        assert "metrics.csv is damaged after" in caplog.text
        assert (run / "metrics.csv.damaged").read_bytes() == content


@pytest.mark.parametrize("what", ["lost", "of before seals", "flipped"])
def test_a_finished_run_is_known_by_its_model_where_its_report_is_not_to_be_believed(
    what: str, finished: Path, tmp_path: Path, tiny_adata: ad.AnnData, caplog: pytest.LogCaptureFixture
) -> None:
    run = copied(finished, tmp_path)
    report = run / "run.json"
    before = read_report(run)
    if what == "lost":
        report.unlink()
    elif what == "flipped":
        spoil(report, b'"finished": true', b'"finished": trud')
    else:
        content = json.loads(report.read_text())
        del content[SEAL]
        report.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="other cells"):
        go_on(run, tiny_adata[:250].copy())
    assert not read_report(run)
    go_on(run, tiny_adata)
    assert "it is written again, by what the model says" in caplog.text
    again = read_report(run)
    assert {name: again[name] for name in ("finished", "cells_digest", "n_cells", "steps", "files")} == {
        name: before[name] for name in ("finished", "cells_digest", "n_cells", "steps", "files")
    }
    assert weights(run) == weights(finished)
    assert inspect(run, verify=True)["is_finished"]


def test_a_model_that_is_damaged_is_no_finished_run(finished: Path, tmp_path: Path, tiny_adata: ad.AnnData) -> None:
    run = copied(finished, tmp_path)
    spoil(run / "model" / "model.safetensors", weights(run)[-4:], b"oops")
    before = contents(run)
    for look in (lambda: go_on(run, tiny_adata), lambda: inspect(run), lambda: ScAMAC.load(run / "model")):
        with pytest.raises(InputError, match=r"model\.safetensors is damaged: it is not what was written"):
            look()
    assert contents(run) == before


@pytest.mark.parametrize("name", ["config.yaml", "metrics.csv", "run.json", "model/model.json", "checkpoints"])
def test_verify_finds_a_flipped_bit_in_every_file_of_a_finished_run(name: str, finished: Path, tmp_path: Path) -> None:
    run = copied(finished, tmp_path)
    path = run / name if name != "checkpoints" else max((run / name).glob("*.pt"))
    content = bytearray(path.read_bytes())
    for at in range(7, 8 * len(content), 8 * len(content) // 12):
        content[at // 8] ^= 1 << at % 8
        path.write_bytes(content)
        with pytest.raises((InputError, StoreError), match=path.name):
            inspect(run, verify=True)
        content[at // 8] ^= 1 << at % 8
    path.write_bytes(content)
    inspect(run, verify=True)


# ---------------------------------------------------------------------- a folder of a stranger


def take(kind: str, path: Path) -> None:
    """Put a pipe, or a link to something outside, in the place of a file or folder."""
    if path.is_dir():
        path.rename(path.parents[1] / "outside")
    else:
        content = path.read_bytes() if path.exists() else b"precious"
        (path.parents[1] / "outside").write_bytes(content)
        path.unlink(missing_ok=True)
    os.mkfifo(path) if kind == "pipe" else path.symlink_to(path.parents[1] / "outside")


@pytest.mark.parametrize("kind", ["pipe", "link"])
@pytest.mark.parametrize(
    "name",
    ["config.yaml", "metrics.csv", "run.json", "checkpoints", "tensorboard", ".lock", ".metrics.csv.partial", "codes"],
)
def test_no_link_is_followed_and_no_pipe_opened(
    kind: str, name: str, stopped: Path, tmp_path: Path, tiny_adata: ad.AnnData
) -> None:
    run = copied(stopped, tmp_path)
    path = run / "checkpoints" / name if name == "codes" else run / name
    take(kind, path)
    outside = path.parents[1] / "outside"
    held = contents(outside) if outside.is_dir() else outside.read_bytes()
    for look in (lambda: go_on(run, tiny_adata), lambda: inspect(run)):
        with pytest.raises(InputError, match=rf"{name} is (a link|a named pipe)"):
            look()
    assert held == (contents(outside) if outside.is_dir() else outside.read_bytes())


@pytest.mark.parametrize("name", ["model", "model/model.json", "model/model.safetensors"])
def test_the_model_of_a_run_lies_in_it(name: str, finished: Path, tmp_path: Path, tiny_adata: ad.AnnData) -> None:
    run = copied(finished, tmp_path)
    (run / name).rename(tmp_path / "outside")
    (run / name).symlink_to(tmp_path / "outside")
    for look in (lambda: go_on(run, tiny_adata), lambda: inspect(run), lambda: ScAMAC.load(run / "model")):
        with pytest.raises(InputError, match="is a link"):
            look()


def test_a_file_of_somebody_else_in_a_run_is_no_matter(stopped: Path, tmp_path: Path) -> None:
    run = copied(stopped, tmp_path)
    (run / "data").symlink_to("/nowhere")
    os.mkfifo(run / "notes")
    assert inspect(run)["is_finished"] is False


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran",)


def nested(depth: int) -> Any:
    found: Any = 0
    for _ in range(depth):
        found = [found]
    return found


def circle() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


def written(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def packed(content: bytes) -> bytes:
    """The same zip, its parts compressed: a few bytes may then stand for very many."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    return buffer.getvalue()


GOOD = {
    "version": VERSION,
    "config": plain(asdict(OFTEN)),
    "data": "",
    "n_logged": 0,
    "state": {"step": 5},
    "in_flight": None,
}
CRAFTED: dict[str, bytes] = {
    "nothing": b"",
    "no zip": b"\x80\x02]q\x00.",
    "code": written({**GOOD, "state": Code()}),
    "a list": written([1]),
    "depth": written({**GOOD, "state": nested(100)}),
    "a circle": written({**GOOD, "state": circle()}),
    "a view of one number": written({**GOOD, "x": torch.zeros(1).expand(2**40)}),
    "a tensor of no memory": written({**GOOD, "x": torch.empty(2**50, device="meta")}),
    "a sparse tensor": written({**GOOD, "x": torch.eye(3).to_sparse()}),
    "a parameter": written({**GOOD, "x": torch.nn.Parameter(torch.zeros(3))}),
    "complex numbers": written({**GOOD, "x": torch.zeros(3, dtype=torch.complex64)}),
    "a number beyond all": written({**GOOD, "n_logged": 10**40}),
    "packed zeros": packed(written({**GOOD, "x": torch.zeros(10**6)})),
    "no parts": written({"version": VERSION}),
    "rows that are text": written({**GOOD, "n_logged": "3"}),
    "rows below none": written({**GOOD, "n_logged": -3}),
    "a state that is a list": written({**GOOD, "state": []}),
    "steps that are text": written({**GOOD, "state": {"step": "5"}}),
    "settings that are a list": written({**GOOD, "config": [1]}),
    "other settings": written({**GOOD, "config": {"seed": "x"}}),
    "another version": written({**GOOD, "version": [3]}),
}


def put(run: Path, content: bytes, number: int = 999999) -> Path:
    """Give a checkpoint the name that its content asks for."""
    path = run / "checkpoints" / f"{number}-step-5-{hashlib.sha256(content).hexdigest()[:16]}.pt"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", CRAFTED)
def test_a_crafted_checkpoint_is_refused_by_its_name(
    name: str, stopped: Path, tmp_path: Path, tiny_adata: ad.AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = copied(stopped, tmp_path)
    for path in (run / "checkpoints").glob("*.pt"):
        path.unlink()
    path = put(run, CRAFTED[name])
    with pytest.raises(ScamacError, match=f"{path.name}|other settings") as raised:
        go_on(run, tiny_adata)
    assert raised.value.exit_code == 2
    assert not isinstance(raised.value, OutputError)
    assert not (tmp_path / "ran").exists()


def change(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def do(saved: dict[str, Any]) -> None:
        inner = saved
        *path, last = name.split("/")
        for key in path:
            inner = inner[key]
        inner[last] = value

    return do


@pytest.mark.parametrize(
    "damage",
    [
        change("state/stage", "no such stage"),
        change("state/stage", 3),
        change("state/phase", -1),
        change("state/phase_step", True),
        change("state/weights", {"layers": "heavy"}),
        change("state/times", []),
        change("state/network", {}),
        change("state/network/gene_mean", torch.zeros(3)),
        change("state/network/correction.axes", torch.zeros(2, 2)),
        change("state/optimizers", {"phase 7": [{}, 3]}),
        change("state/landmarks", 5),
        change("state/landmarks", [torch.tensor([10**9]), torch.tensor([0])]),
        change("state/clusters", [1, 2]),
        change("state/target", {"kind": "consensus"}),
        change("state/pairs", [torch.zeros(2)] * 9),
        lambda saved: saved["state"].pop("pairs_step"),
    ],
)
def test_a_state_that_was_changed_is_refused(
    damage: Callable[[dict[str, Any]], None], stopped: Path, tmp_path: Path, tiny_adata: ad.AnnData
) -> None:
    run = copied(stopped, tmp_path)
    newest = max((run / "checkpoints").glob("*.pt"))
    saved = torch.load(newest, weights_only=True)
    damage(saved)
    put(run, written(saved))
    with pytest.raises(ScamacError) as raised:
        go_on(run, tiny_adata)
    assert raised.value.exit_code == 2


def test_a_report_of_other_types_is_refused(finished: Path, tmp_path: Path) -> None:
    run = copied(finished, tmp_path)
    report = read_report(run)
    for name, value in (("n_cells", "many"), ("seconds_by_part", []), ("versions", None), ("steps", 1.5)):
        (run / "run.json").write_text(sealed({**report, name: value}))
        with pytest.raises(InputError, match=rf"run\.json has a \w+ as {name}"):
            inspect(run)
