"""Turn `syncattn compare` outputs into docs/results: one page, the pictures, and the numbers behind them.

    python benchmarks/publish_comparison.py runs/stdlib,runs/stdlib-delay runs/pydoc --out docs/results

Each folder is one that `syncattn compare --out` wrote; those joined by a comma make one table, and must agree
in data, budget and seeds. Nothing is typed in by hand: the page holds what the results.json files say, with
the commands that made them. Speeds are left out: these runs share the machine with others.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from syncattn.training import figures

_KEPT = ("name", "title", "parameters", "learning_rate", "validation_loss", "validation_spread", "test_loss")
_KEPT += ("test_spread", "density")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    parts = [publish([Path(f) for f in joined.split(",")], arguments.out) for joined in arguments.folders]
    about = (
        "Generated from the runs' own records, by\n\n"
        f"    python benchmarks/publish_comparison.py {' '.join(arguments.folders)} --out {arguments.out}\n\n"
        "The runs shared the machine with others, so their speeds are not kept.\n\n"
    )
    page = "# Comparisons\n\n" + about + "\n".join(parts)
    (arguments.out / "README.md").write_text(page, encoding="utf-8")


def publish(folders: list[Path], out: Path) -> str:
    """Write one comparison's numbers and pictures; return its section of the page."""
    results, *others = [json.loads((f / "results.json").read_text(encoding="utf-8")) for f in folders]
    name = folders[0].name
    results["command"] = [results["command"]]
    compared = len(results["models"])  # the pictures are of the first comparison
    for other in others:
        join(results, other)
    per_step = results["options"]["batch_size"] * results["options"]["context"]
    models = list(results["models"][:compared])
    (out / f"{name}.json").write_text(json.dumps(numbers(results), indent=1) + "\n", encoding="utf-8")
    pictures = {"loss": figures.loss_curves(models, per_step, "light")}
    for model in models:
        if model["name"] == "osn":
            pictures["density"] = figures.densities(model["runs"][0], per_step, "light")
            colour = figures.COLOURS["osn"]
            pictures["weights"] = figures.weight_matrices(
                model["weights"][-1], results["labels"], colour, "light"
            )
    for kind, png in pictures.items():
        (out / f"{name}-{kind}.png").write_bytes(png)
    return section(name, results, list(pictures))


def join(results: dict[str, Any], other: dict[str, Any]) -> None:
    """Add the models of another comparison that the first has not; what both have must be the same runs."""
    for key in ("data", "tokens", "seeds"):
        if results[key] != other[key]:
            raise SystemExit(f"the comparisons differ in {key}: {results[key]} and {other[key]}")
    known = {model["title"]: model for model in results["models"]}
    results["command"].append(other["command"])
    for model in other["models"]:
        if model["title"] not in known:
            model["tried"] = other["learning_rate_grid"].get(model["name"], [])
            results["models"].append(model)
        elif model["validation_loss"] != known[model["title"]]["validation_loss"]:
            raise SystemExit(
                f"{model['title']} has other losses in the two comparisons: they cannot be joined"
            )


def numbers(results: dict[str, Any]) -> dict[str, Any]:
    """What is kept of results.json: everything but the samples, the weights and the step-by-step history."""
    about = ("command", "versions", "machine", "data", "options", "tokens", "seeds")
    kept = {key: results[key] for key in about}
    kept["models"] = [
        {key: model[key] for key in _KEPT}
        | {"tried": tried(results, model)}
        | {"runs": [{"seed": run["options"]["seed"]} | losses(run["result"]) for run in model["runs"]]}
        for model in results["models"]
    ]
    return kept


def losses(result: dict[str, Any]) -> dict[str, Any]:
    """A run's result without its times, which depend on what else the machine did."""
    return {key: value for key, value in result.items() if "second" not in key}


def section(name: str, results: dict[str, Any], pictures: list[str]) -> str:
    """The page's part about one comparison, in Markdown."""
    data, machine, options = results["data"], results["machine"], results["options"]
    lines = [
        f"## {name}",
        "",
        f"{results['tokens']:,} tokens for every model, in windows of {options['context']}, the same ones in "
        f"the same order; seeds {', '.join(map(str, results['seeds']))}. Loss in nats per token: mean and "
        "standard deviation over the seeds, over the whole validation and test text"
        + (f", {options['final_eval_tokens']:,} tokens each at most" if options["final_eval_tokens"] else "")
        + ". Density: mean over layers and heads of the share of earlier tokens that lock, at the end.",
        "",
        "| model | parameters | learning rate | validation | test | density |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for model in results["models"]:
        density = "1" if model["density"] is None else f"{model['density']:.2f}"
        lines.append(
            f"| {model['title']} | {model['parameters']:,} | {model['learning_rate']:g} | "
            f"{loss(model, 'validation')} | {loss(model, 'test')} | {density} |"
        )
    lines += ["", "Learning rates tried with the first seed (validation loss; the lowest was chosen):", ""]
    for model in results["models"]:
        found = [
            f"{entry['learning_rate']:g}: "
            + ("diverged" if entry["validation_loss"] is None else f"{entry['validation_loss']:.4f}")
            for entry in tried(results, model)
        ]
        lines.append(f"- {model['title']}: {', '.join(found) or 'one only'}")
    lines += ["", *[f"![{name}, {kind}]({name}-{kind}.png)" for kind in pictures], ""]
    about = ", ".join(f"{key} {value}" for key, value in machine.items() if value)
    versions = ", ".join(f"{key} {value}" for key, value in results["versions"].items() if value)
    lines += [
        f"Commands: {'; '.join(f'`{command}`' for command in results['command'])}. "
        f"Text: {json.dumps(data)}. Machine: {about}. Versions: {versions}. "
        f"Every number: [{name}.json]({name}.json).",
        "",
    ]
    return "\n".join(lines)


def tried(results: dict[str, Any], model: dict[str, Any]) -> list[dict[str, Any]]:
    """The learning rates that were tried for a model, with their losses."""
    return model.get("tried") or results["learning_rate_grid"].get(model["name"], [])


def loss(model: dict[str, Any], split: str) -> str:
    mean, spread = model[f"{split}_loss"], model[f"{split}_spread"]
    return f"{mean:.4f}" + ("" if spread is None else f" ± {spread:.4f}")


if __name__ == "__main__":
    main()
