import contextlib
import io
import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def run(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    import scaling

    scaling.main([*arguments, "--rounds", "1", "--genes", "60", "--out", str(tmp_path / "scaling.json")])
    found: dict[str, Any] = json.loads((tmp_path / "scaling.json").read_text())
    return found


@pytest.mark.slow
def test_forms_of_the_similarity_agree_and_are_extrapolated_beyond_the_limits(tmp_path: Path) -> None:
    found = run(tmp_path, "--parts", "similarity", "--largest", "600", "--limit-bytes", "4e6")["similarity"]
    for name in ("value", "gradient", "batch, memberships", "batch, consensus"):
        assert found[name]["disagreement"] < 1e-4  # float32, and a value that is a difference of sums
        rows = {(row["form"], row["size"]): row for row in found[name]["rows"]}
        assert all(row["extrapolated"] or row["seconds"] > 0 for row in rows.values())
        assert set(rows) == {(form, size) for form in found[name]["laws"] for _, size in rows}
    rows = {(row["form"], row["size"]): row for row in found["value"]["rows"]}
    assert rows["gram", 300]["extrapolated"] is rows["gram", 600]["extrapolated"] is False
    assert found["value"]["laws"]["gram"]["seconds"]["fitted_to"] == [300, 600]


def test_a_form_that_grew_too_large_follows_its_law() -> None:
    import torch
    from scaling_parts import Limits, grow

    def make(size: int) -> dict[str, Any]:
        return {"line": lambda: torch.zeros(size * 1000), "square": lambda: torch.zeros(size, size)}

    found = grow([1000, 2000, 4000], make, {"line": 1, "square": 2}, Limits(1, 10.0, 40e6))
    rows = {(row["form"], row["size"]): row for row in found["rows"]}
    assert [rows["square", size]["extrapolated"] for size in (1000, 2000, 4000)] == [False, False, True]
    assert found["laws"]["square"]["extra_bytes"]["fitted_to"] == [1000, 2000]
    law = found["laws"]["square"]["extra_bytes"]
    assert rows["square", 4000]["extra_bytes"] == pytest.approx(law["factor"] * 4000 ** law["exponent"])
    assert rows["square", 2000]["extra_bytes"] == pytest.approx(
        16e6, rel=0.25
    )  # whole pages, the allocator's own, threads of the runner
    assert not rows["line", 4000]["extrapolated"]


def test_laws_are_those_of_the_larger_half() -> None:
    from scaling_parts import fit_law

    law = fit_law([1, 2, 4, 8, 16], [9.0, 9.0, 3.0 * 4**2, 3.0 * 8**2, 3.0 * 16**2])
    assert law["fitted_to"] == [4, 8, 16]
    assert law["exponent"] == pytest.approx(2.0)
    assert law["factor"] == pytest.approx(3.0)


def test_forms_of_attention_are_compared(tmp_path: Path) -> None:
    found = run(tmp_path, "--parts", "attention", "--largest", "1200")["attention"]
    assert found["disagreement"] < 1e-5  # float32
    assert {row["form"] for row in found["rows"]} == {"batch", "landmark", "atlas", "dense"}
    assert {row["size"] for row in found["rows"]} == {600, 1200}


def test_attention_over_keys_on_disk_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import scaling_parts

    monkeypatch.setattr(scaling_parts, "ATLAS_QUERIES", 500)
    found = run(tmp_path, "--parts", "atlas", "--largest", "20000", "--folder", str(tmp_path / "keys"))["atlas"]
    assert (found["n_keys"], found["n_queries"], found["disk_bytes_per_cell"]) == (20_000, 500, 1152)
    assert found["all_queries"]["seconds"] == pytest.approx(40 * found["seconds"])
    assert found["all_queries"]["extrapolated"]
    assert not list((tmp_path / "keys").iterdir())


def test_share_of_the_similarity_is_measured_inside_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import scaling

    monkeypatch.setattr(scaling, "draw", lambda found, path: False)
    law = {"exponent": 2.0, "factor": 1e-6}
    earlier = {"similarity": {"value": {"laws": {"direct": {"seconds": law}}}}}
    (tmp_path / "scaling.json").write_text(json.dumps(earlier))
    held = run(tmp_path, "--parts", "share", "--largest", "600", "--batch-cells", "128")
    assert held["similarity"] == earlier["similarity"]
    found = held["share"]
    assert set(found["targets"]) == {"none", "membership", "consensus"}
    for name in ("membership", "consensus"):
        row = found["targets"][name]
        assert 0 < row["inside_seconds"] < row["seconds"]
        assert row["is_within_bar"] == (row.get("share_with_table", row["share"]) < row["bar"])
    assert found["contingency"]["seconds"] > 0
    assert found["direct_form"]["seconds"] == pytest.approx(0.36)


def in_this_process(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
    import scaling

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        scaling.main(command[2:])
    return subprocess.CompletedProcess(command, 0, printed.getvalue())


def check_epochs(found: dict[str, Any]) -> None:
    runs = found["runs"]
    assert [(row["n_cells"], row["steps"]) for row in runs] == [(400, 4), (800, 7)]
    assert all(row["epoch_s"] > 0 and row["sweep_s"] > 0 and row["peak_bytes"] > 0 for row in runs)
    assert found["is_memory_within_bar"] == (runs[1]["peak_bytes"] <= found["memory_bar_bytes"])


@pytest.mark.slow
def test_epochs_and_sweeps_of_two_sizes_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import scaling_stores

    here = SimpleNamespace(run=in_this_process, PIPE=subprocess.PIPE)
    monkeypatch.setattr(scaling_stores, "subprocess", here)  # spares two imports of torch
    check_epochs(run(tmp_path, "--parts", "epochs", "--largest", "800", "--batch-cells", "128")["epochs"])
    assert (tmp_path / "scaling.png").stat().st_size > 0


@pytest.mark.slow
def test_each_size_of_the_epochs_has_a_process_of_its_own(tmp_path: Path) -> None:
    check_epochs(run(tmp_path, "--parts", "epochs", "--largest", "800", "--batch-cells", "128")["epochs"])
