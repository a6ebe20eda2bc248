"""Every setting of the program: frozen dataclasses, one per part.

A config is data: numbers, names and booleans. The names that a field may take stand in its type, see ``choices.py``; another
one is refused, together with the nearest known one, when the dataclass is made. Nothing here imports torch, so that the
command line can read these classes at once. The defaults are the recipe for all data; ``configs/paper.yaml`` holds the
sizes and readings of the paper.
"""

from scamac_scale.config.choices import (
    Accept,
    Attention,
    Count,
    Layout,
    MarkerTest,
    check_value,
    joined_key,
    type_hints,
    whole,
)
from scamac_scale.config.correction import CorrectionConfig
from scamac_scale.config.data import IngestConfig, InputConfig, LoaderConfig
from scamac_scale.config.model import LossConfig, ModelConfig
from scamac_scale.config.run import ScamacConfig, config_from_dict
from scamac_scale.config.training import PhaseConfig, StartConfig, TrainConfig

__all__ = [
    "Accept",
    "Attention",
    "CorrectionConfig",
    "Count",
    "IngestConfig",
    "InputConfig",
    "Layout",
    "LoaderConfig",
    "LossConfig",
    "MarkerTest",
    "ModelConfig",
    "PhaseConfig",
    "ScamacConfig",
    "StartConfig",
    "TrainConfig",
    "check_value",
    "config_from_dict",
    "joined_key",
    "type_hints",
    "whole",
]
