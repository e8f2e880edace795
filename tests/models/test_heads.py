"""Heads: what they compute, of whom, their losses, and how they are saved and loaded."""

import copy

import pytest
import torch
import torch.nn.functional as F
import transformers

from syncattn.models import (
    OSNConfig,
    OSNForCausalLM,
    OSNForMaskedLM,
    OSNForSequenceClassification,
    OSNModel,
    TransformerConfig,
    TransformerForMaskedLM,
    last_pooling,
    mean_pooling,
)

TASKS = ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
KINDS = ("osn", "osn paper", "alibi delay")
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
LABELS = {"num_labels": 3}


def answers(out):
    """What a head says, (B, ...)."""
    return torch.stack((out.start_logits, out.end_logits), -1) if "start_logits" in out else out.logits


def targets(task, ids):
    """Labels of a batch, by the names that `forward` has for them."""
    if task == "ForQuestionAnswering":
        return {"start_positions": torch.tensor([1, 0, 40]), "end_positions": torch.tensor([2, 12, 3])}
    if task == "ForSequenceClassification":
        return {"labels": torch.tensor([0, 2, 1])}
    labels = ids % 3 if task == "ForTokenClassification" else ids.clone()
    labels[:, ::2] = -100
    return {"labels": labels}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_padding_changes_nothing(build_head, ids, kind, task, is_causal, side):
    if task == "ForMaskedLM" and is_causal:
        return
    model = build_head(kind, task, is_causal, **LABELS)
    lengths = [13, 9, 1]
    mask = torch.stack([torch.arange(13) < n for n in lengths]).long()
    mask = mask.flip(1) if side == "left" else mask
    padded = answers(model(ids, mask))
    for row in range(3):
        real = mask[row].bool()
        alone = answers(model(ids[row : row + 1, real]))[0]
        found = padded[row] if task == "ForSequenceClassification" else padded[row, real]
        torch.testing.assert_close(found, alone, **TOLERANCE)


@torch.no_grad()
def test_what_each_computes(build_head, ids, mask):
    for is_causal, pool in ((False, mean_pooling), (True, last_pooling)):
        model = build_head("osn", "ForSequenceClassification", is_causal, **LABELS)
        out = model(ids, mask, output_hidden_states=True, output_attentions=True)
        assert out.logits.shape == (3, 3) and len(out.hidden_states) == 3 and len(out.attentions) == 2
        assert torch.equal(out.logits, model.score(pool(out.hidden_states[-1], mask)))
        assert (out.past_key_values is not None) == is_causal
        embedded = model.get_input_embeddings()(ids)
        again = model(inputs_embeds=embedded, attention_mask=mask).logits
        assert torch.equal(again, model(ids, mask, return_dict=False)[0])
        torch.testing.assert_close(again, out.logits, **TOLERANCE)  # weights come from another backend
    masked = build_head("osn", "ForMaskedLM")
    hidden = masked.model(ids, mask).last_hidden_state
    assert torch.equal(masked(ids, mask).logits, F.linear(hidden, masked.model.embed_tokens.weight))
    tokens = build_head("osn", "ForTokenClassification", **LABELS)
    assert torch.equal(tokens(ids, mask).logits, tokens.score(hidden))
    answer = build_head("osn", "ForQuestionAnswering")
    assert torch.equal(answers(answer(ids, mask)), answer.qa_outputs(hidden))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients(build_head, ids, mask, kind, task):
    model = build_head(kind, task, **LABELS).train()
    labels = targets(task, ids)
    out = model(ids, mask, **labels)
    logits = answers(out)
    if task == "ForQuestionAnswering":  # a start beyond the text does not count
        ends = labels["end_positions"]
        starts = F.cross_entropy(logits[:2, :, 0], labels["start_positions"][:2])
        expected = (starts + F.cross_entropy(logits[..., 1], ends)) / 2
    else:
        expected = F.cross_entropy(logits.flatten(0, -2), labels["labels"].flatten())
    torch.testing.assert_close(out.loss, expected)
    out.loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model.gradient_checkpointing_enable()
    model(ids, mask, **labels).loss.backward()
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_the_loss_of_a_part_of_the_masked_tokens(build_head, ids):
    model = build_head("osn", "ForMaskedLM")
    labels = targets("ForMaskedLM", ids)["labels"]
    with torch.no_grad():
        mean, summed = (model(ids, labels=labels, num_items_in_batch=n).loss for n in (None, 100))
    torch.testing.assert_close(summed, mean * (labels != -100).sum() / 100)


