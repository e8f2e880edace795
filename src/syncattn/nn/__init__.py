"""Layers: frequencies, attention, a block, and their calibration."""

from syncattn.nn.attention import SelectiveSynchronizationAttention
from syncattn.nn.block import OSNBlock
from syncattn.nn.calibration import calibrate, count_locked, limit_density_, locked_density
from syncattn.nn.frequency import Frequency
from syncattn.nn.presets import preset
from syncattn.nn.state import IncrementalState
from syncattn.nn.widening import widen_

__all__ = [
    "Frequency",
    "IncrementalState",
    "OSNBlock",
    "SelectiveSynchronizationAttention",
    "calibrate",
    "count_locked",
    "limit_density_",
    "locked_density",
    "preset",
    "widen_",
]
