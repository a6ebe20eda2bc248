"""The public face: cluster files by one call; fit, predict, save and load a model; ingest, simulate, resample, refine, evaluate and inspect files, find markers, write reports."""

from scamac_scale.api.clustering import cluster
from scamac_scale.api.files import evaluate, ingest, inspect
from scamac_scale.api.marker_genes import markers
from scamac_scale.api.model import ScAMAC
from scamac_scale.api.progress import reports
from scamac_scale.api.refining import refine
from scamac_scale.api.reporting import report
from scamac_scale.simulation import drawn, resampled

simulate, resample = reports(drawn.simulate), reports(resampled.resample)

__all__ = ["ScAMAC", "cluster", "evaluate", "ingest", "inspect", "markers", "refine", "report", "resample", "simulate"]
