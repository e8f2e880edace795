"""Made-up lines of a study, for the report's tests and for looking at its pictures.

python tests/lab/study/lines.py FOLDER     writes a large one: runs.jsonl and plan.json
"""

import json
import math
import random
import sys
from pathlib import Path

RATES = (0.003, 0.006, 0.012, 0.024)
LEVELS = {"stdlib": 1.45, "pydoc": 1.25, "wikitext2": 1.72}
VARIANTS = {  # title, model, loss above the OSN's, best learning rate
    "osn": ("OSN", "osn", 0.0, 0.012),
    "osn-sparse": ("OSN, held at a density of .08", "osn", 0.011, 0.012),
    "rotary": ("Transformer, rotary", "transformer", 0.08, 0.006),
    "rotary-delay": ("Transformer, rotary, delay", "transformer", 0.055, 0.012),
    "alibi": ("Transformer, ALiBi", "transformer", 0.2, 0.006),
}
CHANGES = """one frame for all rows|self kept|no drift|rotary phases in place of drift
delay on no head|delay on all heads|half as many frequencies|twice as many frequencies
directed|directed, with detuning|power 1|published edge|sharpness 10|sharpness 1000
densities .02 to .2|densities .3 to .9|coupling by softplus|no calibration
bias in the frequencies|no order parameter|8 heads|2 heads|windows 2 to 128|windows 16 to 256"""


def line(
    group="comparison",
    task="stdlib",
    variant="osn",
    rate=0.012,
    seed=0,
    *,
    kind="comparison",
    title=None,
    model=None,
    loss=1.45,
    test=None,
    density=0.23,
    dead=0,
    lengths=None,
    accuracy=None,
    task_kind="text",
    task_options=None,
    parameters=116_444,
    diverged=False,
    order=0,
    norm=3.2,
    options=None,
    history=None,
):
    """One line; `loss` is validation's, `test` a little lower unless given."""
    model = model or ("osn" if variant.startswith("osn") else "transformer")
    osn = model == "osn"
    test = loss - 0.01 if test is None else test
    text = task_kind == "text"
    about = {
        "format": 1,
        "key": f"{group}/{task}/{variant}/lr{rate!r}/seed{seed}",
        "kind": kind,
        "group": group,
        "group_title": group.capitalize(),
        "order": order,
        "task": task,
        "task_kind": task_kind,
        "task_options": task_options or {},
        "variant": variant,
        "title": title or VARIANTS.get(variant, (variant,))[0],
        "model": model,
        "learning_rate": rate,
        "seed": seed,
        "tokens": 2_000_896,
        "options": {
            "context": 256,
            "batch_size": 8,
            "steps": 977,
            "threads": 1,
            "learning_rate": rate,
            "seed": seed,
        }
        | (options or {}),
        "versions": {"python": "3.11.7", "torch": "2.13.0+cpu", "triton": "not installed"},
        "machine": {"system": "Linux x86_64", "cores": 2, "gpus": []},
        "command": "syncattn study benchmarks/quality/plan.toml --out runs/quality",
    }
    if diverged:
        return about | {"outcome": "diverged", "message": "loss nan", "result": None, "history": []}
    result = {
        "validation_loss": loss,
        "test_loss": test,
        "validation_accuracy": accuracy,
        "test_accuracy": accuracy,
        "density": [[density * x for x in (0.2, 0.5, 1.2, 2.1)]] * 2 if osn else [],
        "dead_heads": dead if osn else None,
        "max_grad_norm": norm,
        "tokens_per_second": 41_000.0 * (1 - density / 2),
        "train_seconds": 50.0,
        "wall_seconds": 55.0,
        "lengths": lengths or {},
    }
    characters = {"train": 6_797_923, "validation": 362_015, "test": 435_893}
    data = {"sources": [task], "characters": characters, "sha256": "2fd9fd234fbdfac6"} if text else None
    return about | {
        "outcome": "finished",
        "message": None,
        "config": {"hidden_size": 64, "hidden_act": "gelu", "window_range": [4.0, 64.0]},
        "parameters": parameters,
        "data": data,
        "result": result,
        "history": curve(loss, result["density"]) if history is None else history,
    }


def curve(loss, density, steps=977):
    """A history that falls to `loss`: 50 entries of training, 10 of validation."""
    found = []
    for index in range(1, 51):
        step = index * steps // 50
        at = loss + 1.6 * math.exp(-5 * index / 50)
        entry = {"step": step, "loss": at, "grad_norm": 1.0}
        if density:
            grown = 0.5 + 0.5 * index / 50
            entry["density"] = [[min(1.0, x * grown) for x in layer] for layer in density]
        if index % 5 == 0:
            entry["validation_loss"] = at + 0.01
        found.append(entry)
    return found


def over_rates(best, rates=RATES):
    """How much each learning rate costs beside the best one."""
    return {rate: 0.03 * math.log2(rate / best) ** 2 for rate in rates}