@pytest.mark.parametrize(
    ("num_labels", "labels", "problem", "loss"),
    [
        (3, torch.tensor([0, 2, -100]), "single_label_classification", F.cross_entropy),
        (
            3,
            torch.tensor([[0, 1, 1], [0, 0, 0], [1, 0, 1]]).float(),
            "multi_label_classification",
            F.binary_cross_entropy_with_logits,
        ),
        (2, torch.randn(3, 2), "regression", F.mse_loss),
        (1, torch.randn(3), "regression", F.mse_loss),
        (1, torch.tensor([[1], [0], [2]]), "regression", F.mse_loss),
    ],
)
def test_problem_types(build_head, ids, num_labels, labels, problem, loss):
    given = problem if (num_labels, problem) == (2, "regression") else None
    for dtype in (torch.float32, torch.bfloat16):
        fields = {"num_labels": num_labels, "problem_type": given}
        model = build_head("osn", "ForSequenceClassification", **fields).to(dtype)
        out = model(ids, labels=labels)
        out.loss.backward()
        assert model.config.problem_type == problem and model.config.num_labels == num_labels
        wanted = labels.float().reshape(3, 1) if num_labels == 1 else labels
        torch.testing.assert_close(out.loss, loss(out.logits.float(), wanted))


@pytest.mark.parametrize(
    ("num_labels", "labels", "problem", "message"),
    [
        (3, torch.tensor([0, 3, 1]), None, "labels must be below num_labels = 3, or -100, got 3"),
        (3, torch.tensor([0, -1, 1]), None, "or -100, got -1"),
        (3, torch.tensor([[0, 1, 1]] * 3), None, r"integers of shape \(3,\) .* got torch.int64 \(3, 3\)"),
        (3, torch.rand(3), None, r"numbers of shape \(3, 3\) .*'multi_label_classification', got"),
        (3, torch.rand(3), "single_label_classification", r"labels must be integers .* torch.float32 \(3,\)"),
        (2, torch.rand(3), "regression", r"labels must be numbers of shape \(3, 2\) .* \(3,\)"),
        (1, torch.rand(3, 2), None, r"numbers of shape \(3,\) or \(3, 1\) .* \(3, 2\)"),
    ],
)
def test_bad_labels(build_head, ids, num_labels, labels, problem, message):
    model = build_head("osn", "ForSequenceClassification", num_labels=num_labels, problem_type=problem)
    with pytest.raises(ValueError, match=message):
        model(ids, labels=labels)


def test_who_must_be_bidirectional(ids, build_head):
    for kind, config in ((OSNForMaskedLM, OSNConfig), (TransformerForMaskedLM, TransformerConfig)):
        with pytest.raises(ValueError, match=f"is_causal must be False for {kind.__name__}, got True"):
            kind(config())
    for task in TASKS:
        model = build_head("osn", task)
        assert not model.can_generate() and not hasattr(model, "generate")
        with pytest.raises(ValueError, match="use_cache must be left out with is_causal=False"):
            model(ids, use_cache=True)


@torch.no_grad()
def test_a_text_that_goes_on_after_cached_tokens(build_head, ids):
    """The mask then speaks of these, too."""
    model = build_head("osn", "ForSequenceClassification", is_causal=True, **LABELS)
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    cache = model(ids[:, :7], mask[:, :7], use_cache=True).past_key_values
    rest = model(ids[:, 7:], mask, past_key_values=cache)
    torch.testing.assert_close(rest.logits, model(ids, mask).logits, **TOLERANCE)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", ["osn", "alibi delay"])
