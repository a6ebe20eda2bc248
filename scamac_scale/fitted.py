"""The fitted model on disk: safetensors and JSON, all that inference needs, readable without lightning."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from scamac_scale.cells.genes import GeneSpace
from scamac_scale.config import ScamacConfig, config_from_dict
from scamac_scale.durable.atomic import atomic_folder, writing
from scamac_scale.durable.foreign import at_home
from scamac_scale.errors import InputError, OutputError
from scamac_scale.ops.fuzzy import Clusters

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from scamac_scale.nn.model import ScamacNetwork

FORMAT = "scamac_scale model"
VERSION = 4
WEIGHTS_FILE = "model.safetensors"
DESCRIPTION_FILE = "model.json"


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
    """

    network: ScamacNetwork
    clusters: Clusters
    genes: GeneSpace
    config: ScamacConfig
    provenance: dict[str, Any]
    tech_levels: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def n_clusters(self) -> int:
        """Clusters K."""
        return len(self.clusters)

    def to(self, device: torch.device | str) -> None:
        """Move network and clusters to a device."""
        self.network.to(device)
        self.clusters = self.clusters.to(device)


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

    path = at_home(path)
    if (path / DESCRIPTION_FILE).is_file() and not _is_ours(path / DESCRIPTION_FILE):
        raise OutputError(
            f"{path / DESCRIPTION_FILE} was not written by this program, so {path} is not replaced; choose another folder."
        )
    tensors = {name: tensor.cpu().contiguous() for name, tensor in model.network.state_dict().items()}
    tensors["centers"] = model.clusters.centers.cpu().contiguous()
    description = {
        "format": FORMAT,
        "version": VERSION,
        "n_clusters": model.n_clusters,
        "temperature": model.clusters.temperature,
        "genes": model.genes.to_dict(),
        "config": asdict(model.config),
        "tech_levels": model.tech_levels,
        "provenance": model.provenance,
    }
    with atomic_folder(path, overwrite=True, marker=DESCRIPTION_FILE) as partial, writing(path):
        (partial / WEIGHTS_FILE).write_bytes(save(tensors))  # save_file tells of a full disk by an error of its own
        (partial / DESCRIPTION_FILE).write_text(json.dumps(description, indent=1) + "\n")
    return path


def load_model(path: str | Path) -> FittedModel:
    """Read a model folder.

    Parameters
    ----------
    path
        Written by `save_model`.

    Returns
    -------
    FittedModel
        On the CPU.

    Raises
    ------
    InputError
        If the folder is no model, is damaged, or was written by a later version.
    """
    path = at_home(path)
    description, tensors = _read(path)
    try:
        return _rebuild(description, tensors)
    except KeyError as error:
        raise InputError(f"{path} is damaged: it lacks {error}; train again.") from error
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise InputError(f"{path} is damaged: {error}; train again.") from error


def _is_ours(path: Path) -> bool:
    """Tell whether a file is the description of a model, of any version."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        description = json.loads((path / DESCRIPTION_FILE).read_text(encoding="utf-8"))
        tensors: dict[str, torch.Tensor] = load_file(path / WEIGHTS_FILE)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(
            f"{path} does not hold a readable model ({error}); name the `model` folder of a run."
        ) from error
    if not isinstance(description, dict):
        raise InputError(
            f"{path / DESCRIPTION_FILE} was not written by this program; name the `model` folder of a run."
        )
    if description.get("format") != FORMAT or description.get("version") != VERSION:
        raise InputError(
            f"{path} holds {description.get('format')!r} version {description.get('version')!r}; "
            f"this program reads {FORMAT!r} version {VERSION}."
        )
    return description, tensors


def _rebuild(description: dict[str, Any], tensors: dict[str, torch.Tensor]) -> FittedModel:
    """Put the model together; what does not fit is a KeyError, TypeError, ValueError, AttributeError or RuntimeError."""
    import torch

    from scamac_scale.nn.correction import correction_for
    from scamac_scale.nn.model import ScamacNetwork

    config = config_from_dict(description["config"])
    genes = GeneSpace.from_dict(description["genes"])
    centers = tensors.pop("centers")
    model = replace(config.model, bank_cells=len(tensors["bank_cells"]))
    tech_levels = _levels_of(description["tech_levels"])
    with torch.device("meta"):  # shapes only: nothing is drawn, and no memory is asked for before they are known to fit
        network = ScamacNetwork(
            len(genes.chosen), model, config.input, [len(levels) for levels in tech_levels.values()]
        )
    network.correction = correction_for(tensors, config.correction.sigma)
    _check_shapes({name: tensor.shape for name, tensor in network.state_dict().items()}, tensors)
    if centers.shape != (description["n_clusters"], model.latent_width):
        raise ValueError(
            f"centers came with shape {tuple(centers.shape)}, the description says {description['n_clusters']} clusters "
            f"of width {model.latent_width}"
        )
    temperature, provenance = description["temperature"], description["provenance"]
    if not (isinstance(temperature, int | float) and 0 < temperature < float("inf")):
        raise ValueError(f"temperature={temperature!r}, expected a positive number")
    if not (isinstance(provenance["versions"], dict) and isinstance(provenance["is_count_estimated"], bool)):
        raise TypeError("versions must be names with their versions, is_count_estimated true or false")
    _check_correction(network, tech_levels)
    network.to_empty(device="cpu").load_state_dict(tensors)
    clusters = Clusters(centers, temperature, config.loss.epsilon)
    return FittedModel(network.eval(), clusters, genes, config, provenance, tech_levels)


def _levels_of(columns: dict[str, list[str]]) -> dict[str, tuple[str, ...]]:
    for name, levels in columns.items():
        if not isinstance(levels, list) or len({str(level) for level in levels}) != len(levels):
            raise ValueError(f"tech_levels of {name!r} are {levels!r}, expected a list of names that are unlike")
    return {name: tuple(map(str, levels)) for name, levels in columns.items()}


def _check_correction(network: ScamacNetwork, tech_levels: dict[str, tuple[str, ...]]) -> None:
    n_levels = sum(map(len, tech_levels.values()))
    found = 0 if network.correction is None else network.correction.beta.shape[1]
    is_told_only = network.correction is None and network.autoencoder.condition is not None
    if found != n_levels and not is_told_only:
        raise ValueError(f"the correction has {found} technical batches, the description says {n_levels}")
    n_genes = len(network.gene_mean)
    if network.correction is not None and len(network.correction.axes) != n_genes:
        raise ValueError(f"the correction is of {len(network.correction.axes)} genes, the description says {n_genes}")


def _check_shapes(expected: dict[str, torch.Size], tensors: dict[str, torch.Tensor]) -> None:
    differences = [f"no {name}" for name in expected if name not in tensors]
    differences += [f"{name}, which is of no part" for name in tensors if name not in expected]
    differences += [
        f"{name} of shape {tuple(tensors[name].shape)} rather than {tuple(shape)}"
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape
    ]
    if differences:
        more = f" and {len(differences) - 3} more differences" if len(differences) > 3 else ""
        raise ValueError(f"{WEIGHTS_FILE} holds {', '.join(differences[:3])}{more}")
