"""Selective Synchronization Attention for PyTorch: tokens are oscillators, pairs that phase-lock attend."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from syncattn.starting import let_waiting_threads_sleep

if TYPE_CHECKING:
    from syncattn import backends, locking, nn
    from syncattn.backends import use_backend
    from syncattn.explorer import explore
    from syncattn.functional import order_parameter, selective_synchronization_attention
    from syncattn.packing import cu_seqlens_of, sequence_ids_of

__version__ = "0.2.0"
__all__ = [
    "backends",
    "cu_seqlens_of",
    "explore",
    "locking",
    "nn",
    "order_parameter",
    "selective_synchronization_attention",
    "sequence_ids_of",
    "use_backend",
]
_MODULE_OF = {
    "cu_seqlens_of": "syncattn.packing",
    "explore": "syncattn.explorer",
    "order_parameter": "syncattn.functional",
    "selective_synchronization_attention": "syncattn.functional",
    "sequence_ids_of": "syncattn.packing",
    "use_backend": "syncattn.backends",
}
"""Where what is no module itself is defined."""

let_waiting_threads_sleep()  # before anything below imports PyTorch


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: the command line speaks before PyTorch is there."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _MODULE_OF:
        found = getattr(import_module(_MODULE_OF[name]), name)
    else:
        found = import_module(f"{__name__}.{name}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
