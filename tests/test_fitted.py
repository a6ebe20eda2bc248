from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from scamac_scale.durable.plain import SEAL, sealed
from scamac_scale.errors import InputError, OutputError
from scamac_scale.fitted import DESCRIPTION_FILE, WEIGHTS_FILE, load_model, save_model
from tests.support.fitted import fitted_model, seal_again, with_correction, with_tree

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


def test_a_tree_comes_back_as_it_was(tmp_path: Path) -> None:
    model = with_tree(fitted_model())
    again = load_model(save_model(model, tmp_path / "model"))
    assert again.tree is not None
    assert model.tree is not None
    assert again.landmarks is not None
    assert model.landmarks is not None
    np.testing.assert_array_equal(again.tree.merges, model.tree.merges)
    np.testing.assert_array_equal(again.tree.weights, model.tree.weights)
    assert torch.equal(again.landmarks, model.landmarks)


def test_a_model_of_the_version_before_the_tree_is_read_and_has_none(tmp_path: Path) -> None:
    path = save_model(fitted_model(), tmp_path / "model")

    def as_before(content: Any) -> Any:
        del content["config"]["start"]["cut_height"]  # as of settings that came later
        return {**content, "version": 5}

    seal_again(path, as_before)
    again = load_model(path)
    assert again.tree is None
    assert again.landmarks is None
    assert again.config.start == fitted_model().config.start


DAMAGES_OF_A_TREE: dict[str, tuple[str, Callable[[torch.Tensor], torch.Tensor], str]] = {
    "no merges": ("tree.merges", lambda tensor: tensor[:0], "the tree has shape"),
    "a merge less": ("tree.merges", lambda tensor: tensor[:-1], "the tree has shape"),
    "a cluster beyond all": ("tree.merges", lambda tensor: tensor + 1e6, "joins clusters that it does not have"),
    "single precision": ("tree.merges", lambda tensor: tensor.float(), "holds the tree as torch.float32"),
    "no weight": ("tree.weights", lambda tensor: tensor * 0, "not positive"),
    "weights in two columns": (
        "tree.weights",
        lambda tensor: torch.stack([tensor, tensor], dim=1),
        "the tree has shape",
    ),
    "fewer latents": ("tree.latent", lambda tensor: tensor[1:], "landmarks of the tree came with shape"),
    "narrower latents": ("tree.latent", lambda tensor: tensor[:, 1:], "landmarks of the tree came with shape"),
    "latents that are no numbers": ("tree.latent", lambda tensor: tensor * float("nan"), "not finite"),
}


@pytest.mark.parametrize("damage", DAMAGES_OF_A_TREE)
def test_a_damaged_tree_is_refused(tmp_path: Path, damage: str) -> None:
    name, change, message = DAMAGES_OF_A_TREE[damage]
    path = save_model(with_tree(fitted_model()), tmp_path / "model")
    tensors = {key: tensor.clone() for key, tensor in load_file(path / WEIGHTS_FILE).items()}
    save_file({**tensors, name: change(tensors[name]).contiguous()}, path / WEIGHTS_FILE)
    seal_again(path)
    with pytest.raises(InputError, match=message):
        load_model(path)


def test_a_tree_with_less_landmarks_than_clusters_or_without_a_part_is_refused(tmp_path: Path) -> None:
    path = save_model(with_tree(fitted_model(), 2), tmp_path / "model")
    with pytest.raises(InputError, match="the tree has 2 landmarks, the description says 3 clusters"):
        load_model(path)
    path = save_model(with_tree(fitted_model()), path)
    tensors = {key: tensor.clone() for key, tensor in load_file(path / WEIGHTS_FILE).items() if key != "tree.latent"}
    save_file(tensors, path / WEIGHTS_FILE)
    seal_again(path)
    with pytest.raises(InputError, match=r"lacks 'tree\.latent'"):
        load_model(path)


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
    seal_again(path, change)
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
    seal_again(path, change)
    with pytest.raises(InputError, match=message):
        load_model(path)


def test_levels_without_a_correction_are_refused(tmp_path: Path) -> None:
    path = save_model(fitted_model(), tmp_path / "model")
    seal_again(path, put({"donor": ["a", "b"]}, "tech_levels"))
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
    seal_again(path)
    with pytest.raises(InputError, match="is damaged"):
        load_model(path)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"{", b"[1,", b"[]", b"3", b"\0", b"\xef\xbb\xbf{}", b"[" * 10**5]
)
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
    seal_again(path)
    with pytest.raises(InputError, match=name):
        load_model(path)


