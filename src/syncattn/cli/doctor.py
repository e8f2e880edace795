"""The command `syncattn doctor`: works with PyTorch alone, for those whose install is not complete."""

from __future__ import annotations

from collections.abc import Mapping

from syncattn.starting import how_threads_wait, loading
from syncattn.terminal import fold, width


def doctor_command() -> None:
    """Show versions, devices, and which backends can run here."""
    with loading():
        report()


def report() -> None:
    """Print what `syncattn doctor` shows, folded where stdout is a terminal."""
    import torch

    from syncattn.backends import availability, explain
    from syncattn.backends.cpu.library import instances
    from syncattn.training.environment import machine, versions

    columns = width()
    _show("versions", versions(), columns)
    found = {name: ", ".join(x) or "none" if isinstance(x, list) else str(x) for name, x in machine().items()}
    _show("machine", found | {"waiting threads": how_threads_wait()}, columns)
    reasons = {name: f"no: {reason}" if reason else "yes" for name, reason in availability().items()}
    _show("backends that can run here", reasons, columns)
    lines = [f"the cpu kernel uses {name} instructions" for name in instances()[-1:]]
    for device in ["cpu"] + ["cuda"] * torch.cuda.is_available():
        tokens, head = torch.ones(1, 1, 32, 16, device=device), torch.ones(1, device=device)
        chosen = explain(
            tokens, tokens, tokens, head, head, is_causal=True, self_coupling=False, frame="nearest", power=2
        )
        lines += f"a causal layer on {device} uses {chosen}".splitlines()
    for line in lines:
        print(fold(line.split(), columns, between=" "))


def _show(title: str, values: Mapping[str, str], columns: int | None) -> None:
    """A heading, and below it each name with its value, which goes on below itself where it is long."""
    print(title)
    indent = max(map(len, values)) + 4
    for name, value in values.items():
        first, *rest = value.split()
        print(fold([f"  {name}".ljust(indent) + first, *rest], columns, indent=" " * indent, between=" "))
    print()
