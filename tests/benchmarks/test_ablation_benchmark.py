"""benchmarks/ablation.py on the tiny atlas: what the variants are, real fits, the file that resumes, the sign of a difference."""

import importlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from scamac_scale import ScAMAC, ScamacConfig
from scamac_scale.sources import open_source
from scamac_scale.train.checks import check_settings
from scamac_scale.train.clusters.selection import read_cells

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def ablation(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("ablation")


def shortened(config: ScamacConfig) -> ScamacConfig:
    """The same with few steps."""
    train = config.train
    phases = tuple(replace(phase, steps=4) for phase in train.phases)
    pretrain = replace(train.pretrain, steps=2)  # a variant without it has no epoch
    return replace(config, n_clusters=4, train=replace(train, pretrain=pretrain, phases=phases))


def test_every_variant_is_the_default_with_its_own_changes(ablation: ModuleType) -> None:
    variants = ablation.find_variants()
    configs = {name: variant.config() for name, variant in variants.items()}
    assert configs["whole"] == ScamacConfig()
    assert len({json.dumps(asdict(config), sort_keys=True) for config in configs.values()}) == len(variants)
    for config in configs.values():
        check_settings(replace(config, n_clusters=4))


def test_without_the_autoencoder_the_latent_is_principal_components_of_the_input(
    ablation: ModuleType, tiny_atlas: Path
) -> None:
    config = replace(ablation.find_variants()["no-autoencoder"].config(), n_clusters=4)
    model = ScAMAC(config=config).fit(tiny_atlas)
    assert model.report["steps"] == 0
    with open_source(tiny_atlas, model.fitted.genes) as source:
        x = read_cells(source, np.arange(source.n_cells), model.fitted.network).double().numpy()
    left, sizes, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    latent = model.predict(tiny_atlas).obsm["X_scAMAC"]
    np.testing.assert_allclose(np.abs(latent), np.abs(left * sizes)[:, :32], atol=1e-3)  # signs are free; float32


@pytest.mark.slow
def test_without_self_supervision_nothing_reaches_the_attention(ablation: ModuleType, tiny_atlas: Path) -> None:
    variants = ablation.find_variants()
    alphas = {
        name: ScAMAC(config=shortened(variants[name].config())).fit(tiny_atlas).fitted.network.fusion.alpha
        for name in ("whole", "no-self-supervision-consensus")
    }
    assert alphas["whole"].abs().max() > 0
    assert alphas["no-self-supervision-consensus"].abs().max() == 0


@pytest.mark.slow
def test_fits_are_scored_kept_and_not_repeated(
    ablation: ModuleType,
    tiny_atlas: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure = ablation.Variant.config
    monkeypatch.setattr(ablation.Variant, "config", lambda variant: shortened(configure(variant)))
    monkeypatch.setattr(importlib.import_module("methods"), "warm_up", lambda names, n_cells: None)
    out = tmp_path / "ablation.json"
    arguments = ["--data", str(tiny_atlas.parent), "--sets", "tiny", "--seeds", "1", "--out", str(out)]
    assert ablation.main([*arguments, "--variants", "whole", "no-autoencoder"]) == 0
    held = json.loads(out.read_text())
    assert {(run["set"], run["variant"], run["seed"]) for run in held["runs"]} == {
        ("tiny", "whole", 0),
        ("tiny", "no-autoencoder", 0),
    }
    assert all(run["n_true"] == 4 and run["ari"] > 0.9 for run in held["runs"])
    assert held["variants"]["no-autoencoder"]["settings"]["config"]["train"]["rounds"] == 0
    printed = capsys.readouterr().out
    assert "Figure 9" in printed
    assert "-autoencoder, PCA" in printed
    assert str(tiny_atlas.parent) not in out.read_text() + printed

    assert ablation.main([*arguments, "--resume", "--variants", "whole", "no-mss", "no-autoencoder"]) == 0
    assert "1/1  tiny  no-mss" in capsys.readouterr().out
    assert ablation.main(["--report", "--markdown", "--out", str(out)]) == 0
    assert "-MSS, no attention |" in capsys.readouterr().out


def test_worse_than_the_whole_method_is_negative(
    ablation: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ablation.json"
    common = {"n_clusters": 3, "n_true": 3, "seconds": 1.0, "peak_bytes": 1}
    scores = {"whole": (0.9, 0.8, 0.7), "no-mss": (0.8, 0.5, 0.7)}
    runs = [
        {"set": name, "variant": variant, "seed": 0, "ari": ari, "nmi": ari, **common}
        for variant, values in scores.items()
        for name, ari in zip("xyz", values, strict=True)
    ]
    out.write_text(json.dumps({"runs": runs, "environments": [{}]}))
    ablation.main(["--report", "--out", str(out)])
    row = next(line for line in capsys.readouterr().out.splitlines() if "-MSS" in line)
    assert "-0.133 ± 0.088" in row  # mean of -0.1, -0.3, 0; standard deviation 0.153, over the root of 3
    assert "2 / 0 / 1" in row
