"""benchmarks/loader.py on a small simulated atlas: a real child process, the columns of the file, and a check that can fail."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
pytestmark = pytest.mark.filterwarnings("ignore")  # the peers' warnings are not ours to fix


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load_module(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load_module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the 2,000 cells are made once."""
    return tmp_path_factory.mktemp("feeds") / "data"


def run(load, folder: Path, out: Path, *cases: str, rounds: int = 1) -> tuple[int, dict]:
    arguments = [
        "--data",
        str(folder),
        "--cells",
        "2000",
        "--genes",
        "200",
        "--batch-cells",
        "256",
        "--layouts",
        "dense",
        "--step-ms",
        "0",
    ]
    arguments += ["--rounds", str(rounds), "--seconds", "0.2", "--out", str(out), "--cases", *cases]
    code = load("loader").main(arguments)
    return code, json.loads(out.read_text())


@pytest.mark.slow
def test_row_has_every_column_and_its_batches_are_right(load, folder, tmp_path, capsys):
    code, held = run(load, folder, tmp_path / "loader.json", "scipy")
    assert code == 0
    (row,) = held["summary"]
    assert {name for name in held["columns"] if row[name] is None} == {
        "speed_ratio",
        "cpu_ratio",
    }  # no annbatch to divide by
    assert (row["cells"], row["checked_rows"]) == (2000, 4000)
    assert row["lowest"] <= row["cells_per_s"] <= row["best"]
    assert row["baseline_bytes"] < row["peak_bytes"]
    assert row["pair_recurrence"] == pytest.approx(1, abs=0.05)  # two permutations of 2,000 cells
    assert row["dataset_mixing"] == pytest.approx(1, abs=0.02)  # 256 cells show ten shares a little unevenly
    assert held["data"]["seconds"].keys() == load("feeds.data").PARTS.keys()
    assert held["environments"][0]["versions"]["numpy"] == np.__version__
    printed = capsys.readouterr().out
    assert f"{row['cells_per_s']:,.0f}" in printed.split("Shuffled batches")[1]
    text = json.dumps(held) + printed
    assert str(tmp_path.parent) not in text
    assert sys.prefix not in text


@pytest.mark.slow
def test_wrong_truth_fails_the_check_and_stays_a_row(load, folder, tmp_path):
    load("feeds.data").prepare(folder, 2000, 200, print)
    path = folder / "truth.npz"
    whole = path.read_bytes()
    with np.load(path) as held:
        arrays = dict(held)
    arrays["checksum"][7] += 1e-3
    np.savez(path, **arrays)
    try:
        code, held = run(load, folder, tmp_path / "loader.json", "scipy")
    finally:
        path.write_bytes(whole)
    assert code == 1
    (row,) = held["summary"]
    assert row["error"] == "check failed: 2 of 4000 rows are not what their cell is"


@pytest.mark.slow
def test_every_case_of_ours_is_right(load, folder, tmp_path):
    cases = ("store_fast", "store_small", "store_cached", "zarr", "h5ad", "memory")
    code, held = run(load, folder, tmp_path / "loader.json", *cases)
    assert code == 0, [row.get("error") for row in held["summary"]]
    assert [row["checked_rows"] for row in held["summary"]] == [4000] * len(cases)


def test_peer_that_is_missing_is_a_row(load, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(load("feeds.peers").AnnBatch, "modules", ("no_such_module",))
    code, held = run(load, folder, tmp_path / "loader.json", "annbatch")
    assert code == 0
    assert [row["error"] for row in held["summary"]] == ["not installed: no_such_module"]


def test_pairs_that_stay_together_are_found(load):
    recurrence = load("feeds.measure").recurrence
    batch = np.repeat(np.arange(10), 10)
    assert recurrence(batch, batch) == pytest.approx(99 / 9)  # always, over the chance of 9 in 99
    assert recurrence(batch, np.tile(np.arange(10), 10)) == 0
    assert recurrence(batch, np.full(100, -1)) is None


def test_ratio_is_taken_round_by_round(load):
    shared = {"cells": 1, "genes": 1, "is_cold": False, "batch_cells": 1, "layout": "dense", "step_ms": 0.0}
    common = {**dict.fromkeys(load("loader").MEDIANS, 1.0), **shared, "settings": {}}
    ours = [{**common, "case": "ours", "round": n, "cells_per_s": speed} for n, speed in enumerate((20.0, 8.0, 30.0))]
    peer = [
        {**common, "case": "annbatch", "round": n, "cells_per_s": speed} for n, speed in enumerate((10.0, 2.0, 10.0))
    ]
    row = next(row for row in load("loader").summarise(ours + peer) if row["case"] == "ours")
    assert row["speed_ratio"] == 3
    assert (row["best"], row["lowest"]) == (30, 8)


def test_bars_are_judged_from_the_rows() -> None:
    from feeds import bars

    shared = {"batch_cells": 4096, "layout": "dense", "is_cold": False, "pair_recurrence": 1.1, "baseline_bytes": 1}
    rows = [
        {**shared, "case": case, "step_ms": step, "cells_per_s": speed, "cpu_us_per_cell": cpu, "peak_bytes": 9}
        for case, step, speed, cpu in (
            ("store_fast", 0.0, 600.0, 1.0),
            ("annbatch", 0.0, 100.0, 4.0),
            ("scdataset", 0.0, 50.0, 4.0),
            ("store_fast", 20.0, 100_000.0, 1.0),
        )
    ]
    found = {bar["what"]: bar for bar in bars.judge(rows, [])}
    assert found["cells/s of store_fast over annbatch"]["value"] == 6.0
    assert found["cells/s of store_fast over annbatch"]["is_met"]
    assert found["CPU per cell of store_fast over annbatch"]["is_met"]
    assert not found["cells/s of store_fast over scDataset"]["is_met"]
    assert not found["share of the ceiling of a trainer that takes 20 ms"]["is_met"]
    assert not any("AnnLoader" in what for what in found)
