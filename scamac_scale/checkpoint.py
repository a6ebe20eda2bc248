"""The fitted model on disk: safetensors and JSON, all that inference needs, readable without lightning."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scamac_scale.atomic import atomic_folder, writing
from scamac_scale.config import ScamacConfig, config_from_dict
from scamac_scale.errors import InputError
from scamac_scale.genes import GeneSpace

if TYPE_CHECKING:
    import torch

    from scamac_scale.nn.model import ScamacNetwork

FORMAT = "scamac_scale model"
VERSION = 1
WEIGHTS_FILE = "model.safetensors"
DESCRIPTION_FILE = "model.json"


@dataclass
class FittedModel:
    """All that inference needs.

    Attributes
    ----------
    network
        With its input scale, bank and frozen channel product, in evaluation mode.
    centers
        (K, D) float32.
    temperature
        Of Eq. (14), latent units.
    genes
        How raw values become input.
    config
        Of the run.
    provenance
        Versions, commit and what the fit reports; plain data.
    """

    network: ScamacNetwork
    centers: torch.Tensor
    temperature: float
    genes: GeneSpace
    config: ScamacConfig
    provenance: dict[str, Any]

    @property
    def n_clusters(self) -> int:
        """Clusters K."""
        return len(self.centers)


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
        If the folder holds anything else, or cannot be written.
    """
    from safetensors.torch import save_file

    path = Path(path)
    tensors = {name: tensor.cpu().contiguous() for name, tensor in model.network.state_dict().items()}
    tensors["centers"] = model.centers.cpu().contiguous()
    description = {
        "format": FORMAT,
        "version": VERSION,
        "n_clusters": model.n_clusters,
        "temperature": model.temperature,
        "genes": model.genes.to_dict(),
        "config": asdict(model.config),
        "provenance": model.provenance,
    }
    with atomic_folder(path, overwrite=True, marker=DESCRIPTION_FILE) as partial, writing(path):
        save_file(tensors, partial / WEIGHTS_FILE)
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
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from scamac_scale.nn.model import ScamacNetwork

    path = Path(path)
    try:
        description = json.loads((path / DESCRIPTION_FILE).read_text())
        tensors = load_file(path / WEIGHTS_FILE)
    except (OSError, json.JSONDecodeError, SafetensorError) as error:
        raise InputError(
            f"{path} does not hold a readable model ({error}); name the `model` folder of a run."
        ) from error
    if description.get("format") != FORMAT or description.get("version") != VERSION:
        raise InputError(
            f"{path} holds {description.get('format')!r} version {description.get('version')!r}; "
            f"this program reads {FORMAT!r} version {VERSION}."
        )
    config = config_from_dict(description["config"])
    genes = GeneSpace.from_dict(description["genes"])
    centers = tensors.pop("centers")
    model = replace(config.model, bank_cells=len(tensors["bank_cells"]))
    network = ScamacNetwork(len(genes.chosen), model, config.input)
    network.load_state_dict(tensors)
    network.eval()
    return FittedModel(network, centers, description["temperature"], genes, config, description["provenance"])
