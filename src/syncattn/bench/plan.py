"""What a benchmark run measures: its sizes, its suites, how long it may take."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from syncattn.option import option
from syncattn.training.errors import UserError

# In the order in which they run: the table of the targets first, the longest extras last.
SUITES = {
    "table": "the operator at the targets' sizes",
    "decode": "one query and a cache",
    "generation": "a token for each of one and of many texts, beside the Transformer and Llama",
    "prefill": "a prompt read into an empty cache, beside the Transformer",
    "train": "a whole training step",
    "lengths": "a whole training step over ever longer texts",
    "block": "one block of a model",
    "counting": "calibrating, limiting and counting, beside a forward pass",
    "scaling": "a fixed window over ever more tokens",
    "tokens": "the operator over N, with the published formulation and memory",
    "variants": "other powers, frames and structures",
    "frequencies": "the operator over freq_dim",
    "gpu-64": "on a GPU, bf16 values of 64 columns, beside FlashAttention",
    "gpu-128": "the same, 128 columns",
    "gpu-decode": "on a GPU: one query and a cache, also as CUDA graphs",
    "gpu-memory": "on a GPU: peak memory over N",
    "gpu-generation": "on a GPU: a token for each text with both kinds of cache, beside the Transformer",
    "gpu-anchors": "on a GPU: beside SSA through FlexAttention, and AdaSplash at equal density",
    "gpu-flex": "on a GPU: beside FlexAttention with the same mask",
}
GROUPS = {
    "operator": ("table", "tokens", "variants", "frequencies"),
    "all": tuple(name for name in SUITES if not name.startswith("gpu")),
    "gpu": tuple(name for name in SUITES if name.startswith("gpu")),
}
FORWARD, BACKWARD = "forward", "forward+backward"


@dataclass(frozen=True)
class BenchPlan:
    """Sizes and limits of a run; the options of the command line have their help beside them.

    Args:
        suites: names out of `SUITES`.
        threads: numbers of CPU threads; the first is the one for the extras, which run with one setting only.
        heads, head_dim, freq_dim: H, d, m of the operator.
        densities: wanted fractions of locked pairs, dense to sparse.
        window: tokens that a drifting head can look back.
        token_sweep, memory_sweep: the N of suite "tokens", for time and for memory.
        freq_sweep, freq_tokens: the m of suite "frequencies", and its N.
        scaling: the N of suite "scaling"; growth is counted from the first.
        decode_keys: cache lengths M.
        gpu_tokens: N of the suites of the GPU, in running order: the most wanted first. Suite "gpu-flex" has
            the first alone, suite "gpu-anchors" the first two.
        gpu_cache: M that suite "gpu-decode" decodes from.
        gpu_generation_keys, gpu_generation_batches, gpu_generation_size: of suite "gpu-generation" what those
            of "generation" are; compiled are steps of the first length and number of texts alone.
        gpu_heads, gpu_window: H and the drifting heads' window of these suites.
        gpu_tiles: shares of the tiles that lock, in their sparse cases.
        generation_keys, generation_batches: cache lengths, and numbers of texts, of suite "generation";
            together 131,072 tokens at most.
        generation_size: (hidden size, blocks, heads) of its models.
        length_tokens: N of suites "prefill" and "lengths", whose models have `generation_size`; beyond 8,192
            as many times fewer blocks as the text is longer.
        model_tokens: N of the blocks and training steps.
        counting_tokens: N of suite "counting".
        model_sizes: (hidden size, blocks, heads) of the models; the first is the block's.
        step_tokens: tokens in a training step's batch; the batch has at least one sequence.
        check_rows: rows per head that correctness is checked on, and density is counted on.

    Raises:
        UserError: something is out of range; the message names the option.
    """

    suites: tuple[str, ...] = GROUPS["all"]
    threads: tuple[int, ...] = (1, 2)
    device: str = option("cpu", "'cpu' or 'cuda'.")
    # Interleaved with the others.
    rounds: int = option(5, "How often each contender is timed.")
    # When they are spent, a contender sits out the other rounds.
    budget: float = option(10.0, "Seconds for one number; what needs longer for one call is left out.")
    tokens: int = option(4096, "N of the table; the targets are stated for 4096.")
    heads: int = 8
    head_dim: int = 64
    freq_dim: int = 8
    densities: tuple[float, ...] = (0.95, 0.25, 0.05, 0.01)
    window: int = 128
    token_sweep: tuple[int, ...] = (256, 512, 1024, 2048, 4096, 8192, 16384)
    memory_sweep: tuple[int, ...] = (512, 1024, 2048, 4096)
    freq_sweep: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    freq_tokens: int = 2048
    scaling: tuple[int, ...] = (4096, 8192, 16384, 32768, 65536)
    decode_keys: tuple[int, ...] = (512, 2048, 4096, 16384)
    generation_keys: tuple[int, ...] = (64, 2048, 8192, 32768)
    generation_batches: tuple[int, ...] = (1, 16)
    generation_size: tuple[int, int, int] = (256, 4, 8)
    gpu_tokens: tuple[int, ...] = (32768, 8192, 65536, 2048)
    gpu_cache: tuple[int, ...] = (32768,)
    gpu_generation_keys: tuple[int, ...] = (2048, 32768)
    gpu_generation_batches: tuple[int, ...] = (1, 16)
    gpu_generation_size: tuple[int, int, int] = (1024, 4, 16)
    gpu_heads: int = 16
    gpu_window: int = 512
    gpu_tiles: tuple[float, ...] = (0.25, 0.05)
    length_tokens: tuple[int, ...] = (256, 512, 2048, 8192, 32768)
    model_tokens: tuple[int, ...] = (256, 2048, 8192)
    counting_tokens: tuple[int, ...] = (2048, 8192)
    model_sizes: tuple[tuple[int, int, int], ...] = ((256, 4, 4), (64, 2, 4))
    step_tokens: int = 2048
    check_rows: int = 32
    seed: int = option(0, "Of the inputs.")
    quick: bool = False
    # For bench.json; the GPU's targets show them as WRONG.
    time_wrong: bool = option(False, "Time wrong results as well; they stay marked as wrong.")

    def __post_init__(self) -> None:
        for name in self.suites:
            if name not in SUITES:
                raise UserError(f"SUITE must be among {', '.join([*SUITES, *GROUPS])}, got {name!r}")
        if not self.threads or min(self.threads) < 1:
            raise UserError(f"--threads must be 1 or more, as a list such as 1,2, got {self.threads}")
        if self.rounds < 2:
            raise UserError(f"--rounds must be at least 2, got {self.rounds}")
        if not self.budget > 0:
            raise UserError(f"--budget must be a positive number of seconds, got {self.budget}")
        if self.tokens < 16:
            raise UserError(f"--tokens must be at least 16, got {self.tokens}")
        if self.device not in ("cpu", "cuda"):
            raise UserError(f"--device must be 'cpu' or 'cuda', got {self.device!r}")
        if self.device == "cuda" and not _has_cuda():
            raise UserError("--device must be 'cpu' where PyTorch sees no CUDA device, got 'cuda'")
        if self.seed < 0:
            raise UserError(f"--seed must be 0 or more, got {self.seed}")

    def as_dict(self) -> dict[str, Any]:
        """As JSON stores it."""
        return asdict(self)


def _has_cuda() -> bool:
    import torch  # slow, and not needed to list the options

    return torch.cuda.is_available()


def quick(plan: BenchPlan) -> BenchPlan:
    """The same, small enough for two minutes: shapes of the curves rather than the targets' sizes."""
    return replace(
        plan,
        quick=True,
        rounds=min(plan.rounds, 3),
        budget=min(plan.budget, 2.0),
        tokens=min(plan.tokens, 1024),
        threads=plan.threads[:1],
        densities=(0.95, 0.05),
        token_sweep=(256, 512, 1024),
        memory_sweep=(256, 1024),
        freq_sweep=(2, 8, 32),
        freq_tokens=512,
        scaling=(1024, 2048, 4096),
        decode_keys=(512, 4096),
        generation_keys=(64, 512),
        gpu_tokens=(8192, 2048),
        gpu_cache=(8192,),
        gpu_generation_keys=(2048,),
        length_tokens=(256, 512),
        model_tokens=(512,),
        counting_tokens=(2048,),
        model_sizes=plan.model_sizes[-1:],
    )


def chosen_suites(names: list[str], device: str = "cpu") -> tuple[str, ...]:
    """Suites and groups by name, in running order, none twice; no name is all of them, on a GPU its own.

    Raises:
        UserError: an unknown name.
    """
    wanted: set[str] = set()
    for name in names or ["gpu" if device == "cuda" else "all"]:
        if name not in SUITES and name not in GROUPS:
            raise UserError(f"SUITE must be among {', '.join([*SUITES, *GROUPS])}, got {name!r}")
        wanted.update(GROUPS.get(name, (name,)))
    return tuple(name for name in SUITES if name in wanted)
