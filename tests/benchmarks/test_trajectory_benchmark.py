"""benchmarks/trajectory.py on a small simulated course: the score against its definition, the root, and one real fit."""

import importlib
import itertools
import json
from pathlib import Path
from types import ModuleType

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
ORDER = ("day2", "day10", "day30")


@pytest.fixture
def trajectory(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("trajectory")


def test_perfect_order_scores_one_and_the_reverse_minus_one(trajectory: ModuleType) -> None:
    stages = np.repeat([0, 1, 2, 3], [5, 20, 1, 9])
    time = stages + np.random.default_rng(0).random(stages.size)  # any order within a stage
    assert trajectory.ordering_score(time, stages) == 1
    assert trajectory.ordering_score(-time, stages) == -1


def test_random_orders_score_near_zero(trajectory: ModuleType) -> None:
    stages, rng = np.repeat(np.arange(5), 400), np.random.default_rng(0)
    scores = [trajectory.ordering_score(rng.random(stages.size), stages) for _ in range(100)]
    assert abs(np.mean(scores)) < 0.01  # one has a standard deviation of 0.023, the mean of 0.0023
    assert max(map(abs, scores)) < 0.1


def test_score_is_the_sum_over_ordered_pairs(trajectory: ModuleType) -> None:
    rng = np.random.default_rng(0)
    stages, time = rng.integers(0, 4, 30), rng.integers(0, 10, 30).astype(float)
    time[:4] = np.inf
    total = best = 0
    for i, j in itertools.permutations(range(30), 2):
        total += (stages[j] - stages[i]) * (time[i] < time[j])  # tied pairs add nothing
        best += max(0, stages[j] - stages[i])
    assert trajectory.ordering_score(time, stages) == pytest.approx(total / best)


def test_cells_without_a_pseudotime_are_counted_and_last(trajectory: ModuleType) -> None:
    stages = np.array([0, 0, 1, 1, 2, 2])
    found = trajectory.order_scores(np.array([0.0, 0.1, 0.2, 0.3, np.inf, np.nan]), stages)
    assert (found["n_unreached"], found["pos"]) == (2, 1.0)
    misplaced = trajectory.order_scores(np.array([np.inf, 0.1, 0.2, 0.3, 0.4, 0.5]), stages)
    assert misplaced["n_unreached"] == 1
    assert misplaced["pos"] < 1
    assert misplaced["kendall"] < 1


def test_root_is_the_middle_of_the_given_rows(trajectory: ModuleType) -> None:
    points = np.array([[0.0], [1.0], [10.0], [0.9], [0.9]])
    assert trajectory.medoid(points, np.array([0, 1, 2])) == 1


def test_stages_that_the_table_lacks_are_refused(trajectory: ModuleType) -> None:
    column = pd.Series(["day10", "day2", "day30"])
    assert trajectory.stage_ranks(column, ORDER).tolist() == [1, 0, 2]
    with pytest.raises(SystemExit, match="day30"):
        trajectory.stage_ranks(column, ORDER[:2])


@pytest.fixture
def course(tmp_path: Path) -> Path:
    """Folder with 150 cells along one course of 100 genes, each of which peaks at a time of its own, as h5ad."""
    rng = np.random.default_rng(0)
    time = np.sort(rng.random(150))
    rates = 0.2 + 20 * np.exp(-(((time[:, None] - np.linspace(0, 1, 100)) / 0.2) ** 2))
    obs = pd.DataFrame({"day": pd.Categorical(np.repeat(ORDER, 50))}, index=[f"cell{row}" for row in range(150)])
    counts = sparse.csr_matrix(rng.poisson(rates).astype(np.float32))
    (tmp_path / "data").mkdir()
    anndata.AnnData(counts, obs=obs).write_h5ad(tmp_path / "data" / "course.h5ad")
    return tmp_path


def test_a_spanning_tree_joins_a_graph_that_fell_apart_and_no_more(trajectory: ModuleType) -> None:
    points = np.array([[0.0], [1.0], [2.0], [10.0], [11.0], [12.0]])
    edges = ([0, 1, 3, 4, 0], [1, 2, 4, 5, 2])
    half = sparse.csr_matrix(([0.9, 0.8, 0.7, 0.6, 0.5], edges), shape=(6, 6))
    weights = sparse.csr_matrix(half + half.T)
    assert not trajectory.is_connected(weights)
    joined = trajectory.with_tree(weights, points)
    assert trajectory.is_connected(joined)
    added = (joined - weights).tocoo()
    assert {tuple(edge) for edge in np.transpose(added.coords)} == {(2, 3), (3, 2)}
    assert added.data.tolist() == [0.5, 0.5]


def run(trajectory: ModuleType, course: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> dict:
    monkeypatch.setitem(trajectory.STAGES, "course", trajectory.Stages("day", ORDER))
    out = course / "trajectory.json"
    trajectory.main(["--data", str(course / "data"), "--sets", "course", "--seeds", "1", "--out", str(out), *more])
    return json.loads(out.read_text())


@pytest.mark.slow
def test_all_representations_are_scored_by_the_same_rule(
    trajectory: ModuleType, course: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def distance(points: np.ndarray, root: int, graph: str, seed: int) -> tuple[np.ndarray, int]:
        # scanpy would compile for ten seconds
        return np.where(np.arange(len(points)) == 149, np.inf, np.linalg.norm(points - points[root], axis=1)), 15

    monkeypatch.setattr(trajectory, "diffusion_pseudotime", distance)
    held = run(trajectory, course, monkeypatch)
    runs = {row["method"]: row for row in held["runs"]}
    assert runs.keys() == trajectory.TITLES.keys()
    assert [row["n_unreached"] for row in held["runs"]] == [1] * 12  # four representations, three graphs
    assert all(row["root"] < 50 and row["pos"] > 0.5 for row in held["runs"])
    assert held["sets"]["course"]["stages"] == dict.fromkeys(ORDER, 50)
    printed = capsys.readouterr().out
    assert "placed last" in printed
    assert str(course) not in json.dumps(held) + printed


@pytest.mark.slow  # scanpy compiles its neighbour graph in every process
def test_clear_course_is_followed_by_diffusion_pseudotime(
    trajectory: ModuleType, course: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = run(trajectory, course, monkeypatch, "--methods", "pca32")["runs"]
    assert {row["graph"] for row in runs} == trajectory.GRAPH_TITLES.keys()
    assert all(row["pos"] > 0.95 and row["n_unreached"] == 0 for row in runs)