def test_weights_of_no_part_are_named(tmp_path: Path) -> None:
    path = save_model(fitted_model(), tmp_path / "model")
    tensors = {key: tensor.clone() for key, tensor in load_file(path / WEIGHTS_FILE).items()}
    save_file({**tensors, "lora": torch.zeros(2)}, path / WEIGHTS_FILE)
    seal_again(path)
    with pytest.raises(InputError, match="lora"):
        load_model(path)


# ---------------------------------------------------------------------- the seal


def flips(content: bytes, n_flips: int) -> list[int]:
    """Bits to be flipped: of both ends, and others in between."""
    n_bits = 8 * len(content)
    ends = [*range(64), *range(n_bits - 64, n_bits)]
    return [*ends, *np.random.default_rng(0).integers(n_bits, size=n_flips).tolist()]


def test_any_flip_of_a_bit_in_any_file_of_a_model_is_found_and_the_file_named(tmp_path: Path) -> None:
    path = save_model(with_correction(fitted_model()), tmp_path / "model")
    files = sorted(path.iterdir())
    assert [file.name for file in files] == [DESCRIPTION_FILE, WEIGHTS_FILE]
    for file in files:
        content = file.read_bytes()
        for at in flips(content, 200):
            flipped = bytearray(content)
            flipped[at // 8] ^= 1 << at % 8
            file.write_bytes(flipped)
            with pytest.raises(InputError, match=file.name):
                load_model(path)
        file.write_bytes(content)
    assert load_model(path).tech_levels


def test_a_model_that_is_copied_is_sound_and_one_that_is_mixed_is_not(tmp_path: Path) -> None:
    first, second = (save_model(fitted_model(seed), tmp_path / f"model{seed}") for seed in (0, 1))
    load_model(shutil.copytree(first, tmp_path / "elsewhere"))
    shutil.copy(second / WEIGHTS_FILE, first / WEIGHTS_FILE)  # each sound by itself, of the same size
    with pytest.raises(InputError, match=r"model\.safetensors is damaged: it is not what was written"):
        load_model(first)


def test_a_model_of_before_the_seal_is_to_be_trained_again(tmp_path: Path) -> None:
    path = save_model(fitted_model(), tmp_path / "model")
    content = json.loads((path / DESCRIPTION_FILE).read_text())
    (path / DESCRIPTION_FILE).write_text(json.dumps({**content, "version": 4}))
    with pytest.raises(InputError, match=r"version 4; this program reads .* version 5 to 7: train again"):
        load_model(path)


def test_a_setting_that_never_saves_by_the_clock_comes_back(tmp_path: Path) -> None:
    model = fitted_model()
    model.config = replace(model.config, train=replace(model.config.train, checkpoint_every_s=float("inf")))
    assert load_model(save_model(model, tmp_path / "model")).config == model.config


SEALED_AGAIN: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a seed of text": (put("3", "config", "seed"), "seed='3'; it must be a whole number"),
    "a seed that is true": (put(True, "config", "seed"), "seed=True; it must be a whole number"),
    "a width with a fraction": (put(16.0, "config", "model", "encoder_width"), "encoder_width=16.0"),
    "a flag that is text": (
        put("yes", "config", "model", "has_synergy"),
        "has_synergy='yes'; it must be true or false",
    ),
    "a flag that is a number": (put(1, "config", "input", "center"), "center=1; it must be true or false"),
    "phases that are names": (put({}, "config", "train", "phases"), "phases=keys and values; it must be a list"),
    "a phase that is text": (put(["x"], "config", "train", "phases"), r"phases\[0\] must be keys and values"),
    "an infinite width of clusters": (put(float("inf"), "config", "correction", "sigma"), "sigma=inf"),
    "a width of clusters that is no number": (put(float("nan"), "config", "correction", "sigma"), "sigma=nan"),
    "a floor that is no number": (put(float("nan"), "config", "loss", "epsilon"), "epsilon=nan"),
    "a time that is no number": (put(float("nan"), "config", "train", "timeout_s"), "timeout_s=nan"),
    "a choice that is a list": (put([], "config", "model", "fusion"), "fusion="),
    "an infinite temperature": (put(float("inf"), "temperature"), "temperature"),
    "a temperature that is true": (put(True, "temperature"), "temperature"),
    "genes that are numbers": (put(list(range(20)), "genes", "chosen"), "expected gene names, got a int"),
    "an infinite total": (put(float("inf"), "genes", "target_sum"), "target_sum=inf"),
    "clusters that are true": (put(True, "n_clusters"), "True clusters"),
    "versions that are numbers": (put({"torch": 2}, "provenance", "versions"), "versions must be names"),
    "a digest that is a number": (put(3, "cells_digest"), "cells_digest text"),
    "weights of which nothing is said": (
        put(None, "weights"),
        r"model\.safetensors is damaged: model\.json says nothing",
    ),
    "a batch key that is a list": (put(["donor"], "config", "batch_key"), "batch_key=a list; it must be text or null"),
}


