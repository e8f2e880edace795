"""A study's plan: a TOML file that names tasks, models and what is varied; see docs/laboratory.md."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from syncattn.models import OSNConfig, TransformerConfig, count_parameters, fit_parameters
from syncattn.training.errors import UserError
from syncattn.training.options import TrainingOptions
from syncattn.training.settings import config_errors
from syncattn_lab.study.peers.models import PeerConfig

KINDS = ("comparison", "ablation", "density", "stability", "size", "synthetic")
"""What the report does with a group."""

MODELS: dict[str, Any] = {"osn": OSNConfig, "transformer": TransformerConfig, "peer": PeerConfig}
TEXT = "text"
BUILT_IN_TASKS: dict[str, dict[str, Any]] = {
    "stdlib": {"kind": TEXT, "text": ["stdlib"]},
    "pydoc": {"kind": TEXT, "text": ["pydoc"]},
}

_PLAN = {"model", "training", "task", "group", "seeds", "learning_rates", "tasks"}
_GROUP = {
    "name",
    "kind",
    "title",
    "tasks",
    "seeds",
    "learning_rates",
    "lengths",
    "model",
    "training",
    "variant",
}
_VARIANT = {"name", "title", "prediction", "model", "config", "training", "learning_rates", "tasks", "seeds"}
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
_VARIED = {"learning_rate", "seed"}
_CORPUS = {"vocab_size", "max_position_embeddings", "is_causal"}  # fields that the task decides
_DEFAULTS = {"threads": 1, "device": "cpu", "max_partners": None, "start_partners": None}
"""One thread a run: two runs on two cores are faster than one run on both. Partners are bounded where a plan
says so, by what it says: it compares, and names what it compares."""
_PLAIN: dict[str, dict[str, Any]] = {"osn": {"nearest_gate": False, "directed": False, "directed_rank": None}}
"""Likewise a model has the gate, and directed heads, where a plan says so, whatever the defaults are."""


@dataclass(frozen=True)
class Run:
    """One training run of a plan.

    Attributes:
        group, kind, group_title: what it belongs to, and what the report does with that.
        task, task_options: what is learned: `task_options["kind"]` is "text" or a synthetic kind.
        variant, title, model: which model, by name, in words, and as a key of `MODELS`.
        sizes: of the rotary Transformer that every model of the group has as many parameters as.
        config: what the variant's config has besides or instead, its own fields.
        prediction: what its author expects of the variant, written down before it runs; "" for nothing.
        options: how it is trained.
        lengths: contexts, in tokens, at which the finished model is evaluated besides (text only).
        first: whether it is of the group's first seed, with which the learning rate is chosen.
        order: its number in the plan.
    """

    group: str
    kind: str
    group_title: str
    task: str
    task_options: dict[str, Any]
    variant: str
    title: str
    model: str
    sizes: dict[str, Any]
    config: dict[str, Any]
    options: TrainingOptions
    lengths: tuple[int, ...]
    first: bool
    order: int = 0
    prediction: str = ""

    @property
    def cell(self) -> str:
        """What a learning rate is chosen for: group, task and variant."""
        return f"{self.group}/{self.task}/{self.variant}"

    @property
    def key(self) -> str:
        """The run's name, unique in the plan."""
        return f"{self.cell}/lr{self.options.learning_rate!r}/seed{self.options.seed}"


@dataclass(frozen=True)
class Plan:
    """All runs that may be done: of the seeds after a group's first, only those of the chosen rate are."""

    runs: tuple[Run, ...]
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)

    def cells(self) -> dict[str, list[Run]]:
        """The runs by what a learning rate is chosen for, in the plan's order."""
        found: dict[str, list[Run]] = {}
        for run in self.runs:
            found.setdefault(run.cell, []).append(run)
        return found

    def only(self, groups: Sequence[str]) -> Plan:
        """The runs of some groups; of all, if none is named.

        Raises:
            UserError: there is no such group.
        """
        names = list(dict.fromkeys(run.group for run in self.runs))
        for group in groups:
            if group not in names:
                raise UserError(f"--group must be one of {', '.join(names)}, got {group!r}")
        runs = tuple(run for run in self.runs if not groups or run.group in groups)
        return Plan(runs, {name: self.tasks[name] for name in dict.fromkeys(run.task for run in runs)})

    def at(self, device: str | None, backend: str | None) -> Plan:
        """The same runs on this device, synchronization layers by this backend; None: as the plan says.

        Raises:
            UserError: there is no such device.
        """

        def placed(run: Run) -> Run:
            options = run.options if device is None else replace(run.options, device=device)
            if backend is not None and run.model == "osn":
                options = replace(options, backend=backend)
            return replace(run, options=options)

        return replace(self, runs=tuple(placed(run) for run in self.runs))


def read_plan(path: str | Path) -> Plan:
    """Read and check a plan file.

    Raises:
        UserError: it cannot be read, or something in it is unknown, missing or out of range; the message
            names the file and the place.
    """
    path = Path(path)
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the plan {path}: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"the plan {path} is not TOML: {error}") from error
    try:
        return make_plan(data)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def make_plan(data: dict[str, Any]) -> Plan:
    """A plan from what its file holds.

    Raises:
        UserError: as `read_plan`.
    """
    _known("the plan", data, _PLAN)
    tasks = BUILT_IN_TASKS | data.get("task", {})
    runs: list[Run] = []
    for group in data.get("group", []):
        runs += _group_runs(group, data, tasks)
    if not runs:
        raise UserError("the plan has no runs: expected at least one [[group]] with a [[group.variant]]")
    keys = [run.key for run in runs]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise UserError(f"the run {twice[0]} is twice in the plan: each group and variant needs its own name")
    used = {run.task for run in runs}
    return Plan(
        tuple(replace(run, order=order) for order, run in enumerate(runs)),
        {name: options for name, options in tasks.items() if name in used},
    )


