"""benchmarks/gpu.py on the CPU with tiny sizes: all of it runs, and what goes wrong is told."""

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
TRIAL = ["--device", "cpu", "--small"]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("gpu")


def rows_of(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())["runs"]


@pytest.mark.slow
def test_every_part_runs_to_its_end_on_the_cpu(gpu: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    assert gpu.main([*TRIAL, "--out", str(out)]) == 0
    rows = rows_of(out)
    assert {row["part"] for row in rows} == set(gpu.SHARES)
    assert not [row for row in rows if "error" in row or "skipped" in row]
    assert {row["verdict"] for row in rows if row["part"] == "parity"} == {"PASS"}
    bf16 = [row for row in rows if row["case"] == "step, bf16" and row["measure"] in ("latent", "gradient")]
    assert all(0 < row["median"] < row["tolerance"] for row in bf16)  # so the two sides do differ
    timed = [row for row in rows if row["unit"] in ("ms", "s", "cells/s")]
    assert all(0 < row["lowest"] <= row["median"] <= row["highest"] for row in timed)
    memory = [row for row in rows if row["part"] == "memory"]
    assert all(row["peak_device_bytes"] is None and row["peak_host_bytes"] > 0 for row in memory)
    assert json.loads(out.read_text())["environments"][0]["device"]["kind"] == "cpu"


def test_a_case_that_raises_is_a_row_and_the_others_still_run(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(importlib.import_module("gpu_parts"), "DeviceCells", fail)
    out = tmp_path / "gpu.json"
    assert gpu.main([*TRIAL, "--parts", "feed", "--out", str(out)]) == 1
    errors = {row["case"]: row.get("error") for row in rows_of(out)}
    assert errors.pop("device cache") == "RuntimeError: no such kernel"
    assert len(errors) == 5
    assert set(errors.values()) == {None}


@pytest.mark.slow
def test_numbers_beyond_the_tolerance_fail(gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(importlib.import_module("gpu_parity").TOLERANCES, "bf16", 1e-9)
    out = tmp_path / "gpu.json"
    assert gpu.main([*TRIAL, "--parts", "parity", "--out", str(out)]) == 1
    failed = {row["case"] for row in rows_of(out) if row["verdict"] == "FAIL"}
    assert failed == {"step, bf16"}


def test_what_does_not_fit_the_budget_is_skipped_and_said_to_be(gpu: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    assert gpu.main([*TRIAL, "--budget-s", "0", "--parts", "sweep", "parity", "--out", str(out)]) == 0
    rows = rows_of(out)
    assert {row["part"] for row in rows} == {"sweep", "parity"}
    assert all(row["skipped"] for row in rows)
