"""The names that a setting may take, each declared once, and the check that refuses any other.

What a name stands for is a plain dict of the same names at its home (``ops``, ``losses``, ``train``, ...);
``tests/test_choices.py`` holds the two equal. The parser of the command line, its help and mypy read the names here.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from scamac_scale.errors import ConfigError, unknown_name

# ingest
Kind = Literal["auto", "counts", "linear", "log"]
Profile = Literal["fast", "small"]
Join = Literal["inner", "outer"]
Flavor = Literal["seurat", "cell_ranger", "seurat_v3", "seurat_v3_paper", "pearson_residuals"]
# technical batches
Corrected = Literal["input", "none"]
# model
Activation = Literal["leaky_relu", "linear"]
Scale = Literal["encoding", "hidden", "decoding"]
SpatialForm = Literal["landmark", "batch"]
ChannelForm = Literal["atlas", "batch"]
Fusion = Literal["residual", "gated_sum"]
DecoderCondition = Literal["none", "bias", "one_hot", "embedding"]
# loss
Reconstruction = Literal["mean", "sum_genes", "poisson"]
COUNT_LOSSES = frozenset({"poisson"})
"""Reconstructions whose target are counts, and for which the output of the network are the logits of a profile."""
Clustering = Literal["mean", "sum"]
Similarity = Literal["atlas", "batch", "off"]
SimilarityTarget = Literal["consensus", "membership"]
SimilarityForm = Literal["auto", "direct", "gram"]
SimilarityScaling = Literal["pairs", "paper"]
Temperature = Literal["relative", "absolute"]
# start
Count = int | Literal["auto"]
Selection = Literal["random", "kmeans"]
WeightStart = Literal["pca", "kaiming", "identity"]
CenterStart = Literal["consensus", "ward", "kmeans", "faiss_kmeans", "random"]
# loader
Cache = Literal["auto", "none", "host", "device"]
Densify = Literal["auto", "host", "device"]
# train
Term = Literal["reconstruction", "layers", "similarity", "clustering"]
Optimizer = Literal["adamw", "adam", "sgd"]
Schedule = Literal["constant", "cosine"]
Accelerator = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "32-true", "bf16-mixed"]
Sums = Literal["blocks", "ranks"]
# predict
Attention = Literal["trained", "atlas"]
Accept = Literal["values", "totals", "versions"]
# markers
MarkerTest = Literal["t-test", "t-test_overestim_var"]
# report
Layout = Literal["umap", "tsne"]

_WORDS: dict[type, str] = {int: "a whole number", float: "a number", bool: "true or false", NoneType: "null"}

Hint = Any
"""What type hints are; mypy has no type for them."""


def require(holds: bool, message: str) -> None:
    """Refuse settings for which something does not hold."""
    if not holds:
        raise ConfigError(message)


def check_names(config: Any, prefix: str = "") -> None:
    """Refuse a name that a field of a config dataclass does not know.

    Parameters
    ----------
    config
        Instance of a config dataclass, of any class.
    prefix
        Under which its fields stand, with its dot.

    Raises
    ------
    ConfigError
        Naming the key, the known names and the nearest one.
    """
    kind: type = type(config)
    for name, hint in type_hints(kind).items():
        value = whole(getattr(config, name)) if _takes_whole(hint) else getattr(config, name)
        if value is not getattr(config, name):
            object.__setattr__(config, name, value)
        check_value(hint, value, prefix + name)
        require(
            not (_takes_whole(hint) and isinstance(value, float)),
            f"{prefix}{name}={value}; it must be a whole number (in R, write 4L for 4).",
        )


def whole(value: Any) -> Any:  # Any: what is no number is left for the settings to refuse
    """Turn whole numbers of other types (8.0 as it comes from R, NumPy's) into Python's; the rest is as it was."""
    if isinstance(value, bool) or type(value) is int:
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    return operator.index(value) if hasattr(value, "__index__") else value


def joined_key(key: str | Sequence[str] | None) -> str | None:
    """Write columns as the settings have them: with commas between them."""
    return key if key is None or isinstance(key, str) else ",".join(key)


def _takes_whole(hint: Hint) -> bool:
    """Whether a field holds a whole number, perhaps among others, and no fraction."""
    kinds = get_args(hint) if _origin(hint) in (Union, UnionType) else (hint,)
    return int in kinds and float not in kinds


def check_value(hint: Hint, value: object, key: str) -> None:
    """Refuse a name that a type does not list.

    Parameters
    ----------
    hint
        Type of a field. A Literal is looked at, also in a tuple, in a union, or in the fields of a dataclass.
    value
        An instance, or plain data as it comes from YAML and JSON.
    key
        Of the value, with its dots, for the message.

    Raises
    ------
    ConfigError
        Naming the key, the known names and the nearest one.
    """
    parts, origin = get_args(hint), _origin(hint)
    if origin is Literal:
        if value not in parts:
            raise unknown_name(parts, value, key)
    elif origin in (Union, UnionType):
        _check_union(parts, value, key)
    elif origin is tuple:
        _check_items(parts[0], value, key)
    elif is_dataclass(hint) and isinstance(hint, type) and isinstance(value, Mapping):
        for name, part in type_hints(hint).items():
            if name in value:
                check_value(part, value[name], f"{key}.{name}" if key else name)


def _check_items(hint: Hint, value: object, key: str) -> None:
    is_names = _origin(hint) is Literal
    if isinstance(value, list | tuple):
        for index, item in enumerate(value):
            check_value(hint, item, key if is_names else f"{key}[{index}]")
    elif is_names:
        if value not in get_args(hint):
            raise unknown_name(get_args(hint), value, key)
        raise ConfigError(f"{key}={value!r}; it takes a list of names, such as [{value}].")


def _check_union(hints: tuple[Hint, ...], value: object, key: str) -> None:
    """Of names and other types; unions without names have nothing to look at."""
    names = [name for hint in hints if _origin(hint) is Literal for name in get_args(hint)]
    kinds = [hint for hint in hints if _origin(hint) is not Literal]
    if names and value not in names and type(value) not in kinds:
        words = [*(_WORDS[kind] for kind in kinds), *map(repr, names)]
        raise ConfigError(f"{key}={value!r}; it must be {' or '.join(words)}.")


def _origin(hint: Hint) -> Hint:
    return get_origin(hint)


@cache
def type_hints(config: type) -> dict[str, Hint]:
    """Types of the fields of a config dataclass, by name."""
    return get_type_hints(config)
