"""What each of the processes does: `python worker.py FOLDER RANK WORLD TASK...`.

A task returns numbers, tensors and names, which are saved as FOLDER/TASK-RANK.pt. Most train a model on this
process's half of each batch, and once more alone on all of it.
"""

import copy
import importlib.util
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
)
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import syncattn
from syncattn.models import OSNConfig, OSNForCausalLM
from syncattn.nn import calibrate, limit_density_, locked_density

SIZES = {
    "vocab_size": 40,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,  # which two processes cannot share equally
    "intermediate_size": 32,
    "initializer_range": 0.1,
    "density_range": (0.2, 0.8),  # these texts are too short for the default densities
}
STEPS, BATCH, TOKENS = 2, 4, 20
TASKS: dict[str, Callable[..., Any]] = {}


def task(function: Callable[..., Any]) -> Callable[..., Any]:
    TASKS[function.__name__] = function
    return function


def make_model(**fields: Any) -> OSNForCausalLM:
    """The same one in every process, calibrated; in training mode."""
    torch.manual_seed(0)
    paper = fields.pop("paper", False)
    config = (OSNConfig.paper if paper else OSNConfig)(**SIZES | fields)
    model = OSNForCausalLM(config)
    if paper:  # as published no pair locks, and there is nothing to learn
        for layer in model.model.layers:
            nn.init.constant_(layer.self_attn.raw_coupling, 2.0)
            nn.init.constant_(layer.self_attn.raw_bandwidth, -4.0)
    else:
        calibrate(model, batches()[0], use_cache=False)
    return model.train()


def batches(seed: int = 1) -> Tensor:
    """Token ids (STEPS, BATCH, TOKENS)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(SIZES["vocab_size"], (STEPS, BATCH, TOKENS), generator=generator)


def own_share(ids: Tensor) -> Tensor:
    """This process's part of a batch (B, N)."""
    return ids.chunk(dist.get_world_size())[dist.get_rank()]


def make_optimizer(model: nn.Module, name: str) -> torch.optim.Optimizer:
    if name == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0)
    return torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, share: Callable[[Tensor], Tensor]) -> dict:
    """Two steps; the losses (STEPS,), the last step's gradients and the parameters, all of them whole."""
    losses = []
    for ids in map(share, batches()):
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        losses.append(loss.detach())
    return {
        "losses": torch.stack(losses),
        "gradients": {name: whole(p.grad) for name, p in named(model)},
        "parameters": {name: whole(p) for name, p in named(model)},
    }


def named(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(n.removeprefix("_orig_mod.").removeprefix("module."), p) for n, p in model.named_parameters()]


def whole(x: Tensor | None) -> Tensor | None:
    if x is None:
        return None
    x = x.detach()
    return x.full_tensor() if isinstance(x, DTensor) else x.clone()


def beside_alone(model: nn.Module, wrap: Callable[[nn.Module], nn.Module], optimizer: str = "sgd") -> dict:
    """What the processes find together and what each finds alone on the whole batch."""
    single = copy.deepcopy(model)
    start = {name: whole(p) for name, p in named(single)}
    wrapped = wrap(model)
    together = train(wrapped, make_optimizer(wrapped, optimizer), own_share)
    alone = train(single, make_optimizer(single, optimizer), lambda ids: ids)
    return {"start": start, "together": together, "alone": alone}


# --- DistributedDataParallel


@task
def ddp() -> dict:
    return beside_alone(make_model(), DistributedDataParallel)


@task
def ddp_adamw() -> dict:
    return beside_alone(make_model(), DistributedDataParallel, "adamw")


@task
def ddp_tiled() -> dict:
    with syncattn.use_backend("tiled"):
        return beside_alone(make_model(), DistributedDataParallel)


@task
def ddp_triton() -> dict | str:
    """In Triton's interpreter, with one layer and one tile; what there is to skip for if it cannot run."""
    if (reason := syncattn.backends.availability()["triton"]) is not None:
        return reason
    _prepare_interpreter()
    with syncattn.use_backend("triton"):
        model = make_model(num_hidden_layers=1, num_attention_heads=2, freq_dim=4)
        return beside_alone(model, DistributedDataParallel)


