"""The command `syncattn doctor`. Heavy imports are inside, so that `syncattn --help` is quick."""

from __future__ import annotations


def doctor_command() -> None:
    """Show versions, devices, and which backends can run here."""
    import torch
    from rich.console import Console
    from rich.table import Table

    from syncattn.backends import availability, explain
    from syncattn.backends.cpu.library import instances
    from syncattn.training.environment import machine, versions

    console = Console()
    table = Table("package", "version", title="versions", title_justify="left")
    for name, version in versions().items():
        table.add_row(name, version)
    console.print(table)
    table = Table("", "", title="machine", title_justify="left", show_header=False)
    for name, value in machine().items():
        table.add_row(name, ", ".join(value) or "none" if isinstance(value, list) else str(value))
    console.print(table)
    table = Table("backend", "can run here", "why not", title="backends", title_justify="left")
    for name, reason in availability().items():
        table.add_row(name, "yes" if reason is None else "no", reason or "")
    console.print(table)
    if found := instances():
        console.print(f"the cpu kernel uses {found[-1]} instructions", highlight=False)
    for device in ["cpu"] + ["cuda"] * torch.cuda.is_available():
        tokens, head = torch.ones(1, 1, 32, 16, device=device), torch.ones(1, device=device)
        chosen = explain(
            tokens, tokens, tokens, head, head, is_causal=True, self_coupling=False, frame="nearest", power=2
        )
        console.print(f"a causal layer on {device} uses {chosen}", highlight=False)
