"""Checkpoints of the public implementations, and one way to load any checkpoint for evaluation.

Official TRM and ETRM reference: a file ``step_<n>`` without extension, a plain mapping name →
tensor, with ``all_config.yaml`` beside it. With EMA on it holds averaged parameters and raw buffers
(puzzle table, initial states).
"""

from trainable.foreign.files import WeightsFile, open_weights, read_identifiers
from trainable.foreign.load import LoadedModel, fit_identifiers, load_model
from trainable.foreign.settings import Settings, read_settings

__all__ = [
    "LoadedModel",
    "Settings",
    "WeightsFile",
    "fit_identifiers",
    "load_model",
    "open_weights",
    "read_identifiers",
    "read_settings",
]
