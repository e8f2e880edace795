"""Selective Synchronization Attention for PyTorch: tokens are oscillators, pairs that phase-lock attend."""

from syncattn import backends, locking, nn
from syncattn.backends import use_backend
from syncattn.functional import order_parameter, selective_synchronization_attention

__version__ = "0.1.0"
__all__ = [
    "backends",
    "locking",
    "nn",
    "order_parameter",
    "selective_synchronization_attention",
    "use_backend",
]
