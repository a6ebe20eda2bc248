"""The fitted model on disk: safetensors and JSON, all that inference needs, readable without lightning.

It is sealed: model.json has the SHA-256 of the tensors, and one of its own text. So a model that is read is bit for bit the one that
was written, or one that somebody has sealed again; what could make sense of neither is refused.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from scamac_scale.cells.genes import GeneSpace
from scamac_scale.config import ScamacConfig, config_from_dict
from scamac_scale.durable.atomic import atomic_folder, writing
from scamac_scale.durable.digests import sha256_of
from scamac_scale.durable.foreign import at_home
from scamac_scale.durable.plain import (
    check_seal,
    digest_of_file,
    parse_json,
    read_json,
    read_plain,
    sealed,
    size_of_plain,
)
from scamac_scale.errors import InputError, OutputError
from scamac_scale.ops.fuzzy import Clusters
from scamac_scale.ops.tree import Tree, check_tree
from scamac_scale.remote.copies import fetched
from scamac_scale.remote.place import is_url, parse

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import torch

    from scamac_scale.nn.model import ScamacNetwork
    from scamac_scale.remote.place import BucketPlace

FORMAT = "scamac_scale model"
VERSION = 7
READABLE = (5, 6, 7)
"""Versions that are read; one of 5 has no tree, one of 6 no ``input.target_share``. A setting that is added makes a new one."""
WEIGHTS_FILE = "model.safetensors"
DESCRIPTION_FILE = "model.json"
TREE = ("tree.merges", "tree.weights", "tree.latent")
"""Tensors of the tree: (M - 1, 4) and (M,) float64, (M, D) float32; all or none of them."""
_REMAKE = "put a sound copy there, or train again"


@dataclass
class FittedModel:
    """All that inference needs.

    Attributes
    ----------
    network
        With its input scale, bank and frozen channel product, in evaluation mode.
    clusters
        Centers (K, D) float32, with the temperature of the memberships.
    genes
        How raw values become input.
    config
        Of the run.
    provenance
        Versions, commit and what the fit reports; plain data.
    tech_levels
        Columns of obs that told the technical batches, with their levels in the order of their numbers; empty where neither a correction nor the decoder knows them.
    cells_digest
        Of the cells of the fit, by `sources.cells_digest`; empty where it was not asked for.
    tree
        Of the landmarks, by which the clusters are numbered and can be cut anew; None where they are not of a tree, or an earlier version wrote
        the model.
    landmarks
        (M, D) latents of the landmarks of the tree, float32.
    """

    network: ScamacNetwork
    clusters: Clusters
    genes: GeneSpace
    config: ScamacConfig
    provenance: dict[str, Any]
    tech_levels: dict[str, tuple[str, ...]] = field(default_factory=dict)
    cells_digest: str = ""
    tree: Tree | None = None
    landmarks: torch.Tensor | None = None

    @property
    def n_clusters(self) -> int:
        """Clusters K."""
        return len(self.clusters)

    def to(self, device: torch.device | str) -> None:
        """Move network and clusters to a device."""
        self.network.to(device)
        self.clusters = self.clusters.to(device)


@contextmanager
def on_gpu(model: FittedModel) -> Iterator[None]:
    """Lend a model to the GPU, where there is one and its settings allow it."""
    import torch

    if model.config.train.accelerator == "cpu" or not torch.cuda.is_available():
        yield
        return
    model.to("cuda")
    try:
        yield
    finally:
        model.to("cpu")


def save_model(model: FittedModel, path: str | Path) -> Path:
    """Write a model folder, all or nothing.

    Parameters
    ----------
    model
        What to write.
    path
        The folder; must not exist, or be a model folder, which is replaced.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    OutputError
        If the folder holds anything else, also the model of another program, or cannot be written.
    """
    from safetensors.torch import save

    if is_url(path):
        raise OutputError(f"{path}: a model is saved on a disk; fit with run={path!r}, or copy the folder there.")
    path = at_home(path)
    if (path / DESCRIPTION_FILE).is_file() and not _is_ours(path / DESCRIPTION_FILE):
        raise OutputError(
            f"{path / DESCRIPTION_FILE} was not written by this program, so {path} is not replaced; choose another folder."
        )
    tensors = {name: tensor.cpu().contiguous() for name, tensor in model.network.state_dict().items()}
    tensors["centers"] = model.clusters.centers.cpu().contiguous()
    tensors |= _tensors_of_tree(model)
    weights = save(tensors)  # save_file tells of a full disk by an error of its own
    description = {
        "format": FORMAT,
        "version": VERSION,
        "n_clusters": model.n_clusters,
        "temperature": model.clusters.temperature,
        "genes": model.genes.to_dict(has_input=True),
        "config": asdict(model.config),
        "tech_levels": model.tech_levels,
        "provenance": model.provenance,
        "cells_digest": model.cells_digest,
        "weights": {"bytes": len(weights), "sha256": sha256_of(weights)},
    }
    with atomic_folder(path, overwrite=True, marker=DESCRIPTION_FILE) as partial, writing(path):
        (partial / WEIGHTS_FILE).write_bytes(weights)
        (partial / DESCRIPTION_FILE).write_text(sealed(description))
    return path


def _tensors_of_tree(model: FittedModel) -> dict[str, torch.Tensor]:
    import torch

    if model.tree is None or model.landmarks is None:
        return {}
    found = (torch.from_numpy(model.tree.merges), torch.from_numpy(model.tree.weights), model.landmarks)
    return {name: tensor.cpu().contiguous() for name, tensor in zip(TREE, found, strict=True)}


def load_model(path: str | Path) -> FittedModel:
    """Read a model folder.

    Parameters
    ----------
    path
        Written by `save_model`; or a URL of such a folder, such as ``s3://bucket/runs/1/model``, of which a local copy is kept by etag.

    Returns
    -------
    FittedModel
        On the CPU.

    Raises
    ------
    InputError
        If the folder is no model, is not what was written, or was written by another version.

    Notes
    -----
    No link, pipe or device is followed or opened. Of a model that was changed and sealed again, types, shapes and ranges are checked.
    """
    if is_url(path):
        return _load_fetched(parse(path))
    path = at_home(path)
    if path.is_symlink():
        raise InputError(f"{path} is a link; name the model folder that it leads to.")
    description = _read_description(path)
    tensors = _read_weights(path, description)
    try:
        return _rebuild(description, tensors)
    except KeyError as error:
        raise InputError(f"{path} is damaged: it lacks {error}; train again.") from error
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise InputError(f"{path} is damaged: {error}; train again.") from error


def _load_fetched(place: BucketPlace) -> FittedModel:
    copy = fetched(place, (WEIGHTS_FILE, DESCRIPTION_FILE), "model")
    try:
        return load_model(copy)
    except InputError as error:  # of what lies there: the copy has its bytes
        raise InputError(str(error).replace(str(copy), str(place))) from error


def _is_ours(path: Path) -> bool:
    """Tell whether a file is the description of a model, of any version."""
    try:
        return read_json(path, is_finite=False).get("format") == FORMAT
    except (OSError, ValueError):
        return False


def _read_description(path: Path) -> dict[str, Any]:
    file = path / DESCRIPTION_FILE
    try:
        raw = read_plain(file)
        description = parse_json(raw, is_finite=False)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{file} is not that of a readable model ({error}); name the `model` folder of a run."
        ) from error
    kind, version = description.get("format"), description.get("version")
    if kind != FORMAT or version not in READABLE or type(version) is not int:
        raise InputError(
            f"{file} is of {str(kind)[:40]!r} version {str(version)[:40]}; this program reads {FORMAT!r} version "
            f"{READABLE[0]} to {READABLE[-1]}: train again, or use the version that wrote it."
        )
    try:
        return check_seal(raw.decode(), description)
    except ValueError as error:
        raise InputError(f"{file} is damaged: {error}; {_REMAKE}.") from error


def _read_weights(path: Path, description: dict[str, Any]) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file, about = path / WEIGHTS_FILE, description.get("weights")
    try:
        if not isinstance(about, dict):
            raise ValueError(f"{DESCRIPTION_FILE} says nothing of it")
        if (size := size_of_plain(file)) != about.get("bytes"):
            raise ValueError(f"it is not what was written ({size:,} bytes, not {about.get('bytes')})")
        if digest_of_file(file) != about.get("sha256"):
            raise ValueError(f"it is not what was written (wrong SHA-256 in {DESCRIPTION_FILE})")
        tensors: dict[str, torch.Tensor] = load_file(file)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{file} is damaged: {error}; {_REMAKE}.") from error
    return tensors


def _rebuild(description: dict[str, Any], tensors: dict[str, torch.Tensor]) -> FittedModel:
    """Put the model together; what does not fit is a KeyError, TypeError, ValueError, AttributeError or RuntimeError."""
    import torch

    from scamac_scale.nn.correction import correction_for
    from scamac_scale.nn.model import ScamacNetwork

    config = config_from_dict(description["config"], is_partial=description["version"] < VERSION)
    genes = GeneSpace.from_dict(description["genes"])
    centers = tensors.pop("centers")
    tree, landmarks = _tree_of({name: tensors.pop(name) for name in TREE if name in tensors}, centers)
    model = replace(config.model, bank_cells=len(tensors["bank_cells"]))
    tech_levels = _levels_of(description["tech_levels"])
    with torch.device("meta"):  # shapes only: nothing is drawn, and no memory is asked for before they are known to fit
        network = ScamacNetwork(
            len(genes.chosen), model, config.input, [len(levels) for levels in tech_levels.values()]
        )
        network.correction = correction_for(tensors, config.correction.sigma)
    expected: dict[str, torch.Tensor] = network.state_dict()
    _check_shapes(expected, tensors)
    _check_numbers(expected, {**tensors, "centers": centers})
    if type(description["n_clusters"]) is not int or centers.shape != (description["n_clusters"], model.latent_width):
        raise ValueError(
            f"centers came with shape {tuple(centers.shape)}, the description says {description['n_clusters']} clusters "
            f"of width {model.latent_width}"
        )
    temperature, provenance, digest = (description[name] for name in ("temperature", "provenance", "cells_digest"))
    if isinstance(temperature, bool) or not (isinstance(temperature, int | float) and 0 < temperature < float("inf")):
        raise ValueError(f"temperature={temperature!r}, expected a positive number")
    versions = provenance["versions"]
    if not (isinstance(versions, dict) and all(isinstance(version, str) for version in versions.values())):
        raise TypeError("versions must be names with their versions")
    if not (isinstance(provenance["is_count_estimated"], bool) and isinstance(digest, str)):
        raise TypeError("is_count_estimated must be true or false, cells_digest text")
    _check_correction(network, tech_levels)
    network.to_empty(device="cpu").load_state_dict(tensors)
    clusters = Clusters(centers, temperature, config.loss.epsilon)
    network.eval()
    return FittedModel(network, clusters, genes, config, provenance, tech_levels, digest, tree, landmarks)


def _tree_of(tensors: dict[str, torch.Tensor], centers: torch.Tensor) -> tuple[Tree, torch.Tensor] | tuple[None, None]:
    """Put the tree together, if there is one; what is none is a KeyError or a ValueError."""
    import torch

    if not tensors:
        return None, None
    merges, weights, latent = (tensors[name] for name in TREE)
    types = [tensor.dtype for tensor in (merges, weights, latent)]
    if types != [torch.float64, torch.float64, torch.float32]:
        raise ValueError(f"{WEIGHTS_FILE} holds the tree as {', '.join(map(str, types))}")
    if latent.shape != (len(weights), *centers.shape[1:]) or not bool(latent.isfinite().all()):
        raise ValueError(f"the landmarks of the tree came with shape {tuple(latent.shape)}, or are not finite")
    tree = Tree(merges.numpy(), weights.numpy())
    check_tree(tree.merges, tree.weights)
    if len(centers) > len(tree):
        raise ValueError(f"the tree has {len(tree)} landmarks, the description says {len(centers)} clusters")
    return tree, latent


def _levels_of(columns: dict[str, list[str]]) -> dict[str, tuple[str, ...]]:
    for name, levels in columns.items():
        is_list = isinstance(levels, list) and all(isinstance(level, str) for level in levels)
        if not is_list or not levels or len(set(levels)) != len(levels):
            raise ValueError(
                f"tech_levels of {name!r} are {str(levels)[:80]}, expected a list of names that are unlike"
            )
    return {name: tuple(levels) for name, levels in columns.items()}


def _check_correction(network: ScamacNetwork, tech_levels: dict[str, tuple[str, ...]]) -> None:
    n_levels = sum(map(len, tech_levels.values()))
    found = 0 if network.correction is None else network.correction.beta.shape[1]
    is_told_only = network.correction is None and network.autoencoder.condition is not None
    if found != n_levels and not is_told_only:
        raise ValueError(f"the correction has {found} technical batches, the description says {n_levels}")
    n_genes = len(network.gene_mean)
    if network.correction is not None and len(network.correction.axes) != n_genes:
        raise ValueError(f"the correction is of {len(network.correction.axes)} genes, the description says {n_genes}")


def _check_shapes(expected: dict[str, torch.Tensor], tensors: dict[str, torch.Tensor]) -> None:
    differences = [f"no {name}" for name in expected if name not in tensors]
    differences += [f"{name[:80]}, which is of no part" for name in tensors if name not in expected]
    differences += [
        f"{name} of shape {tuple(tensors[name].shape)} rather than {tuple(part.shape)}"
        for name, part in expected.items()
        if name in tensors and tensors[name].shape != part.shape
    ]
    if differences:
        more = f" and {len(differences) - 3} more differences" if len(differences) > 3 else ""
        raise ValueError(f"{WEIGHTS_FILE} holds {', '.join(differences[:3])}{more}")


_POSITIVE, _NOT_NEGATIVE = ("input_scale",), ("correction.sizes",)


def _check_numbers(expected: dict[str, torch.Tensor], tensors: dict[str, torch.Tensor]) -> None:
    """Refuse numbers that no fit leaves: of another type, not finite, or negative where that means nothing."""
    for name, tensor in tensors.items():
        dtype = expected["gene_mean" if name == "centers" else name].dtype
        if tensor.dtype != dtype:
            raise ValueError(f"{WEIGHTS_FILE} holds {name} as {tensor.dtype} rather than {dtype}")
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{WEIGHTS_FILE} holds numbers in {name} that are not finite")
        if name in _POSITIVE and not bool((tensor > 0).all()):
            raise ValueError(f"{WEIGHTS_FILE} holds numbers in {name} that are not positive")
        if name in _NOT_NEGATIVE and not bool((tensor >= 0).all()):
            raise ValueError(f"{WEIGHTS_FILE} holds numbers in {name} that are negative")
