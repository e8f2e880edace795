"""The tester: every model class with a tiny configuration, inputs and labels. A new one is a line of CASES.

The tests beside this file ask of each what transformers' own common tests ask of every model there;
`upstream.py` says where each of those is held, and why the others are not.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from syncattn.models import (
    OSNConfig,
    OSNForCausalLM,
    OSNForImageClassification,
    OSNForMaskedLM,
    OSNForQuestionAnswering,
    OSNForSequenceClassification,
    OSNForTimeSeriesPrediction,
    OSNForTokenClassification,
    OSNImageConfig,
    OSNImageModel,
    OSNModel,
    OSNSeriesConfig,
    OSNSeriesModel,
    TransformerConfig,
    TransformerForCausalLM,
    TransformerForMaskedLM,
    TransformerForQuestionAnswering,
    TransformerForSequenceClassification,
    TransformerForTokenClassification,
    TransformerModel,
)

BATCH, TOKENS, LABELS = 3, 7, 3
SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "initializer_range": 0.1,
    "num_labels": LABELS,
    "bos_token_id": 1,
    "pad_token_id": 0,
}
OSN = OSNConfig(**SIZES, density_range=(0.2, 0.8))  # the texts are too short for the default densities
MIXED = OSNConfig(
    **SIZES,
    density_range=(0.2, 0.8),
    position=["helix", "own_drift"],
    value_rotation=100.0,
    directed=[True, False],
    delay=[True, True],
    windows=[None, 5.0],
    detuning=True,
    freq_bias=True,
    bounded_content=True,
    tie_word_embeddings=False,
)
ENCODER = OSNConfig(**SIZES, density_range=(0.2, 0.8), is_causal=False)
ROTARY = TransformerConfig(**SIZES)
SHIFTED = TransformerConfig(**SIZES, delay=0.5, token_shift=True, tie_word_embeddings=False)
BOTH_WAYS = TransformerConfig(**SIZES, is_causal=False)
IMAGES = OSNImageConfig(**SIZES, density_range=(0.2, 0.8), image_size=(4, 6), patch_size=2, num_channels=2)
SERIES = OSNSeriesConfig(**SIZES, density_range=(0.2, 0.8), num_input_channels=2, prediction_length=3)


def text() -> dict[str, Tensor]:
    """Token ids, and a mask with left padding of 2, 0 and 4 tokens."""
    ids = torch.randint(2, 40, (BATCH, TOKENS), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(TOKENS) >= torch.tensor([[2], [0], [4]])).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def next_token() -> dict[str, Tensor]:
    """Labels of a causal language model: the text itself."""
    ids, mask = text().values()
    return {"labels": ids.masked_fill(mask == 0, -100)}


def masked_tokens() -> dict[str, Tensor]:
    """Labels of a masked language model: the last token of each text."""
    return {"labels": text()["input_ids"].masked_fill(torch.arange(TOKENS) < TOKENS - 1, -100)}


def class_of_each() -> dict[str, Tensor]:
    """A class for each text or image."""
    return {"labels": torch.arange(BATCH) % LABELS}


def class_of_tokens() -> dict[str, Tensor]:
    """A class for each token."""
    ids, mask = text().values()
    return {"labels": (ids % LABELS).masked_fill(mask == 0, -100)}


def answer() -> dict[str, Tensor]:
    """Where an answer starts and where it ends."""
    return {"start_positions": torch.tensor([3, 0, 4]), "end_positions": torch.tensor([4, 2, 6])}


def images() -> dict[str, Tensor]:
    """Pixels of images with 2 rows of 3 patches."""
    return {"pixel_values": torch.randn(BATCH, 2, 4, 6, generator=torch.Generator().manual_seed(1))}


def series() -> dict[str, Tensor]:
    """Two measurements at each of 7 times, of which the last series has 3 only."""
    values = torch.randn(BATCH, TOKENS, 2, generator=torch.Generator().manual_seed(1))
    observed = (torch.arange(TOKENS) >= torch.tensor([[0], [0], [4]]))[..., None].expand(-1, -1, 2)
    return {"past_values": values, "past_observed_mask": observed}


def measured_later() -> dict[str, Tensor]:
    """What is measured at the next 3 times."""
    return {"future_values": torch.randn(BATCH, 3, 2, generator=torch.Generator().manual_seed(2))}


_BUILT: dict[tuple[type, int], PreTrainedModel] = {}


class Case(NamedTuple):
    """A model class and what it is tested with."""

    model_class: type[PreTrainedModel]
    config: PreTrainedConfig  # left as it is: models get copies
    make_labels: Callable[[], dict[str, Tensor]] | None = None  # None: the class computes no loss
    make_inputs: Callable[[], dict[str, Tensor]] = text

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What `forward` is called with, the main input first."""
        return self.make_inputs()

    @property
    def labels(self) -> dict[str, Tensor]:
        """What makes `forward` compute a loss; empty if nothing does."""
        return {} if self.make_labels is None else self.make_labels()

    def make_config(self, **changes: Any) -> PreTrainedConfig:
        """A copy of the configuration with some fields assigned."""
        config = copy.deepcopy(self.config)
        for name, value in changes.items():
            setattr(config, name, value)
        return config

    def build(self, **changes: Any) -> PreTrainedModel:
        """A model in eval mode, the same at every call; `changes` are fields of the configuration."""
        key = self.model_class, id(self.config)
        if changes or key not in _BUILT:
            torch.manual_seed(0)
            model = self.model_class(self.make_config(**changes)).eval()
            if changes:
                return model
            _BUILT[key] = model
        return copy.deepcopy(_BUILT[key])  # calibrating takes longer than most tests do