@task
def ddp_paper() -> dict:
    return beside_alone(make_model(paper=True), DistributedDataParallel)


@task
def ddp_every_option() -> dict:
    fields = {"directed": True, "detuning": True, "position": "own_drift", "freq_bias": True, "phase_dim": 2}
    return beside_alone(make_model(**fields), DistributedDataParallel)


@task
def ddp_checkpointing() -> dict:
    model = make_model()
    model.gradient_checkpointing_enable()
    return beside_alone(model, DistributedDataParallel)


@task
def ddp_compiled() -> dict:
    def wrap(model: nn.Module) -> nn.Module:
        return torch.compile(DistributedDataParallel(model), backend="aot_eager")

    return beside_alone(make_model(num_hidden_layers=1), wrap)


def _prepare_interpreter() -> None:
    """Small tiles, and what the kernels' own tests mend in the interpreter, for the rest of this process."""
    import pytest

    path = Path(__file__).parent.parent / "backends" / "triton" / "conftest.py"
    spec = importlib.util.spec_from_file_location("triton_conftest", path)
    conftest = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conftest)
    patch = pytest.MonkeyPatch()
    conftest._mend_interpreter(patch)
    conftest.small_tiles(patch)


# --- densities


@task
def densities() -> dict:
    """Couplings of every layer calibrated and limited on one batch for all, or on each process's own."""
    common, own = batches()[0], own_share(batches(2)[0])
    found = {}

    def note(name: str, model: nn.Module) -> None:
        found[name] = torch.stack([p.detach().clone() for n, p in named(model) if n.endswith("raw_coupling")])

    model = make_model()
    calibrate(model, own, use_cache=False)
    note("calibrated on its own", model)
    wrapped = DistributedDataParallel(model)
    note("then wrapped", wrapped)
    calibrate(wrapped, common, use_cache=False)
    note("calibrated on the same", wrapped)
    limit_density_(wrapped, 0.1, common, use_cache=False)
    note("limited on the same", wrapped)
    limit_density_(wrapped, 0.1, own, use_cache=False)
    note("limited on its own", wrapped)
    for _ in range(2):  # steps do not bring them together again
        train(wrapped, make_optimizer(wrapped, "sgd"), own_share)
    note("then trained", wrapped)
    for name, p in named(wrapped):
        if name.endswith(("raw_coupling", "raw_bandwidth")):
            dist.broadcast(p.detach(), src=0)
    note("then broadcast", wrapped)
    found["density"] = torch.stack(list(locked_density(wrapped, common, use_cache=False).values()))
    return found


# --- fully_shard


def shard(model: nn.Module, **options: Any) -> nn.Module:
    """As docs/distributed.md shows it: each block, then the rest."""
    for layer in model.model.layers:
        fully_shard(layer, **options)
    fully_shard(model, **options)
    return model


@task
def fsdp() -> dict:
    return beside_alone(make_model(), shard)


@task
def fsdp_adamw() -> dict:
    return beside_alone(make_model(), shard, "adamw")


@task
def fsdp_one_head() -> dict:
    """Of a tensor of one entry the second process has none."""
    return beside_alone(make_model(num_attention_heads=1), shard)


@task
def fsdp_value_residual() -> dict:
    """What the first layer gives to all others is made within its forward, where its parameters are whole."""
    return beside_alone(make_model(value_residual=True, token_shift=False, short_convolution=3), shard)


@task
def fsdp_checkpointing() -> dict:
    model = make_model()
    model.gradient_checkpointing_enable()
    return beside_alone(model, shard)