@pytest.mark.parametrize("name", SEALED_AGAIN)
def test_a_description_that_was_changed_and_sealed_again_is_checked(tmp_path: Path, name: str) -> None:
    change, message = SEALED_AGAIN[name]
    path = save_model(fitted_model(), tmp_path / "model")
    seal_again(path)
    load_model(path)
    content = change(json.loads((path / DESCRIPTION_FILE).read_text()))
    (path / DESCRIPTION_FILE).write_text(sealed({key: value for key, value in content.items() if key != SEAL}))
    with pytest.raises(InputError, match=message):
        load_model(path)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("centers", lambda tensor: tensor * float("nan"), "numbers in centers that are not finite"),
        ("bank_cells", lambda tensor: tensor / 0, "numbers in bank_cells that are not finite"),
        ("input_scale", lambda tensor: -tensor, "numbers in input_scale that are not positive"),
        ("input_scale", lambda tensor: tensor * 0, "numbers in input_scale that are not positive"),
        ("correction.sizes", lambda tensor: tensor - 100, r"numbers in correction\.sizes that are negative"),
        ("gene_mean", lambda tensor: tensor.double(), "gene_mean as torch.float64"),
        ("fusion.alpha", lambda tensor: tensor.to(torch.int32), "alpha as torch.int32"),
        ("correction.beta", lambda tensor: torch.zeros(10**6, 5, 10**6, 0), "do not fit"),
        ("correction.axes", lambda tensor: tensor[0], "do not fit"),
        ("bank_cells", lambda tensor: torch.zeros(()), "damaged"),
    ],
)
def test_tensors_that_were_changed_and_sealed_again_are_checked(
    tmp_path: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor], message: str
) -> None:
    path = save_model(with_correction(fitted_model()), tmp_path / "model")
    tensors = {key: tensor.clone() for key, tensor in load_file(path / WEIGHTS_FILE).items()}
    save_file({**tensors, name: change(tensors[name]).contiguous()}, path / WEIGHTS_FILE)
    seal_again(path)
    with pytest.raises(InputError, match=message):
        load_model(path)


def header(**entries: object) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        (2**63).to_bytes(8, "little") + b"{}",
        header(a={"dtype": "F32", "shape": [2**50], "data_offsets": [0, 2**52]}),
        header(a={"dtype": "F32", "shape": [2**32, 2**32], "data_offsets": [0, 0]}),
        header(
            a={"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
            b={"dtype": "F32", "shape": [1], "data_offsets": [2, 6]},
        )
        + b"\0" * 6,
        header(a={"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}) + b"\0" * 4,
        header(a=[[[]]]),
        (10**5).to_bytes(8, "little") + b"[" * 10**5,
    ],
)
def test_a_file_of_tensors_that_makes_no_sense_is_refused(tmp_path: Path, content: bytes) -> None:
    path = save_model(fitted_model(), tmp_path / "model")
    (path / WEIGHTS_FILE).write_bytes(content)
    seal_again(path)
    with pytest.raises(InputError, match=r"model\.safetensors is damaged"):
        load_model(path)


@pytest.mark.parametrize("name", [DESCRIPTION_FILE, WEIGHTS_FILE])
@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_no_pipe_is_opened_and_no_link_followed(tmp_path: Path, name: str, kind: str) -> None:
    path = save_model(fitted_model(), tmp_path / "model")
    (path / name).rename(tmp_path / name)
    os.mkfifo(path / name) if kind == "pipe" else (path / name).symlink_to(tmp_path / name)
    with pytest.raises(InputError, match=rf"{name}.*(a named pipe|a link)"):
        load_model(path)
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(InputError, match="is a link; name the model folder"):
        load_model(tmp_path / "link")
