from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from scamac_scale.errors import InputError, OutputError
from scamac_scale.fitted import DESCRIPTION_FILE, WEIGHTS_FILE, load_model, save_model
from tests.support.fitted import fitted_model, with_correction

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[1]


def test_a_model_comes_back_as_it_was_and_draws_no_random_numbers(tmp_path: Path) -> None:
    model = fitted_model()
    path = save_model(model, tmp_path / "model")
    state = torch.get_rng_state()
    again = load_model(path)
    assert torch.equal(torch.get_rng_state(), state)
    for name, tensor in model.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], tensor)
    assert torch.equal(again.clusters.centers, model.clusters.centers)
    assert (again.config, again.genes) == (model.config, model.genes)
    assert (again.clusters.temperature, again.provenance) == (model.clusters.temperature, model.provenance)
    assert not again.network.training
    x = torch.randn(5, 20)
    assert torch.equal(again.network(x, frozen=True).latent, model.network(x, frozen=True).latent)


def test_a_correction_comes_back_as_it_was(tmp_path: Path) -> None:
    model = with_correction(fitted_model())
    assert model.network.correction is not None
    model.network.correction.new_beta = torch.zeros(1, 4, 5)  # of the cells of another day
    again = load_model(save_model(model, tmp_path / "model"))
    assert again.tech_levels == model.tech_levels
    correction = again.network.correction
    assert correction is not None
    assert correction.new_beta is None
    assert correction.sigma == model.config.correction.sigma
    for name, tensor in model.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], tensor)
    values, levels = torch.rand(6, 20), torch.tensor([[0, 3], [1, 4], [2, 3]]).repeat(2, 1)
    model.network.correction.new_beta = None
    assert torch.equal(again.network.cell_input(values, levels), model.network.cell_input(values, levels))
    assert not torch.equal(again.network.cell_input(values, levels), again.network.scale_input(values))


def test_a_model_without_a_correction_has_none_and_no_levels(tmp_path: Path) -> None:
    again = load_model(save_model(fitted_model(), tmp_path / "model"))
    assert again.network.correction is None
    assert again.tech_levels == {}


FILE_TOO_LARGE = """
import resource, sys
from scamac_scale.fitted import save_model
from scamac_scale.errors import OutputError
from tests.support.fitted import fitted_model, with_correction
model = fitted_model()
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
try:
    save_model(model, sys.argv[1])
except OutputError as error:
    print(error.exit_code, error)
"""


def test_a_full_disk_is_said_and_nothing_is_left_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FILE_TOO_LARGE, tmp_path / "model"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("4 ")
    assert "model cannot be written: File too large" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_model_is_replaced_by_a_model(tmp_path: Path) -> None:
    path = save_model(fitted_model(0), tmp_path / "model")
    save_model(fitted_model(1), path)
    assert torch.equal(load_model(path).clusters.centers, fitted_model(1).clusters.centers)
    assert [folder.name for folder in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("content", ['{"format": "keras"}', "{}", "[]", "not json", "\udcff"])
def test_the_model_of_another_program_is_not_replaced(tmp_path: Path, content: str) -> None:
    theirs = tmp_path / DESCRIPTION_FILE
    theirs.write_text(content, encoding="utf-8", errors="surrogateescape")
    (tmp_path / "weights.h5").write_text("months of work")
    with pytest.raises(OutputError, match=r"model\.json.* was not written by this program"):
        save_model(fitted_model(), tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [DESCRIPTION_FILE, "weights.h5"]


def remove(*keys: str) -> Callable[[Any], Any]:
    def change(content: Any) -> Any:
        inner = content
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1]]
        return content

    return change


def put(value: Any, *keys: str) -> Callable[[Any], Any]:
    def change(content: Any) -> Any:
        inner = content
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        return content

    return change


