"""The names of choices stand in the types of the config; what they name stands in dicts elsewhere. Here the two are held equal."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import Any, Literal, get_args, get_origin

import pytest

from scamac_scale.cli.commands import COMMANDS
from scamac_scale.cli.parsing import build_parser, parse
from scamac_scale.config import (
    IngestConfig,
    LoaderConfig,
    ModelConfig,
    PhaseConfig,
    ScamacConfig,
    config_from_dict,
    type_hints,
)
from scamac_scale.durable.differences import plain
from scamac_scale.errors import ConfigError
from scamac_scale.ingestion.flavors.choose import FLAVORS
from scamac_scale.ingestion.many.genes import JOINS
from scamac_scale.ingestion.statistics import KIND_RULES
from scamac_scale.loader.device import DENSIFY
from scamac_scale.losses.clustering import CLUSTERINGS
from scamac_scale.losses.reconstruction import RECONSTRUCTIONS
from scamac_scale.losses.similarity import SIMILARITY_LOSSES, SIMILARITY_SCALINGS
from scamac_scale.nn.autoencoder import ACTIVATIONS
from scamac_scale.nn.clusters import TEMPERATURES
from scamac_scale.nn.condition import CONDITIONS
from scamac_scale.nn.fusion import FUSIONS
from scamac_scale.nn.model import CHANNEL_FORMS
from scamac_scale.ops.attention import SPATIAL_FORMS
from scamac_scale.sources import CACHES
from scamac_scale.store.layout import PROFILES
from scamac_scale.train.clusters.centers import CENTER_STARTS
from scamac_scale.train.clusters.landmarks import LANDMARK_CENTERS
from scamac_scale.train.clusters.selection import SELECTIONS
from scamac_scale.train.objective import TERMS
from scamac_scale.train.optimizers import OPTIMIZERS
from scamac_scale.train.schedule import SCHEDULES
from scamac_scale.train.start import WEIGHT_STARTS

HOMES: dict[str, Mapping[str, object]] = {
    "ingest.kind": KIND_RULES,
    "ingest.flavor": FLAVORS,
    "ingest.profile": PROFILES,
    "ingest.join": JOINS,
    "model.encoder_activation": ACTIVATIONS,
    "model.latent_activation": ACTIVATIONS,
    "model.output_activation": ACTIVATIONS,
    "model.spatial_form": SPATIAL_FORMS,
    "model.channel_form": CHANNEL_FORMS,
    "model.bank_choice": SELECTIONS,
    "model.fusion": FUSIONS,
    "model.decoder_condition": CONDITIONS,
    "loss.reconstruction": RECONSTRUCTIONS,
    "loss.clustering": CLUSTERINGS,
    "loss.similarity_form": SIMILARITY_LOSSES,
    "loss.similarity_scaling": SIMILARITY_SCALINGS,
    "loss.temperature": TEMPERATURES,
    "start.weights": WEIGHT_STARTS,
    "start.centers": CENTER_STARTS,
    "start.landmark_choice": LANDMARK_CENTERS,
    "loader.cache": CACHES,
    "loader.densify": DENSIFY,
    "train.phases.terms": TERMS,
    "train.phases.optimizer": OPTIMIZERS,
    "train.phases.schedule": SCHEDULES,
}
"""Where each choice is at home."""
PLAIN = {"n_clusters", "correction.acts_on", "model.scales", "loss.similarity", "loss.similarity_target"} | {
    f"train.{name}" for name in ("accelerator", "precision", "sums")
}
"""Choices that no dict knows: the code asks for the name."""

NAMELESS = {"ingest.matrix", "ingest.batch_key", "batch_key", "loader.balance_by"} | {
    f"ingest.{name}" for name in ("genes", "gene_column", "columns", "where", "cells", "mito_prefix")
}
"""Texts that are no choice: names of layers, columns and files, which the data has."""


def names_of(hint: Any) -> tuple[str, ...]:
    """The names in a type: of a Literal, or of one in a tuple or union."""
    parts = (hint, *get_args(hint))
    return next((get_args(part) for part in parts if get_origin(part) is Literal), ())


def leaves(config: type, prefix: str = "") -> Iterator[tuple[str, type, str, Any]]:
    """Key, class, field and type of every setting; those of listed dataclasses stand below the key of the list."""
    hints = type_hints(config)
    for field in fields(config):
        hint = hints[field.name]
        nested = next((part for part in (hint, *get_args(hint)) if is_dataclass(part)), None)
        if isinstance(nested, type):
            yield from leaves(nested, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, config, field.name, hint


LEAVES = [*leaves(IngestConfig, "ingest."), *leaves(ScamacConfig)]
CHOICES = {key: (config, name, hint) for key, config, name, hint in LEAVES if names_of(hint)}
CHOICE_CASES = pytest.mark.parametrize("key", CHOICES)


def misspelt(key: str) -> tuple[str, str]:
    """A name of a choice, and the same with its last letter twice."""
    name = max(names_of(CHOICES[key][2]), key=len)
    return name, name + name[-1]


def words(key: str, name: str, wrong: str) -> str:
    """What the refusal of a misspelt name says."""
    if key == "n_clusters":
        return f"n_clusters={wrong!r}; it must be a whole number or {name!r}."
    names = ", ".join(sorted(names_of(CHOICES[key][2])))
    return f"{key}={wrong!r} is not known; it is one of {names}. Did you mean {name!r}?"


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(ConfigError) as refused:
        call()
    return str(refused.value)


def parsed(*argv: str) -> object:
    """What the command line makes of settings, before it opens any data."""
    name = "ingest" if any("ingest." in argument for argument in argv) else "train"
    command = COMMANDS[name]
    parser = build_parser(name, command.summary, command.usage)
    command.declare(parser)
    return parse(parser, [*argv, "x.h5ad"] if name == "ingest" else argv, command.config, command.prefix)


@pytest.mark.parametrize("key", HOMES)
def test_the_names_of_a_choice_are_the_keys_of_its_dict(key: str) -> None:
    assert set(names_of(CHOICES[key][2])) == set(HOMES[key])


def test_every_choice_has_a_home_or_is_asked_for_by_name() -> None:
    twins = {key for key in CHOICES if key.startswith("train.pretrain.")}  # the type of train.phases
    assert set(CHOICES) == set(HOMES) | PLAIN | twins


def test_every_text_that_is_no_choice_is_named_here() -> None:
    texts = {key for key, *_, hint in LEAVES if str in (hint, *get_args(hint))}
    assert texts == NAMELESS


@CHOICE_CASES
def test_a_misspelt_name_is_refused_from_python(key: str) -> None:
    config, field, hint = CHOICES[key]
    name, wrong = misspelt(key)
    value = (wrong,) if get_origin(hint) is tuple else wrong
    expected = words(key, name, wrong)
    if config is PhaseConfig:  # which does not know where it stands
        expected = expected.removeprefix(key.removesuffix(field))
    assert refusal(lambda: config(**{field: value})) == expected


@CHOICE_CASES
def test_a_misspelt_name_is_refused_on_the_command_line(key: str) -> None:
    _, field, hint = CHOICES[key]
    name, wrong = misspelt(key)
    value = f"[{wrong}]" if get_origin(hint) is tuple else wrong
    argv = [f"--{key}", value]
    expected = words(key, name, wrong)
    if key.startswith("train.phases."):
        argv = ["--train.phases", f"[{{epochs: 3}}, {{{field}: {value}}}]"]
        expected = expected.replace("train.phases.", "train.phases[1].")
    assert refusal(lambda: parsed(*argv)).startswith(expected)


@pytest.mark.parametrize("key", [key for key in CHOICES if not key.startswith("ingest.")])
def test_a_misspelt_name_in_a_saved_model_is_refused(key: str) -> None:
    *path, field = key.split(".")
    values = plain(asdict(ScamacConfig()))
    part = values
    for name in path:
        part = part[name]
    name, wrong = misspelt(key)
    expected = words(key, name, wrong)
    if isinstance(part, list):
        part, expected = part[0], expected.replace("train.phases.", "train.phases[0].")
    part[field] = [wrong] if isinstance(part[field], list) else wrong
    assert refusal(lambda: config_from_dict(values)) == expected


@pytest.mark.parametrize("value", [3, None, True, ["host"], {"host": 1}])
def test_what_is_no_name_is_refused(value: Any) -> None:
    assert f"loader.cache={value!r} is not known" in refusal(lambda: LoaderConfig(cache=value))


def test_one_name_where_a_list_is_needed_says_so() -> None:
    scales: Any = "hidden"
    assert "it takes a list of names, such as [hidden]" in refusal(lambda: ModelConfig(scales=scales))


def test_every_known_name_is_taken() -> None:
    for config, field, hint in CHOICES.values():
        for name in names_of(hint):
            config(**{field: (name,) if get_origin(hint) is tuple else name})
