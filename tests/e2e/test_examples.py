import importlib.util
from pathlib import Path
from types import ModuleType

import anndata as ad
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_has_a_test() -> None:
    text = Path(__file__).read_text()
    assert all(f'load("{path.stem}")' in text for path in EXAMPLES.glob("*.py"))


def test_scanpy_style(tiny_atlas: Path, tmp_path: Path) -> None:
    load("scanpy_style").main([str(tiny_atlas), str(tmp_path / "result.h5ad")])
    assert "scamac_cluster" in ad.read_h5ad(tmp_path / "result.h5ad").obs


def test_stream_atlas(tmp_path: Path) -> None:
    ari = load("stream_atlas").main([str(tmp_path), "--cells", "600", "--types", "3"])
    assert ari > 0.8


@pytest.mark.slow  # umap compiles for a minute
@pytest.mark.filterwarnings("ignore")  # of scanpy, umap and matplotlib, not ours
def test_umap(tiny_atlas: Path, tmp_path: Path) -> None:
    picture = load("umap").main([str(tiny_atlas), str(tmp_path / "umap.png"), "--n-clusters", "4"])
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert picture.stat().st_size > 10_000
