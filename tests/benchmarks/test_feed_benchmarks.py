import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.slow
def test_training_from_disk_is_compared_with_memory(tmp_path: Path) -> None:
    import train_feed

    train_feed.main(
        ["--cells", "700", "--genes", "100", "--rounds", "1", "--batch-cells", "128", "--out", str(tmp_path / "a.json")]
    )
    found = json.loads((tmp_path / "a.json").read_text())
    assert set(found["cases"]) == {"memory", "store, fast", "store, small", "network alone"}
    assert found["cases"]["memory"]["ratio_median"] == 1.0
    assert all(case["seconds_median"] > 0 for case in found["cases"].values())


@pytest.mark.slow  # each epoch has a process of its own
def test_memory_and_bytes_of_ranks_are_told(tmp_path: Path) -> None:
    import feed_memory

    sizes = ["--cells", "60000", "80000", "--genes", "100", "--values", "50", "--ranks", "2"]
    feed_memory.main(["--folder", str(tmp_path), *sizes, "--out", str(tmp_path / "a.json")])
    found = json.loads((tmp_path / "a.json").read_text())
    assert [run["delivered_cells"] for run in found["runs"]] == [60_000, 30_000, 30_000, 80_000]
    # half of the cells; but a chunk holds 655 here, more than a run, so many are looked at by both ranks
    assert 0.5 < found["read_share_of_a_rank"] < 0.9
    assert all(run["peak_bytes"] >= run["feed_bytes"] > 0 for run in found["runs"])


def test_codecs_are_compared(tmp_path: Path) -> None:
    import compression

    compression.main(["--cells", "600", "--genes", "400", "--rounds", "1", "--out", str(tmp_path / "a.json")])
    found = json.loads((tmp_path / "a.json").read_text())["codecs"]
    assert found.keys() == compression.CODECS.keys()
    assert all(0 < row["share_of_bytes"] < 1 and row["decode_us_per_cell"] > 0 for row in found.values())