def study():
    """A large study: three corpora, ablations, densities, stability, sizes and synthetic tasks."""
    chance = random.Random(0)
    found = []

    def add(*place, **about):
        found.append(line(*place, order=len(found), **about))

    for task, level in LEVELS.items():
        for variant, (_, model, above, best) in VARIANTS.items():
            grid = over_rates(best)
            for seed, rates in ((0, RATES), (1, (best,)), (2, (best,))):
                for rate in rates:
                    value = (
                        level + above * (0.4 if task == "pydoc" else 1) + grid[rate] + chance.gauss(0, 0.006)
                    )
                    growth = {"osn": 0.004, "osn-sparse": 0.006, "rotary": 0.2, "rotary-delay": 0.15}
                    at = {str(256 * 2**i): 1 + growth.get(variant, 0.001) * i for i in range(4)}
                    lengths = {
                        n: {
                            "loss": (value - 0.01) * r,
                            "density": 0.23 / int(n) * 256 if model == "osn" else None,
                        }
                        for n, r in at.items()
                    }
                    density = 0.08 if variant == "osn-sparse" else 0.21
                    failed = variant == "alibi" and rate == 0.024
                    add("comparison", task, variant, rate, seed, loss=value, lengths=lengths, density=density,
                        diverged=failed)  # fmt: skip
    names = {f"change-{i}": text for i, text in enumerate(CHANGES.replace("\n", "|").split("|"))}
    for task in ("stdlib", "pydoc"):
        for seed in range(3):
            add("ablation", task, "osn", seed=seed, kind="ablation", loss=1.47 + chance.gauss(0, 0.004))
        for variant, text in names.items():
            above = abs(chance.gauss(0, 0.04)) - 0.012
            dead = int(chance.random() < 0.1)
            add("ablation", task, variant, kind="ablation", title=text, model="osn", loss=1.47 + above,
                dead=dead, density=chance.uniform(0.1, 0.4))  # fmt: skip
    for task, level in LEVELS.items():
        for density in (0.02, 0.04, 0.08, 0.16, 0.32, 0.6):
            value = level + 0.02 * math.log2(0.32 / density) ** 2 / 4 + chance.gauss(0, 0.004)
            add("density", task, f"osn-{density}", kind="density", title=f"held at {density:g}", loss=value,
                density=density)  # fmt: skip
        add("density", task, "rotary", kind="density", loss=level + 0.08)
    tried = (0.001, 0.003, 0.006, 0.012, 0.024, 0.048, 0.096)
    stable = VARIANTS | {"osn-bf16": ("OSN, bf16", "osn", 0.002, 0.012)}
    stable |= {"rotary-bf16": ("Transformer, rotary, bf16", "transformer", 0.083, 0.006)}
    for variant in ("osn", "osn-bf16", "rotary", "rotary-bf16", "alibi"):
        title, _, above, best = stable[variant]
        for rate, cost in over_rates(best, tried).items():
            failed = (rate > 0.05 and variant != "osn") or (rate > 0.03 and variant == "alibi")
            add("stability", "stdlib", variant, rate, kind="stability", title=title, diverged=failed,
                loss=1.45 + above + cost, norm=3 + 400 * rate)  # fmt: skip
        for seed in (1, 2):
            add("stability", "stdlib", variant, best, seed, kind="stability", title=title,
                loss=1.45 + above + chance.gauss(0, 0.005))  # fmt: skip
    for hidden, parameters in ((32, 36_000), (64, 116_444), (96, 244_000), (128, 420_000)):
        for variant in ("osn", "rotary-delay"):
            for rate, cost in over_rates(0.012 * (64 / hidden) ** (0.2 if variant == "osn" else 0.8)).items():
                value = 1.45 + VARIANTS[variant][2] + cost * 0.6 - 0.12 * math.log2(parameters / 116_444)
                add(f"size-{hidden}", "stdlib", variant, rate, kind="size", loss=value,
                    parameters=parameters)  # fmt: skip
    for pairs in (4, 8, 16, 32):
        for variant in ("osn", "rotary", "rotary-delay"):
            hard = {"osn": 20, "rotary": 6, "rotary-delay": 17}[variant]
            for seed, rates in ((0, (0.003, 0.006)), (1, (0.003,)), (2, (0.003,))):
                for rate in rates:
                    share = 1 / (1 + (pairs / hard) ** 3) - (0.05 if rate == 0.006 else 0)
                    share = min(1.0, max(0.0, share + chance.gauss(0, 0.02)))
                    options = {"vocabulary": 64, "pairs": pairs, "length": 16 * pairs}
                    add("recall", f"recall-{pairs}", variant, rate, seed, kind="synthetic",
                        task_kind="recall", task_options=options, accuracy=share, loss=1 - share)  # fmt: skip
    for vocabulary in (16, 64):
        for length in (64, 128, 256):
            for variant in ("osn", "rotary"):
                share = min(1.0, 80 / length * (1.4 if variant == "osn" else 0.9)) * (16 / vocabulary) ** 0.1
                add("induction", f"induction-{vocabulary}-{length}", variant, kind="synthetic",
                    task_kind="induction", accuracy=share, loss=1 - share,
                    task_options={"vocabulary": vocabulary, "length": length})  # fmt: skip
    for variant in ("osn", "rotary"):
        for seed in range(3):
            add("digits", "digits", variant, seed=seed, kind="synthetic", task_kind="digits", loss=0.3,
                accuracy=0.93 + chance.gauss(0, 0.01))  # fmt: skip
    return found


def write(lines, folder):
    """runs.jsonl in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "runs.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    return folder


if __name__ == "__main__":
    made = study()
    target = write(made, Path(sys.argv[1]))
    planned = [{"key": each["key"]} for each in made] + [{"key": "ablation/stdlib/more/lr0.012/seed0"}]
    (target / "plan.json").write_text(json.dumps(planned))
