import importlib.util
import subprocess
import sys
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
    assert all(f"def test_{path.stem}(" in text for path in EXAMPLES.glob("*.py"))


@pytest.mark.slow
def test_scanpy_style(tiny_atlas: Path, tmp_path: Path) -> None:
    load("scanpy_style").main([str(tiny_atlas), str(tmp_path / "result.h5ad")])
    assert "scamac_cluster" in ad.read_h5ad(tmp_path / "result.h5ad").obs


@pytest.mark.slow
def test_stream_atlas(tmp_path: Path) -> None:
    ari = load("stream_atlas").main([str(tmp_path), "--cells", "600", "--types", "3"])
    assert ari > 0.8


@pytest.mark.slow  # umap compiles for a minute
def test_plot_umap(tiny_atlas: Path, tmp_path: Path) -> None:
    picture = tmp_path / "umap.png"
    # as a user runs it: the folder of the script comes first on the path, so its name must shadow nothing
    script = [sys.executable, str(EXAMPLES / "plot_umap.py"), str(tiny_atlas), str(picture), "--n-clusters", "4"]
    subprocess.run(script, check=True)
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert picture.stat().st_size > 10_000


def test_no_example_shadows_a_package() -> None:
    for path in EXAMPLES.glob("*.py"):
        assert importlib.util.find_spec(path.stem) is None, f"{path.name} hides a package when it is run"
