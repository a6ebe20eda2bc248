"""What becomes of one mutant: the commands that meet it, and whether that was right.

Right is a refusal with exit code 2, 4 or 5 and a message, or a result that is what anndata reads from the mutant and, where
something was lost, what the undamaged subject gives.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import random
import shutil
import time
import warnings
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import zarr
from anndata.io import read_elem
from anndata.utils import make_index_unique
from scipy import sparse

from scamac_scale import ScAMAC
from scamac_scale.cli.main import main
from tests.fuzz.subjects import CELLS, CHANGES, INGEST, INPUTS, MANIFEST
from tests.support.machine import forget_peak, peak_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fuzz.mutations import Change

REFUSALS = (2, 4, 5)
MOST_BYTES = 2 * 2**30


@dataclass
class Verdict:
    """What was done to a subject and what came of it; `problem` is empty where that is right."""

    subject: str
    seed: int
    what: str
    codes: tuple[int, ...]
    problem: str
    message: str
    seconds: float
    peak_bytes: int

    def plain(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return asdict(self)


class _Cells(NamedTuple):
    """What a reader finds."""

    values: np.ndarray
    genes: pd.Index
    obs: pd.DataFrame


class Judge:
    """Mutates copies of the subjects in a folder and judges what the program does with them.

    Parameters
    ----------
    subjects
        Folder that `subjects.build` has filled.
    work
        Folder for the mutants; emptied after each.
    """

    def __init__(self, subjects: Path, work: Path) -> None:
        self.subjects, self.work = subjects, work
        self._right: dict[str, Any] = {}

    def judge(self, subject: str, seed: int) -> Verdict:
        """Make a mutant, run what meets it, and say whether that was right."""
        mutant, change = self._mutate(subject, random.Random(f"{subject} {seed}"))
        right = self._undamaged(subject)
        forget_peak()
        begin_s = time.monotonic()
        run = _Run()
        if subject in INPUTS:
            problem = self._judge_input(mutant, right, run, is_loss=change.is_loss)
        elif subject in CELLS:
            problem = self._judge_cells(mutant, right, run, is_loss=change.is_loss)
        else:
            problem = getattr(self, f"_judge_{subject}")(mutant, right, run)
        seconds, peak = time.monotonic() - begin_s, peak_bytes()
        if run.problem:
            problem = run.problem
        elif peak > MOST_BYTES:
            problem = f"{peak / 2**20:.0f} MiB"
        shutil.rmtree(self.work, ignore_errors=True)
        return Verdict(subject, seed, change.what, tuple(run.codes), problem, run.errors[-2000:], seconds, peak)

    def _mutate(self, subject: str, rng: random.Random) -> tuple[Path, Change]:
        """Copy a subject and change the copy; a change that cannot be made gives way to another."""
        mutant, whole = self.work / f"mutant-{subject}", self.subjects / subject
        while True:
            shutil.rmtree(self.work, ignore_errors=True)
            self.work.mkdir(parents=True)
            shutil.copytree(whole, mutant) if whole.is_dir() else shutil.copy(whole, mutant)
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError, IndexError, RuntimeError, OverflowError):
                return mutant, rng.choice(CHANGES[subject])(mutant, rng)

    def _undamaged(self, subject: str) -> Any:
        if subject not in self._right:
            run, path = _Run(), self.subjects / subject
            if subject in INPUTS:
                found: Any = _read(path)
                assert not self._judge_input(path, found, run, is_loss=True), run.errors
            elif subject == "many":
                found = {name: _read(path / name) for name in ("a.h5ad", "b.h5ad")}
                assert not self._judge_many(path, found, run), run.errors
            elif subject == "stopped":
                found = _weights(self.subjects / "run")
            elif subject in CELLS:
                found = self._predict(run, self.subjects / "run", path)
            else:
                found = self._predict(run, self.subjects / "run", self.subjects / "store")
            assert not run.problem, run.errors
            assert set(run.codes) <= {0}, run.errors
            self._right[subject] = found
        return self._right[subject]

    def _judge_input(self, path: Path, right: _Cells, run: _Run, *, is_loss: bool) -> str:
        run("inspect", str(path))
        store = self.work / "store-of-mutant"
        if run("ingest", str(path), "--out", str(store), *INGEST) != 0:
            return "a refused input leaves a store" if store.exists() else ""
        is_told = "has no line end at its end" in run.errors or (
            "files of" in run.errors and "are not there" in run.errors
        )  # of a column of obs that may be meant so
        expected = right if is_loss and not is_told else _read(path) or right
        found = ad.read_zarr(store)
        shutil.rmtree(store)
        return _difference(found, expected)

    def _judge_cells(self, path: Path, right: ad.AnnData, run: _Run, *, is_loss: bool) -> str:
        found = self._predict(run, self.subjects / "run", path)
        cells = None if found is None or is_loss else _read(path)
        if cells is not None:
            adata = ad.AnnData(cells.values, cells.obs[[]].rename(index=str), pd.DataFrame(index=cells.genes))
            right = ScAMAC.load(self.subjects / "run" / "model").predict(adata, denoised=True)
        return _other_result(found, right)

    def _judge_many(self, folder: Path, right: dict[str, _Cells], run: _Run) -> str:
        """Compare every cell with the cell of the file that it is said to be from."""
        store = self.work / "store-of-mutant"
        if run("ingest", str(folder / MANIFEST), "--out", str(store), *INGEST) != 0:
            return "a refused input leaves a store" if store.exists() else ""
        found = ad.read_zarr(store)
        shutil.rmtree(store)
        if "scamac_file" not in found.obs:  # the manifest names one file
            found.obs["scamac_file"] = pd.read_csv(folder / MANIFEST)["path"].iloc[0]
            found.obs["scamac_file_row"] = found.obs["scamac_row"]
        for name in found.obs["scamac_file"].unique():
            own = found[found.obs["scamac_file"] == name].copy()
            own.obs["scamac_row"] = own.obs["scamac_file_row"]
            expected = _read(folder / name) or right.get(name)
            if expected is None:
                return f"{name} is read, and nobody else reads it"
            given = [column for column in ("batch", "age") if column in expected.obs]
            if len(own) != len(expected.values):
                return f"{len(own)} of {len(expected.values)} cells of {name}"
            if problem := _difference(own, expected._replace(obs=expected.obs.drop(columns=given))):
                return f"{name}: {problem}"
        return ""

    def _judge_store(self, store: Path, right: ad.AnnData, run: _Run) -> str:
        run("inspect", str(store), "--verify")
        return _other_result(self._predict(run, self.subjects / "run", store), right)

    def _judge_model(self, run_folder: Path, right: ad.AnnData, run: _Run) -> str:
        verified = run("inspect", str(run_folder / "model"), "--verify")
        found = self._predict(run, run_folder, self.subjects / "store")
        if found is not None or verified == 0:
            return "a damaged model is taken for sound"
        return ""

    def _judge_run(self, run_folder: Path, right: ad.AnnData, run: _Run) -> str:
        run("inspect", str(run_folder), "--verify")
        run("train", "--store", str(self.subjects / "store"), "--run", str(run_folder), "--resume", "--quiet")
        return _other_result(self._predict(run, run_folder, self.subjects / "store"), right)

    def _judge_stopped(self, run_folder: Path, right: str, run: _Run) -> str:
        run("inspect", str(run_folder))
        if run("train", "--store", str(self.subjects / "store"), "--run", str(run_folder), "--resume", "--quiet"):
            return ""
        return "" if _weights(run_folder) == right else "the weights are others"

    def _predict(self, run: _Run, run_folder: Path, data: Path) -> ad.AnnData | None:
        """Predict; what comes out, None where it is refused."""
        out = self.work / "result-of-mutant.zarr"
        if run("predict", "--run", str(run_folder), "--input", str(data), "--out", str(out), "--denoised", "--quiet"):
            run.problem = run.problem or ("a refused prediction leaves a result" if out.exists() else "")
            return None
        found = ad.read_zarr(out)
        shutil.rmtree(out)
        if not all(np.isfinite(array).all() for array in _arrays(found)):
            run.problem = "a number that is not finite is written"
        return found


class _Run:
    """Runs commands in this process and keeps what they say."""

    def __init__(self) -> None:
        self.codes: list[int] = []
        self.errors = ""
        self.problem = ""

    def __call__(self, *argv: str) -> int:
        out, error = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = main(argv)
        self.codes.append(code)
        said = error.getvalue()
        self.errors += f"$ {argv[0]}: exit {code}\n{said}"
        if code not in (0, *REFUSALS):
            self.problem = f"{argv[0]} ends with exit code {code}"
        elif "Traceback" in said or "This is a bug" in said:
            self.problem = f"{argv[0]} shows a traceback"
        elif code and "error: " not in said:
            self.problem = f"{argv[0]} says nothing"
        elif any(ord(letter) < 32 and letter not in "\n\t\r" for letter in said + out.getvalue()):
            self.problem = f"{argv[0]} sends control characters to the terminal"
        return code


def _read(path: Path) -> _Cells | None:
    """Read an input by what it is compared with; None where that cannot."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if path.name.endswith("tenx.h5"):
                import scanpy as sc

                adata = sc.read_10x_h5(path)
                adata.var_names_make_unique()
                return _Cells(adata.X.toarray(), adata.var_names, adata.obs)
            if path.name.startswith("mutant-mtx") or path.name.startswith("mtx"):
                return _read_market(path)
            if path.suffix == ".loom":
                return _read_loom(path)
            group = zarr.open_group(str(path), mode="r") if path.is_dir() else h5py.File(path)
            with contextlib.ExitStack() as stack:
                stack.callback(getattr(group, "close", lambda: None))
                values, obs, var = (read_elem(group[key]) for key in ("X", "obs", "var"))
            return _Cells(
                values.toarray() if sparse.issparse(values) else np.asarray(values), var.index.astype(str), obs
            )
    except Exception:  # noqa: BLE001 - whatever a reader raises on a damaged file
        return None