@task
def fsdp_bf16() -> dict:
    """Beside one process that casts the same parameters, and one that casts nothing."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    model = make_model()
    found = {"start": {name: whole(p) for name, p in named(model)}}
    plain, single = copy.deepcopy(model), Cast(copy.deepcopy(model))
    sharded = shard(model, mp_policy=policy)
    found["together"] = train(sharded, make_optimizer(sharded, "sgd"), own_share)
    found["alone"] = train(single, make_optimizer(single, "sgd"), lambda ids: ids)
    found["float32"] = train(plain, make_optimizer(plain, "sgd"), lambda ids: ids)
    return found


class Cast(nn.Module):
    """Computes with parameters in bfloat16, keeps them in float32."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, **inputs: Any) -> Any:
        low = {name: p.bfloat16() for name, p in self.module.named_parameters()}
        return torch.func.functional_call(self.module, low, kwargs=inputs)


@task
def fsdp_paper() -> str:
    """What is said about a coupling that is a scalar."""
    try:
        shard(make_model(paper=True))
    except ValueError as error:
        return str(error)
    return ""


@task
def fsdp_changed_in_place() -> dict:
    """What calibration says, and limits do, to a model that is sharded already: couplings (layers, H)."""
    ids = batches()[0]

    def couplings(model: nn.Module) -> Tensor:
        return torch.stack([whole(p) for name, p in named(model) if name.endswith("raw_coupling")])

    plain, model = make_model(), shard(make_model())
    found: dict[str, Any] = {"before": couplings(model), "calibrate": ""}
    try:
        calibrate(model, ids, density_range=(0.1, 0.2), use_cache=False)
    except ValueError as error:
        found["calibrate"] = str(error)
    found["density"] = torch.stack(list(locked_density(model, ids, use_cache=False).values()))
    limit_density_(plain, 0.05, ids, use_cache=False)
    limit_density_(model, 0.05, ids, use_cache=False)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    found |= {"limited": couplings(model), "expected": couplings(plain)}
    return found | {"after": train(model, make_optimizer(model, "sgd"), own_share)["losses"]}


@task
def fsdp_saved() -> dict:
    """A model saved after two steps, whole by one process and in parts by all; then two more."""
    folder = Path(sys.argv[1])
    model = shard(make_model())
    optimizer = make_optimizer(model, "adamw")
    train(model, optimizer, own_share)
    local = {name: p.to_local().shape[0] for name, p in named(model) if name.endswith("raw_coupling")}
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    names = sorted(state)
    if dist.get_rank() == 0:
        model.save_pretrained(folder / "whole", state_dict=state)
    weights, moments = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": moments}, checkpoint_id=folder / "parts")
    saved = {name: whole(p) for name, p in named(model)}
    ids = batches(3)[0]
    with torch.no_grad():
        logits = model.eval()(ids, use_cache=False).logits
    train(model.train(), optimizer, own_share)
    after = {name: whole(p) for name, p in named(model)}
    return {
        "local": local,
        "names": names,
        "saved": saved,
        "ids": ids,
        "logits": logits,
        "batches": batches(),
        "after": after,
    }


@task
def fsdp_made_empty() -> dict:
    """Made without memory, sharded, filled with what the first process has: no process holds it all."""
    source = make_model().eval()
    with torch.device("meta"):
        model = OSNForCausalLM(source.config)
    shard(model.eval()).to_empty(device="cpu")
    state = source.state_dict() if dist.get_rank() == 0 else {}
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, state, options=options)
    ids = batches()[0]
    with torch.no_grad():
        return {name: m(ids).logits for name, m in (("expected", source), ("logits", model))}


def main() -> None:
    folder, rank, world, *tasks = sys.argv[1:]
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{Path(folder).absolute()}/rendezvous",
        rank=int(rank),
        world_size=int(world),
        timeout=timedelta(seconds=60),
    )
    try:
        for name in tasks:
            torch.compiler.reset()
            try:
                outcome = {"result": TASKS[name]()}
            except Exception:  # the other tasks may still do
                outcome = {"error": traceback.format_exc()}
            torch.save(outcome, Path(folder) / f"{name}-{rank}.pt")
            dist.barrier()
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