DAMAGES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a list": (lambda content: [], "not written by this program"),
    "a number": (lambda content: 3, "not written by this program"),
    "a later version": (put(99, "version"), "version 99"),
    "another program's": (put("keras", "format"), "'keras'"),
    "no config": (remove("config"), "'config'"),
    "no part of the config": (remove("config", "loss"), "'loss'"),
    "a config that is a list": (put([], "config"), "damaged"),
    "an unknown setting": (put(1, "config", "model", "depth"), "'depth'"),
    "a setting out of range": (put(-1, "config", "seed"), "seed=-1"),
    "an unknown form": (put("none", "config", "model", "fusion"), r"model\.fusion='none'"),
    "no genes": (remove("genes"), "'genes'"),
    "genes that are null": (put(None, "genes"), "damaged"),
    "a gene less": (put([f"gene{index:03d}" for index in range(19)], "genes", "chosen"), r"gene_mean.*20.*19"),
    "another width": (put(32, "config", "model", "encoder_width"), r"autoencoder.*16.*32"),
    "another latent width": (put(4, "config", "model", "latent_width"), "8"),
    "a width beyond all memory": (put(10**9, "config", "model", "encoder_width"), r"autoencoder.*16.*1000000000"),
    "a width that is text": (put("16", "config", "model", "encoder_width"), "damaged"),
    "no temperature": (remove("temperature"), "'temperature'"),
    "a temperature that is text": (put("warm", "temperature"), "temperature"),
    "a temperature of zero": (put(0.0, "temperature"), "temperature"),
    "another number of clusters": (put(7, "n_clusters"), "7"),
    "no provenance": (remove("provenance"), "'provenance'"),
    "no versions": (remove("provenance", "versions"), "'versions'"),
    "a provenance that is a list": (put([], "provenance"), "damaged"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_description_is_refused(tmp_path: Path, damage: str) -> None:
    change, message = DAMAGES[damage]
    path = save_model(fitted_model(), tmp_path / "model")
    content = change(json.loads((path / DESCRIPTION_FILE).read_text()))
    (path / DESCRIPTION_FILE).write_text(json.dumps(content))
    with pytest.raises(InputError, match=message) as raised:
        load_model(path)
    assert str(path) in str(raised.value)
    assert len(str(raised.value)) < 1000


DAMAGES_OF_A_CORRECTION: dict[str, tuple[Callable[[Any], Any], str]] = {
    "no levels": (remove("tech_levels"), "'tech_levels'"),
    "levels of no column": (put({}, "tech_levels"), "the correction has 5 technical batches, the description says 0"),
    "a level less": (put(["ann", "bob"], "tech_levels", "donor"), "has 5 technical batches, the description says 4"),
    "a column less": (remove("tech_levels", "chip"), "has 5 technical batches, the description says 3"),
    "a level twice": (put(["ann", "bob", "ann"], "tech_levels", "donor"), "damaged"),
    "levels that are null": (put(None, "tech_levels", "donor"), "damaged"),
    "levels that are a text": (put("abc", "tech_levels", "donor"), "damaged"),
    "columns that are a list": (put(["donor"], "tech_levels"), "damaged"),
    "columns that are null": (put(None, "tech_levels"), "damaged"),
    "a width of zero": (put(0.0, "config", "correction", "sigma"), r"correction\.sigma=0\.0"),
    "no settings": (remove("config", "correction"), "'correction'"),
}


@pytest.mark.parametrize("damage", DAMAGES_OF_A_CORRECTION)
def test_a_damaged_description_of_a_correction_is_refused(tmp_path: Path, damage: str) -> None:
    change, message = DAMAGES_OF_A_CORRECTION[damage]
    path = save_model(with_correction(fitted_model()), tmp_path / "model")
    content = change(json.loads((path / DESCRIPTION_FILE).read_text()))
    (path / DESCRIPTION_FILE).write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        load_model(path)


def test_levels_without_a_correction_are_refused(tmp_path: Path) -> None:
    path = save_model(fitted_model(), tmp_path / "model")
    content = put({"donor": ["a", "b"]}, "tech_levels")(json.loads((path / DESCRIPTION_FILE).read_text()))
    (path / DESCRIPTION_FILE).write_text(json.dumps(content))
    with pytest.raises(InputError, match="the correction has 0 technical batches, the description says 2"):
        load_model(path)


SHAPES = {
    "correction.axes": (19, 5),
    "correction.mean": (4,),
    "correction.centers": (2, 4, 6),
    "correction.penalty": (2, 5, 3),
    "correction.beta": (2, 5, 4),
    "correction.sizes": (5,),
    "correction.sums": (4, 4),
}


@pytest.mark.parametrize("is_there", [False, True], ids=["missing", "of another shape"])
@pytest.mark.parametrize("name", SHAPES)
def test_a_correction_whose_parts_do_not_fit_is_refused(tmp_path: Path, name: str, is_there: bool) -> None:
    path = save_model(with_correction(fitted_model()), tmp_path / "model")
    tensors = {key: tensor.clone() for key, tensor in load_file(path / WEIGHTS_FILE).items() if key != name}
    save_file({**tensors, **({name: torch.zeros(SHAPES[name])} if is_there else {})}, path / WEIGHTS_FILE)
    with pytest.raises(InputError, match="is damaged"):
        load_model(path)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"{", b"[1,"])
def test_a_description_that_is_no_json_is_refused(tmp_path: Path, content: bytes) -> None:
    path = save_model(fitted_model(), tmp_path / "model")
    (path / DESCRIPTION_FILE).write_bytes(content)
    with pytest.raises(InputError, match="readable model"):
        load_model(path)


@pytest.mark.parametrize("name", ["centers", "bank_cells", "fusion.alpha"])
def test_missing_weights_are_named(tmp_path: Path, name: str) -> None:
    path = save_model(fitted_model(), tmp_path / "model")
    tensors = load_file(path / WEIGHTS_FILE)
    kept = {key: tensor.clone() for key, tensor in tensors.items() if key != name}
    assert len(kept) < len(tensors)
    save_file(kept, path / WEIGHTS_FILE)
    with pytest.raises(InputError, match=name):
        load_model(path)


def test_weights_of_no_part_are_named(tmp_path: Path) -> None:
    path = save_model(fitted_model(), tmp_path / "model")
    tensors = {key: tensor.clone() for key, tensor in load_file(path / WEIGHTS_FILE).items()}
    save_file({**tensors, "lora": torch.zeros(2)}, path / WEIGHTS_FILE)
    with pytest.raises(InputError, match="lora"):
        load_model(path)