def _read_loom(path: Path) -> _Cells:
    """Read genes by cells; cells without names are numbered, as anndata does."""
    with h5py.File(path) as file:
        values = file["matrix"][:].T
        is_named = "CellID" in file.get("col_attrs", {})
        cells = _texts(file["col_attrs/CellID"][:]) if is_named else np.arange(len(values)).astype(str)
        return _Cells(values, pd.Index(_texts(file["row_attrs/Gene"][:]), dtype=object), pd.DataFrame(index=cells))


def _texts(values: np.ndarray) -> np.ndarray:
    """Names, which may be whole numbers."""
    return values.astype(str) if values.dtype.kind in "iu" else np.char.decode(values)


def _read_market(path: Path) -> _Cells:
    """Read the matrix by SciPy, which keeps whole numbers, and the names by scanpy."""
    import scanpy as sc
    from scipy.io import mmread

    everything = sc.read_10x_mtx(path, var_names="gene_ids", gex_only=False)
    values = mmread(next(path.glob("matrix.mtx*"))).toarray().T
    values = values if values.dtype.kind == "i" else values.astype(np.float32)
    table = pd.read_csv(
        next(file for file in sorted(path.iterdir()) if file.name in ("genes.tsv", "features.tsv.gz")),
        sep="\t",
        header=None,
        keep_default_na=False,
        dtype=str,
    )
    is_gene = (table[2] == "Gene Expression").to_numpy() if 2 in table else np.ones(len(table), bool)
    symbols = table[1].where(table[1] != "", table[0])[is_gene]  # where scanpy says nan
    return _Cells(values[:, is_gene], make_index_unique(pd.Index(symbols, dtype=object)), everything.obs)