def build_config(run: Run, vocab_size: int, context: int) -> Any:
    """The run's config, with as many parameters as a rotary Transformer of the group's sizes, within 1 %.

    Raises:
        UserError: what the config refuses, or a model too small to be matched so closely.
    """
    shared: dict[str, Any] = {"vocab_size": vocab_size, "max_position_embeddings": context}
    try:
        with config_errors():
            config = MODELS[run.model](**run.sizes | _PLAIN.get(run.model, {}) | run.config, **shared)
            return fit_parameters(config, count_parameters(TransformerConfig(**run.sizes, **shared)))
    except UserError as error:
        raise UserError(f"{run.cell}: {error}") from error


def _group_runs(group: dict[str, Any], data: dict[str, Any], tasks: dict[str, Any]) -> list[Run]:
    name = _name("group", group)
    where = f"group {name!r}"
    _known(where, group, _GROUP)
    kind = group.get("kind")
    if kind not in KINDS:
        raise UserError(f"{where}: kind must be one of {', '.join(KINDS)}, got {kind!r}")
    sizes = data.get("model", {}) | group.get("model", {})
    _known(f"{where}: model", sizes, SIZES)
    runs: list[Run] = []
    for variant in group.get("variant", []):
        inside = f"{where}, variant {_name('variant', variant)!r}"
        _known(inside, variant, _VARIANT)
        model = variant.get("model", "osn")
        if model not in MODELS:
            raise UserError(f"{inside}: model must be one of {', '.join(MODELS)}, got {model!r}")
        config = variant.get("config", {})
        _known(f"{inside}: config", config, {*MODELS[model].own_fields()} - _CORPUS)
        prediction = variant.get("prediction", "")
        if not isinstance(prediction, str):
            raise UserError(f"{inside}: prediction must be a sentence, got {prediction!r}")
        seeds = _list(inside, "seeds", variant, group, data)
        rates = _list(inside, "learning_rates", variant, group, data)
        for task in _list(inside, "tasks", variant, group, data):
            if task not in tasks:
                raise UserError(f"{inside}: no task {task!r}, expected one of {', '.join(sorted(tasks))}")
            text = tasks[task].get("kind") == TEXT
            base: dict[str, Any] = {}
            for place in (data, group, variant):
                given = place.get("training", {})
                if "steps" in given:  # a budget of the one kind replaces one of the other
                    base.pop("tokens", None)
                base |= given
            for position, seed in enumerate(seeds):
                for rate in rates:
                    runs.append(
                        Run(
                            group=name,
                            kind=kind,
                            group_title=group.get("title", name),
                            task=task,
                            task_options=tasks[task],
                            variant=variant["name"],
                            title=variant.get("title", variant["name"]),
                            model=model,
                            sizes=sizes,
                            config=config,
                            options=_options(inside, base, rate, seed),
                            lengths=tuple(group.get("lengths", ())) if text else (),
                            first=position == 0,
                            prediction=prediction,
                        )
                    )
    tasks_in_order = list(dict.fromkeys(run.task for run in runs))
    return sorted(runs, key=lambda run: tasks_in_order.index(run.task))  # one task after the other


def _options(where: str, given: dict[str, Any], rate: float, seed: int) -> TrainingOptions:
    """The options of one run; the file may give a budget in "tokens" in place of "steps"."""
    _known(f"{where}: training", given, {f.name for f in fields(TrainingOptions)} - _VARIED | {"tokens"})
    chosen = {name: value for name, value in given.items() if name != "tokens"}
    try:
        options = TrainingOptions(**{**_DEFAULTS, **chosen}, learning_rate=rate, seed=seed)
        return options.for_tokens(given["tokens"]) if "tokens" in given else options
    except (UserError, TypeError) as error:
        raise UserError(f"{where}: training: {error}") from error


def _list(where: str, name: str, *places: dict[str, Any]) -> list[Any]:
    """A list that the variant has, or its group, or the plan."""
    for place in places:
        if name in place:
            found = place[name]
            if not isinstance(found, list) or not found or len(set(map(str, found))) < len(found):
                raise UserError(f"{where}: {name} must be a list of different entries, got {found!r}")
            return found
    raise UserError(f"{where}: {name} is missing: give it to the variant, the group or the whole plan")


def _name(what: str, entry: dict[str, Any]) -> str:
    name = entry.get("name")
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
        raise UserError(f"each {what} needs a name of letters, digits, '-', '_' and '.', got {name!r}")
    return name


def _known(where: str, given: dict[str, Any], known: Collection[str]) -> None:
    for name in given.keys() - set(known):
        near = difflib.get_close_matches(name, list(known))
        hint = f"; did you mean {near[0]}?" if near else f": expected {', '.join(sorted(known))}"
        raise UserError(f"{where} has no {name!r}{hint}")
