"""What stands beside saved weights, so that others can use them: a model card, and where the classes are.

transformers runs Python code that a model's folder names in its `auto_map`, if the folder is trusted. Here
that is one line, which imports the classes from this package: without it transformers says that it is to be
installed. Where it is imported nothing is run: a registered model's own classes are taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import transformers
from transformers import PreTrainedModel

CARD = "README.md"
CLASSES = "syncattn_models"
"""The name of the module that is written beside the weights."""

_OURS = "<!-- Written by syncattn -->"
_TASKS = {
    "ForCausalLM": "text-generation",
    "ForMaskedLM": "fill-mask",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForImageClassification": "image-classification",
    "ForTimeSeriesPrediction": "time-series-forecasting",
    "Model": "feature-extraction",
}


def accompany(model: PreTrainedModel, folder: Path, *sections: str) -> None:
    """Write the card and the classes' module of a model that is to be saved, and name it in its config.

    A card that somebody else wrote is left as it is, and so is any where no sections are given: a run's card
    has its numbers, which a model alone does not know. One that says nothing but another class is replaced.

    Args:
        model: of this package; of a class that is not, there is a card, and no module.
        folder: made if it is not there.
        sections: of the card, in Markdown, behind the introduction.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.config.auto_map = auto_map(model)
    if model.config.auto_map:
        names = sorted({reference.partition(".")[2] for reference in model.config.auto_map.values()})
        _write(folder / f"{CLASSES}.py", _MODULE.format(names=", ".join(names)))
    path = folder / CARD
    if not path.exists() or (not is_foreign(path) and (sections or _is_outdated(path, model))):
        _write(path, card(model, sections))


def auto_map(model: PreTrainedModel) -> dict[str, str]:
    """transformers' table of the classes to load a model with; empty if they are not of this package."""
    kind = type(model)
    if not kind.__module__.startswith("syncattn.models."):
        return {}
    classes = {"AutoConfig": type(model.config).__name__}
    auto = "AutoModel" + _head(kind.__name__).replace("Model", "")
    if hasattr(transformers, auto):
        classes[auto] = kind.__name__
    return {name: f"{CLASSES}.{found}" for name, found in classes.items()}


def is_foreign(path: Path) -> bool:
    """Whether there is a card at `path` that this module has not written."""
    if not path.is_file():
        return path.exists()
    return _OURS not in path.read_text(encoding="utf-8", errors="replace")


def _is_outdated(path: Path, model: PreTrainedModel) -> bool:
    """Whether a card of ours records nothing, and is of another class than the model's."""
    text = path.read_text(encoding="utf-8", errors="replace")
    return text.endswith(f"{_UNKNOWN}\n") and f"\n# {type(model).__name__}, " not in text


def card(model: PreTrainedModel, sections: Iterable[str] = ()) -> str:
    """A model card in Markdown: what the model is, how to load it, and `sections`.

    The metadata leave the licence out, which only the owner of the training text and the weights can give.
    """
    config, name = model.config, type(model).__name__
    head = _head(name)
    auto = "AutoModel" + head.replace("Model", "")
    auto = auto if hasattr(transformers, auto) else "AutoModel"
    use = _USE.format(auto=auto) if auto_map(model) else _USE_OTHER.format(name=name)
    tensors = {id(parameter): parameter for parameter in model.parameters()}
    size = sum(parameter.numel() for parameter in tensors.values())
    sizes = f"Layers: {config.num_hidden_layers}; heads: {config.num_attention_heads}; width: "
    sizes += str(config.hidden_size)
    task = _TASKS.get(head) if auto_map(model) else None
    metadata = ["library_name: transformers", f"tags: [syncattn, {config.model_type}]"]
    metadata += [f"pipeline_tag: {task}"] if task else []
    parts = [
        "---\n" + "\n".join(metadata) + "\n---",
        _OURS,
        f"# {name}, {size:,} parameters",
        f"{sizes}. {_WHAT.get(config.model_type, '')}".strip(),
        "## Use it",
        use,
        *(sections or (_UNKNOWN,)),
    ]
    return "\n\n".join(parts) + "\n"


def _head(name: str) -> str:
    """`OSNForCausalLM` to `ForCausalLM`, `OSNModel` to `Model`."""
    found = re.search(r"(For[A-Z]\w*|Model)$", name)
    return found[0] if found else "Model"


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    partial = path.with_name(f".partial-{path.name}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


_MODULE = '''"""The classes of this model are in the package syncattn: pip install 'syncattn[hf]'."""

from syncattn.models import {names}  # noqa: F401
'''

_OSN = (
    "An Oscillatory Synchronization Network: {what} are oscillators that exchange information "
    "only where they phase-lock, and all other pairs weigh exactly 0 (Selective Synchronization Attention, "
    "[arXiv 2602.14445](https://arxiv.org/abs/2602.14445))."
)
_WHAT = {
    "osn": _OSN.format(what="tokens"),
    "osn_image": _OSN.format(what="patches"),
    "osn_series": _OSN.format(what="measurements"),
    "syncattn_transformer": "A Transformer with softmax attention, made to be compared with an OSN.",
}

_USE = """Its classes are in the package syncattn: `pip install 'syncattn[hf]'`.

```python
import syncattn.models  # registers them
from transformers import {auto}

model = {auto}.from_pretrained("path/to/this/folder")
```"""

_USE_OTHER = """Its class, {name}, is not in the package syncattn, on which it is built: ask its owner for it.

```python
model = {name}.from_pretrained("path/to/this/folder")
```"""

_UNKNOWN = """## Training

Not recorded in this folder: what it was trained on, how well it does, and under which licence it may be used
are for its owner to add."""