CASES = [
    Case(OSNModel, OSN),
    Case(OSNForCausalLM, OSN, next_token),
    Case(OSNForCausalLM, MIXED, next_token),
    Case(TransformerModel, ROTARY),
    Case(TransformerForCausalLM, ROTARY, next_token),
    Case(TransformerForCausalLM, SHIFTED, next_token),
    Case(OSNModel, ENCODER),
    Case(OSNForMaskedLM, ENCODER, masked_tokens),
    Case(OSNForSequenceClassification, ENCODER, class_of_each),
    Case(OSNForSequenceClassification, OSN, class_of_each),
    Case(OSNForTokenClassification, ENCODER, class_of_tokens),
    Case(OSNForQuestionAnswering, ENCODER, answer),
    Case(TransformerForMaskedLM, BOTH_WAYS, masked_tokens),
    Case(TransformerForSequenceClassification, BOTH_WAYS, class_of_each),
    Case(TransformerForTokenClassification, BOTH_WAYS, class_of_tokens),
    Case(TransformerForQuestionAnswering, BOTH_WAYS, answer),
    Case(OSNImageModel, IMAGES, None, images),
    Case(OSNForImageClassification, IMAGES, class_of_each, images),
    Case(OSNSeriesModel, SERIES, None, series),
    Case(OSNForTimeSeriesPrediction, SERIES, measured_later, series),
]
NAMES = {id(MIXED): " mixed", id(SHIFTED): " shifted", id(ENCODER): " both ways", id(BOTH_WAYS): " both ways"}


def _cases(cases: list[Case]) -> dict[str, Any]:
    return {"params": cases, "ids": [c.model_class.__name__ + NAMES.get(id(c.config), "") for c in cases]}


@pytest.fixture(**_cases(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    """Every model class in turn."""
    return request.param


@pytest.fixture(**_cases([c for c in CASES if c.make_labels is not None]))
def trained(request: pytest.FixtureRequest) -> Case:
    """Every class that computes a loss."""
    return request.param


@pytest.fixture(**_cases([c for c in CASES if c.model_class.base_model_prefix in dir(c.build())]))
def head(request: pytest.FixtureRequest) -> Case:
    """Every class that is a base model and something on top of it."""
    return request.param


@pytest.fixture(**_cases([c for c in CASES if c.model_class.can_generate()]))
def generator(request: pytest.FixtureRequest) -> Case:
    """Every class that generates."""
    return request.param


@pytest.fixture(**_cases([c for c in CASES if c.make_inputs is text]))
def reader(request: pytest.FixtureRequest) -> Case:
    """Every class that reads token ids."""
    return request.param


@pytest.fixture(**_cases([c for c in CASES if c.make_labels in (class_of_each, class_of_tokens)]))
def classifier(request: pytest.FixtureRequest) -> Case:
    """Every class whose logits are as many as there are labels."""
    return request.param


@pytest.fixture
def leaves() -> Callable[[Any], list[Tensor]]:
    """The tensors of a model's outputs, nested as they may be; caches are left out."""

    def flat(outputs: Any) -> list[Tensor]:
        if isinstance(outputs, Tensor):
            return [outputs]
        values = outputs.values() if isinstance(outputs, dict) else outputs
        return [t for value in values for t in flat(value)] if isinstance(outputs, (dict, tuple)) else []

    return flat
