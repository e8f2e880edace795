"""Labels that a loss would broadcast, flatten or misread are refused, naming what was given."""

import pytest
import torch

from syncattn.models import (
    OSNConfig,
    OSNForCausalLM,
    OSNForImageClassification,
    OSNForMaskedLM,
    OSNForQuestionAnswering,
    OSNForSequenceClassification,
    OSNForTokenClassification,
    OSNImageConfig,
    TransformerConfig,
    TransformerForTokenClassification,
)

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
IDS = torch.arange(14).reshape(2, 7)


def make(kind, config=OSNConfig, **options):
    options = {"vocab_size": 64, "is_causal": kind is OSNForCausalLM, "num_labels": 3} | options
    return kind(config(**SIZES, **options)).eval()


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (OSNForCausalLM, OSNConfig),
        (OSNForMaskedLM, OSNConfig),
        (OSNForTokenClassification, OSNConfig),
        (TransformerForTokenClassification, TransformerConfig),
    ],
)
def test_labels_of_tokens(kind, config):
    model = make(kind, config)
    classes = 3 if "Token" in kind.__name__ else 64
    labels = IDS % classes
    loss = model(IDS, labels=labels).loss
    assert loss.isfinite() and torch.equal(model(IDS, labels=labels.int()).loss, loss)
    for wrong in (labels.T, labels[:, :6], labels[:, 0], labels.float()):
        with pytest.raises(ValueError, match=r"labels must be integers of shape \(B, N\) = \(2, 7\), got"):
            model(IDS, labels=wrong)
    for wrong in (classes, -1):
        with pytest.raises(ValueError, match=rf"labels must be below \w+ = {classes}, or -100, got {wrong}"):
            model(IDS, labels=labels.clone().fill_(wrong))
    with pytest.raises(TypeError, match="labels must be a tensor, got list"):
        model(IDS, labels=labels.tolist())
    with pytest.raises(ValueError, match="input_ids must be integer token ids"):
        model(IDS.float(), labels=labels)


def test_another_index_that_does_not_count():
    model = make(OSNForCausalLM)
    ignored = IDS.masked_fill(IDS % 2 == 0, -100)
    expected = model(IDS, labels=ignored).loss
    assert torch.equal(
        model(IDS, labels=ignored.masked_fill(ignored < 0, -1), ignore_index=-1).loss, expected
    )


def test_labels_of_answers():
    model = make(OSNForQuestionAnswering)
    inside = {"start_positions": torch.tensor([1, 9]), "end_positions": torch.tensor([2, 9])}
    before = {"start_positions": torch.tensor([[1], [-5]]), "end_positions": torch.tensor([[2], [-100]])}
    assert torch.equal(model(IDS, **before).loss, model(IDS, **inside).loss)  # neither counts
    with pytest.raises(ValueError, match="end_positions must be given with start_positions, got"):
        model(IDS, start_positions=inside["start_positions"])
    with pytest.raises(ValueError, match=r"end_positions must be integers of shape \(2,\) or \(2, 1\), got"):
        model(IDS, **inside | {"end_positions": torch.ones(2)})


def test_labels_of_texts_and_images():
    images = OSNImageConfig(**SIZES, image_size=4, patch_size=2, num_channels=1, num_labels=3)
    for model, x in (
        (make(OSNForSequenceClassification), IDS),
        (OSNForImageClassification(images).eval(), torch.rand(2, 1, 4, 4)),
    ):
        with pytest.raises(TypeError, match="labels must be a tensor, got list"):
            model(x, labels=[0, 1])
        with pytest.raises(ValueError, match="labels must be below num_labels = 3, or -100, got 3"):
            model(x, labels=torch.tensor([0, 3]))
        assert model(x, labels=torch.tensor([0, 2]).int()).loss.isfinite()
        model.config.problem_type = "regression"
        with pytest.raises(ValueError, match=r"labels must be numbers of shape \(2, 3\) with num_labels"):
            model(x, labels=torch.rand(2, 1))  # would be broadcast
        assert model(x, labels=torch.rand(2, 3)).loss.isfinite()
