"""Two processes on one machine, joined by gloo: worker.py runs in each, and leaves what it found in a folder.

Starting Python and importing the models takes longer than any of the tasks, so one pair of processes does
many of them, one after the other.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

WORLD = 2
WORKER = Path(__file__).parent / "worker.py"
SECONDS = 150
"""For all tasks of one pair. It takes a tenth of it; a busy machine may take longer, a deadlock for ever."""


@pytest.fixture(scope="session", autouse=True)
def gloo():
    """Skips what is here where processes cannot talk."""
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        pytest.skip("torch.distributed has no gloo here")


def environment(**more: str) -> dict[str, str]:
    """This process's environment for processes that talk over the loopback device and have a core each."""
    left_out = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    if sys.platform == "linux":
        kept.setdefault("GLOO_SOCKET_IFNAME", "lo")
    own = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false"}
    return kept | own | {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1"} | more


def run_processes(commands: list[list[str]], folder: Path, seconds: float, **variables: str) -> list[str]:
    """Run commands at the same time; their outputs. None is left when this returns.

    Raises:
        AssertionError: one failed or took longer; the message has the end of every output.
    """
    folder.mkdir(parents=True, exist_ok=True)
    logs = [folder / f"output-{i}.txt" for i in range(len(commands))]
    processes = []
    deadline = time.monotonic() + seconds
    try:
        for command, log in zip(commands, logs):
            with log.open("w") as out:
                processes.append(
                    subprocess.Popen(
                        command,
                        stdin=subprocess.DEVNULL,
                        stdout=out,
                        stderr=subprocess.STDOUT,
                        env=environment(**variables),
                        start_new_session=True,  # so that its children can be ended with it
                    )
                )
        while any(p.poll() is None for p in processes) and time.monotonic() < deadline:
            if any(p.poll() for p in processes):
                # the others wait for it in vain; a moment for what they have to say
                deadline = min(deadline, time.monotonic() + 5)
            time.sleep(0.05)
        codes = [p.poll() for p in processes]
    finally:
        for process in processes:
            _end(process)
    outputs = [log.read_text(errors="replace") for log in logs]
    ends = "\n".join(
        f"--- process {i}: {code}\n{out[-4000:]}" for i, (code, out) in enumerate(zip(codes, outputs))
    )
    assert codes == [0] * len(commands), f"exit codes {codes} (None: still running after {seconds} s)\n{ends}"
    return outputs


def _end(process: subprocess.Popen) -> None:
    if process.poll() is not None:
        return
    # torchrun ends its workers, which have sessions of their own, if it is asked; not if it is killed
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="session")
def run():
    """`run_processes`."""
    return run_processes


@pytest.fixture(scope="session")
def run_tasks():
    """(folder, names of worker.py's tasks) -> a function of such a name: what each process returned."""

    def run(folder: Path, tasks: list[str]) -> Callable[[str], list]:
        ranks = [str(rank) for rank in range(WORLD)]
        own = [sys.executable, str(WORKER), str(folder)]
        run_processes([[*own, rank, str(WORLD), *tasks] for rank in ranks], folder, SECONDS)

        def results(task: str) -> list:
            found = [torch.load(folder / f"{task}-{rank}.pt") for rank in ranks]
            for one in found:
                assert "error" not in one, one["error"]
            return [one["result"] for one in found]

        return results

    return run


@pytest.fixture(scope="session")
def assert_same_training():
    """That processes ended with the parameters of one that was given all of the batches."""
    return _assert_same_training


def _assert_same_training(found: list[dict], tolerance: float = 1e-3, gradients: bool = True) -> None:
    """`tolerance` is relative to each tensor's largest gradient, or change since the start."""
    first, second = (one["together"] for one in found)
    start, alone = found[0]["start"], found[0]["alone"]
    losses = (first["losses"] + second["losses"]) / 2
    torch.testing.assert_close(losses, alone["losses"], rtol=max(tolerance / 100, 1e-5), atol=0)
    largest = max(g.abs().max() for g in alone["gradients"].values())
    for name, after in alone["parameters"].items():
        gradient, expected = first["gradients"][name], alone["gradients"][name]
        assert gradient is not None, f"{name} has no gradient"
        assert torch.equal(first["parameters"][name], second["parameters"][name]), f"{name} drifts apart"
        # In theory 0: a constant added to all phases, or to all frequencies of the symmetric form, changes
        # nothing. What rounding makes of it is no one's to meet.
        nothing = name.endswith("receive_proj.bias") and expected.abs().max() < 1e-6 * largest
        if nothing or name.endswith("phase_proj.bias"):
            assert max(gradient.abs().max(), expected.abs().max()) < 1e-4 * largest, name
            continue
        if gradients:
            assert (gradient - expected).abs().max() <= tolerance * expected.abs().max(), name
        change = (after - start[name]).abs().max()
        assert change > 0, f"{name} did not change"
        assert (first["parameters"][name] - after).abs().max() <= tolerance * change + 1e-6, name