@torch.no_grad()
def test_saving_and_loading_in_shards(build_head, ids, kind, task, tmp_path):
    model = build_head(kind, task, id2label={0: "zero", 1: "one", 2: "two"})
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    assert len([*tmp_path.glob("*.safetensors")]) > 2
    auto = getattr(transformers, "AutoModel" + task)
    loaded, report = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is type(model) and not any(report.values()) and not loaded.config.is_causal
    assert loaded.config is loaded.model.config and loaded.config.id2label == {0: "zero", 1: "one", 2: "two"}
    assert torch.equal(answers(loaded(ids)), answers(model(ids)))
    half = auto.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert (answers(half(ids)).float() - answers(model(ids))).abs().max() < 0.2
    assert type(auto.from_config(model.config)) is type(model)
    base = transformers.AutoModel.from_pretrained(tmp_path)
    assert torch.equal(base(ids).last_hidden_state, model.model(ids).last_hidden_state)
    assert type(transformers.AutoModelForTextEncoding.from_pretrained(tmp_path)) is type(base)


NEW = {
    "ForMaskedLM": set(),
    "ForSequenceClassification": {"score.weight"},
    "ForTokenClassification": {"score.weight", "score.bias"},
    "ForQuestionAnswering": {"qa_outputs.weight", "qa_outputs.bias"},
}


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("task", TASKS)
def test_a_causal_checkpoint_gets_a_head(build_model, task, is_causal, tmp_path):
    """All that it has is kept, and what is new is named as missing."""
    if task == "ForMaskedLM" and is_causal:
        return
    causal = build_model("osn")
    causal.save_pretrained(tmp_path)
    auto = getattr(transformers, "AutoModel" + task)
    model, report = auto.from_pretrained(
        tmp_path, is_causal=is_causal, num_labels=3, output_loading_info=True
    )
    assert set(report["missing_keys"]) == NEW[task]
    assert not report["unexpected_keys"] and not report["mismatched_keys"]
    for name, tensor in model.model.state_dict().items():
        assert torch.equal(tensor, causal.model.state_dict()[name]), name


def test_an_encoder_is_no_causal_model(build_head, tmp_path):
    build_head("osn", "ForMaskedLM").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is_causal must be True for OSNForCausalLM, got False"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    again = OSNForCausalLM.from_pretrained(tmp_path, is_causal=True)
    assert again.generate(torch.tensor([[1, 2]]), max_new_tokens=2).shape == (1, 4)


@pytest.mark.parametrize("task", TASKS)
def test_more_tokens(build_head, ids, task):
    model = build_head("osn", task, **LABELS)
    model.resize_token_embeddings(50, mean_resizing=False)
    assert model.config.vocab_size == model.model.config.vocab_size == 50
    out = model(ids + 9)
    assert answers(out).isfinite().all()
    if task == "ForMaskedLM":
        assert out.logits.shape[-1] == 50 and model.lm_head.weight is model.model.embed_tokens.weight
    with pytest.raises(ValueError, match="below vocab_size = 50"):
        model(ids + 38)


def test_dropout_of_the_classifier(ids):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 40}
    model = OSNForSequenceClassification(OSNConfig(**sizes, classifier_dropout=0.5)).train()
    assert model.dropout.p == 0.5 and not torch.equal(model(ids).logits, model(ids).logits)
    model = OSNForSequenceClassification(OSNConfig(**sizes, hidden_dropout=0.25))
    assert model.dropout.p == 0.25
    assert torch.equal(model.eval()(ids).logits, model(ids).logits)


@torch.no_grad()
def test_positions_on_two_axes(build_head):
    """An image's rows and columns, say: heads pass positions on."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 40}
    config = OSNConfig(**sizes, axes=2, is_causal=False)
    ids = torch.randint(0, 40, (2, 9))
    places = torch.cartesian_prod(torch.arange(3.0), torch.arange(3.0))[None]
    for task in TASKS:
        model = getattr(transformers, "AutoModel" + task).from_config(copy.deepcopy(config)).eval()
        found = answers(model(ids, positions=places))
        order = torch.randperm(9)
        torch.testing.assert_close(answers(model(ids, positions=places + 7.0)), found, **TOLERANCE)
        assert not torch.allclose(answers(model(ids, positions=places[:, order])), found, atol=1e-5)


def test_the_base_is_one_object_with_the_auto_classes(build_head):
    assert transformers.AutoModel.from_config(OSNConfig()).__class__ is OSNModel
    for task in TASKS:
        model = build_head("osn", task)
        assert model.config is model.model.config and model.base_model is model.model
