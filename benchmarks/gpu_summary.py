"""summary.md of a session on a GPU: gpu_session.py writes it, after every step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

# Records that `syncattn bench` did not write.
_OTHERS = ("steps", "training", "scale", "tune")


def summary_lines(session: dict[str, Any], records: dict[str, Any]) -> Iterator[str]:
    """summary.md: first what is wrong, then the steps, the targets, the training."""
    yield "# GPU session" + (" (dry run: toy sizes on a CPU, no number counts)" if session["dry_run"] else "")
    yield ""
    yield from _alarms(session, records)
    yield f"\n{session['begun']}, {session['seconds']:.0f} s, state: {session['state']}.\n"
    yield "| step | part | result | seconds | limit |\n| --- | --- | --- | ---: | ---: |"
    for step in session["steps"]:
        for label, part in step["commands"].items():
            tests = part["tests"]
            told = "" if tests is None else f": {tests['passed']} tests passed, {len(tests['failed'])} failed"
            told += "" if tests is None or not tests["skipped"] else f", {tests['skipped']} skipped"
            row = (step["name"], label, part["status"] + told, part.get("seconds", ""), step["limit"])
            yield "| " + " | ".join(map(str, row)) + " |"
    for name, record in records.items():
        if name not in _OTHERS:
            rows = _target_rows(record)
            if rows:
                yield f"\n## {name}: targets\n\n| target | wanted | measured, × the faster rival's | met |"
                yield "| --- | ---: | ---: | ---: |"
                yield from (f"| {title} | {wanted} | {got} | {met} |" for title, _, wanted, got, met in rows)
    if generated := records.get("gpu-generation"):
        yield from _generation_lines(generated)
    if timed := records.get("steps"):
        yield from _step_lines(timed)
    if training := records.get("training"):
        yield f"\n## training\n\n{training['about']}\n"
        yield "| model | parameters | steps | tokens/s | validation | test | density |"
        yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
        for model in training["models"]:
            if "failed" in model:
                yield f"| {model['title']} | failed: {model['failed']} | | | | | |"
                continue
            row = f"| {model['title']} | {model['parameters']:,} | {model['steps']} "
            row += f"| {model['tokens_per_second']:,.0f} | {_digits(model['validation_loss'])} "
            yield row + f"| {_digits(model['test_loss'])} | {_digits(model['density'])} |"
    if scale := records.get("scale"):
        yield from _scale_lines(scale)
    for step in session["steps"]:
        for label, part in step["commands"].items():
            if part["status"] != "passed":
                yield f"\n## {step['name']}, {label}: {part['status']}, its end\n\n```\n{part['end']}\n```"


def _generation_lines(record: dict[str, Any]) -> Iterator[str]:
    """Tokens a second of both models in every way, and the bytes of their caches and of a step."""
    yield "\n## gpu-generation: tokens a second, all texts together\n"
    yield "| texts x cached, way | model | tokens/s | × the Transformer's | cache, MiB | a step, MiB |"
    yield "| --- | --- |" + " ---: |" * 4
    for entry in record["entries"]:
        if entry["suite"] != "gpu-generation":
            continue
        for name, result in entry["contenders"].items():
            model = "OSN" if name.startswith("osn") else "Transformer"
            row = f"| {entry['name']} | {model} | "
            if "time" not in result:
                yield row + f"{result['status']}: {result['reason']} | | | |"
                continue
            held = entry["cache"].get(name.removesuffix("+graph"), {})
            speed = entry["case"]["batch"] / result["time"]["median"]
            over = f"{1 / result['ratio']['median']:.2f}" if "ratio" in result else ""
            wrong = "WRONG, " if result["status"] == "wrong" else ""
            row += f"{wrong}{speed:,.0f} | {over} | {_mib(held.get('nbytes'))} "
            yield row + f"| {_mib(result.get('note', {}).get('step_bytes'))} |"


def _step_lines(record: dict[str, Any]) -> Iterator[str]:
    yield f"\n## steps\n\n{record['about']}\n"
    yield "| tokens | form | model | parameters | seconds a step | MiB | density |"
    yield "| ---: | --- | --- |" + " ---: |" * 4
    for length in record["lengths"]:
        if "failed" in length:
            yield f"| {length['tokens']:,} | {length['form']} | failed: {length['failed']} | | | | |"
        for model in length["models"]:
            row = f"| {length['tokens']:,} | {length['form']} | {model['title']} | {model['parameters']:,} "
            row += f"| {model['median']:.4f} | {_mib(model['bytes'])} "
            yield row + f"| {_digits(model.get('density'))} |"
    yield "\n| the host, microseconds: form | N | pass | planned | without plans | new forms |"
    yield "| --- | ---: | --- |" + " ---: |" * 3
    for each in record["host"]:
        for which in ("forward", "backward"):
            numbers = " | ".join(
                f"{each[which][way]:,.0f}" for way in ("planned", "without plans", "new forms")
            )
            yield f"| {each['form']} | {each['tokens']:,} | {which} | {numbers} |"
    if "host_failed" in record:
        yield f"\nthe host's times: {record['host_failed']}"


def _mib(count: int | None) -> str:
    return "" if count is None else f"{count / 2**20:,.1f}"


def _scale_lines(record: dict[str, Any]) -> Iterator[str]:
    yield f"\n## scale: {record['state']}\n\n{record['about']}. Text: {record.get('text')}\n"
    heads = "size | model | parameters | learning rate | tokens | seeds | test, bits per byte | validation"
    yield f"| {heads} | tokens/s | density |\n| --- | --- |" + " ---: |" * 8
    for model in record["models"]:
        shown = [
            f"{model['parameters']:,}",
            f"{model['rate']:g}",
            f"{model['tokens']:,}",
            str(model["seeds"]),
        ]
        for name in ("test_bits_per_byte", "validation_bits_per_byte", "tokens_per_second", "density"):
            form = ",.0f" if name == "tokens_per_second" else ".4f"
            numbers = [model[name], model[f"{name}_spread"]]
            shown.append(" ± ".join(format(number, form) for number in numbers if number is not None))
        yield "| " + " | ".join([model["size"], model["title"], *shown]) + " |"
    for run in record["runs"]:
        if run.get("status") != "finished":
            what = f"{run.get('status', 'not done')}: {run.get('message', '')}"
            yield f"\n{run['size']}, {run['title']}, {run['rate']:g}, seed {run['seed']}: {what}"


def _alarms(session: dict[str, Any], records: dict[str, Any]) -> Iterator[str]:
    bad = [
        f"**TESTS FAILED** ({label}): {', '.join(part['tests']['failed'])}"
        for step in session["steps"]
        for label, part in step["commands"].items()
        if part["tests"] is not None and part["tests"]["failed"]
    ]
    bad += [
        f"**{part['status'].upper()}**: {step['name']}, {label}"
        for step in session["steps"]
        for label, part in step["commands"].items()
        if part["status"] != "passed"
    ]
    for name, record in records.items():
        for entry in record.get("entries", ()):
            bad += [
                f"**WRONG RESULT** ({name}): {entry['name']}, "
                f"d {entry['case']['head_dim']}, N {entry['case']['tokens']}, {entry['passes']}: "
                f"{who}: {result['reason']}"
                for who, result in entry["contenders"].items()
                if result["status"] == "wrong"
            ]
    yield from (f"- {line}" for line in bad or ["nothing failed so far"])


def _target_rows(record: dict[str, Any]) -> list[list[str]]:
    try:
        from syncattn_lab.targets import gpu

        return gpu.rows(record)
    except Exception as error:  # the summary has to be written, whatever else is broken
        return [["no table", "", "", f"{type(error).__name__}: {error}", ""]]


def _digits(number: float | None) -> str:
    return "" if number is None else f"{number:.3f}"