def _difference(found: ad.AnnData, expected: _Cells) -> str:
    rows = found.obs["scamac_row"].to_numpy()
    at = expected.genes.get_indexer(found.var_names)
    if len(rows) != len(expected.values) or (at < 0).any():
        return f"{len(rows)} cells by {found.n_vars} genes, of which {(at < 0).sum()} are not in the input"
    values = expected.values[rows][:, at]
    if not np.array_equal(found.X.toarray().astype(np.float64), values.astype(np.float64)):
        return "X is not what is in the input"
    if list(found.obs_names) != [str(name) for name in expected.obs.index[rows]]:
        return "the cells have other names"
    for column in expected.obs.columns.intersection(found.obs.columns):
        if not _same(found.obs[column], expected.obs[column].iloc[rows]):
            return f"obs[{column!r}] is not what is in the input"
    return ""


def _same(ours: pd.Series, theirs: pd.Series) -> bool:
    """Tell whether two columns say the same; text in bytes is text."""
    texts = [
        [value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value) for value in column]
        for column in (ours, theirs)
    ]
    return texts[0] == texts[1]


def _other_result(found: ad.AnnData | None, right: ad.AnnData) -> str:
    if found is None:
        return ""
    if list(found.obs_names) != list(right.obs_names):
        return "the result has other cells"
    same = all(np.array_equal(ours, theirs) for ours, theirs in zip(_arrays(found), _arrays(right), strict=True))
    is_same = same and list(found.obs["scamac_cluster"]) == list(right.obs["scamac_cluster"])
    return "" if is_same else "the result is another one"


def _arrays(result: ad.AnnData) -> list[np.ndarray]:
    """Latents, memberships and denoised values."""
    return [np.asarray(result.obsm[key]) for key in ("X_scAMAC", "scamac_membership")] + [
        np.asarray(result.layers["scamac_denoised"])
    ]


def _weights(run: Path) -> str:
    return hashlib.sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest()
