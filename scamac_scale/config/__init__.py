"""Every setting of the program: frozen dataclasses, one per part.

A config is data: numbers, names and booleans. Names of choices are keys of the dicts that list them (``SPATIAL_FORMS``,
``STARTS`` and so on), which report an unknown name together with the known ones. Nothing here imports torch, so that the
command line can read these classes at once. The defaults are the recipe for all data; ``configs/paper.yaml`` holds the
sizes and readings of the paper.
"""

from scamac_scale.config.data import IngestConfig, InputConfig, LoaderConfig
from scamac_scale.config.model import LossConfig, ModelConfig
from scamac_scale.config.run import ScamacConfig, config_from_dict
from scamac_scale.config.training import PhaseConfig, StartConfig, TrainConfig

__all__ = [
    "IngestConfig",
    "InputConfig",
    "LoaderConfig",
    "LossConfig",
    "ModelConfig",
    "PhaseConfig",
    "ScamacConfig",
    "StartConfig",
    "TrainConfig",
    "config_from_dict",
]
