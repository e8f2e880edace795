"""Several texts in a model's row: each gives what it gives alone, however transformers' users pack them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DataCollatorWithFlattening, Trainer, TrainingArguments

import syncattn
from syncattn.models import (
    DecoderCache,
    OSNConfig,
    OSNForCausalLM,
    OSNForImageClassification,
    OSNForMaskedLM,
    OSNForQuestionAnswering,
    OSNForSequenceClassification,
    OSNForTimeSeriesPrediction,
    OSNForTokenClassification,
    OSNImageConfig,
    OSNModel,
    OSNSeriesConfig,
)
from syncattn.nn.presets import PRESETS

from .conftest import CONFIGS, DENSE, build

LENGTHS = (5, 1, 8, 12)
TOKENS = sum(LENGTHS)


def texts_of(lengths, vocabulary=40):
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(1, vocabulary, (n,), generator=generator) for n in lengths]


def said(lengths, way):
    """The arguments that tell texts of these lengths apart, in one of the ways there are."""
    whole = {"return_flash_attn_kwargs": True, "return_seq_idx": True}
    made = DataCollatorWithFlattening(**whole)([{"input_ids": [1] * n} for n in lengths])
    ids = syncattn.sequence_ids_of(made["cu_seq_lens_q"])
    ways = {
        "position_ids": {"position_ids": made["position_ids"]},
        "positions from 2": {"position_ids": made["position_ids"] + 2},
        "seq_idx": {"seq_idx": made["seq_idx"]},
        "sequence_ids": {"sequence_ids": 3 * ids + 1},
        "cu_seq_lens": {name: made[name] for name in ("cu_seq_lens_q", "cu_seq_lens_k")},
        "all": {name: x for name, x in made.items() if name not in ("input_ids", "labels")},
        "gaps": {"sequence_ids": ids, "position_ids": torch.arange(ids.shape[1])[None] * 2 + 7 * ids},
    }
    return ways[way]


WAYS = ("position_ids", "positions from 2", "seq_idx", "sequence_ids", "cu_seq_lens", "all")


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return found


@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=3, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4), way=st.sampled_from(WAYS))
def test_each_text_as_if_alone_with_its_gradients(name, lengths, way):
    model, texts = build(name), texts_of(lengths)
    row = torch.cat(texts)[None]
    packed = model(row, labels=row, **said(lengths, way))
    alone = [model(text[None], labels=text[None]) for text in texts]
    for part, whole in zip(packed.logits.split(lengths, 1), alone, strict=True):
        torch.testing.assert_close(part, whole.logits, rtol=1e-5, atol=1e-5)
    counted = sum(n - 1 for n in lengths)
    if counted == 0:  # nobody has a token before
        assert packed.loss.isnan() or packed.loss == 0
        return
    each = [out.loss * (n - 1) for out, n in zip(alone, lengths, strict=True) if n > 1]
    loss = sum(each) / counted
    torch.testing.assert_close(packed.loss, loss, rtol=1e-5, atol=1e-5)
    for a, b in zip(gradients(model, packed.loss), gradients(model, loss), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * max(1.0, float(b.abs().max())))


@pytest.mark.parametrize("name", PRESETS)
def test_texts_in_presets_with_what_looks_farther_back(name):
    """Each text as if alone, with its gradients, where tokens stand on several axes, too."""
    back = {"token_shift": False, "short_convolution": 5, "value_residual": True}
    back = back if name in ("text", "series") else {"value_residual": True}
    torch.manual_seed(0)
    model = OSNForCausalLM(OSNConfig.preset(name, **DENSE, **{"is_causal": True} | back)).eval()
    axes, texts = model.config.axes, texts_of(LENGTHS)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.value_mix.normal_()
            if layer.self_attn.shift is not None:
                layer.self_attn.shift.normal_(std=0.2)
    row = torch.cat(texts)[None]
    places = 4 * torch.rand(1, TOKENS, axes) if axes > 1 else None
    apart = [None] * len(texts) if places is None else places.split(LENGTHS, 1)
    packed = model(row, labels=row, positions=places, **said(LENGTHS, "sequence_ids"))
    alone = [model(t[None], labels=t[None], positions=at) for t, at in zip(texts, apart, strict=True)]
    torch.testing.assert_close(packed.logits, torch.cat([x.logits for x in alone], 1), rtol=1e-5, atol=1e-5)
    told = [(out.loss, n - 1) for out, n in zip(alone, LENGTHS, strict=True) if n > 1]
    loss = sum(each * n for each, n in told) / (TOKENS - len(LENGTHS))
    for a, b in zip(gradients(model, packed.loss), gradients(model, loss), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * max(1.0, float(b.abs().max())))


@pytest.mark.parametrize("name", ["osn mix", "rotary token shift", "alibi", "no position", "yarn"])
@torch.no_grad()
def test_rows_of_their_own_and_padding(name):
    """Ids of several rows, padding within and at the end, and what stands there is nothing to anybody."""
    model, texts = build(name), texts_of((4, 7, 6, 3))
    ids = torch.tensor([[0] * 4 + [-1] * 2 + [1] * 7, [5] * 6 + [6] * 3 + [-1] * 4])
    rows = torch.full((2, 13), 39)
    for row, start, text in ((0, 0, 0), (0, 6, 1), (1, 0, 2), (1, 6, 3)):
        rows[row, start : start + len(texts[text])] = texts[text]
    alone = [model(text[None]).logits[0] for text in texts]
    mask = (ids >= 0).long()
    places = torch.where(ids >= 0, torch.arange(13), 0)
    for options in (
        {"sequence_ids": ids},
        {"sequence_ids": ids.clamp(min=0).cummax(1).values, "attention_mask": mask},
        {"sequence_ids": ids, "attention_mask": mask, "position_ids": places},
        {"seq_idx": ids.int()},
    ):
        found = model(rows, **options).logits
        parts = found[0, :4], found[0, 6:], found[1, :6], found[1, 6:9]
        for part, whole in zip(parts, alone, strict=True):
            torch.testing.assert_close(part, whole, rtol=1e-5, atol=1e-5)
    labels = model(rows, labels=rows, sequence_ids=ids).loss
    sums = [torch.nn.functional.cross_entropy(a[:-1], t[1:], reduction="sum") for a, t in zip(alone, texts)]
    torch.testing.assert_close(labels, sum(sums) / sum(len(t) - 1 for t in texts), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_gaps_within_texts_and_logits_of_some_tokens():
    model, texts = build("osn"), texts_of(LENGTHS)
    row, given = torch.cat(texts)[None], said(LENGTHS, "gaps")
    found = model(row, labels=row, **given)
    places = (2 * torch.arange(n)[None] for n in LENGTHS)
    alone = [model(text[None], position_ids=at).logits for text, at in zip(texts, places, strict=True)]
    torch.testing.assert_close(found.logits, torch.cat(alone, 1), rtol=1e-5, atol=1e-5)
    kept = model(row, labels=row[:, -14:], logits_to_keep=14, **given)
    logits, told = found.logits[:, -14:-1], row[:, -13:].clone()
    told[0, 1] = -100  # the last text's first token
    expected = torch.nn.functional.cross_entropy(logits[0], told[0])
    torch.testing.assert_close(kept.loss, expected)


@torch.no_grad()
def test_hidden_states_weights_and_tuples():
    model, row = build("osn"), torch.cat(texts_of(LENGTHS))[None]
    out = model(row, output_attentions=True, output_hidden_states=True, **said(LENGTHS, "seq_idx"))
    ids = said(LENGTHS, "seq_idx")["seq_idx"][0]
    assert all((weights[..., ids[:, None] != ids] == 0).all() for weights in out.attentions)
    assert len(out.hidden_states) == 3
    assert model(row, return_dict=False, **said(LENGTHS, "seq_idx"))[0].shape == out.logits.shape


ENCODERS = {
    kind: {"config": OSNConfig(**DENSE, is_causal=False, num_labels=3), "kind": kind}
    for kind in (OSNModel, OSNForMaskedLM, OSNForTokenClassification, OSNForQuestionAnswering)
}


@pytest.mark.parametrize("kind", ENCODERS, ids=lambda kind: kind.__name__)
@torch.no_grad()
def test_encoders(kind):
    torch.manual_seed(0)
    model, texts = kind(ENCODERS[kind]["config"]).eval(), texts_of(LENGTHS)
    row = torch.cat(texts)[None]
    for way in WAYS:
        packed = model(row, **said(LENGTHS, way))[0].split(LENGTHS, 1)
        for part, text in zip(packed, texts, strict=True):
            torch.testing.assert_close(part, model(text[None])[0], rtol=1e-5, atol=1e-5)
    if kind in (OSNForMaskedLM, OSNForTokenClassification):
        labels = row % 3
        loss = model(row, labels=labels, **said(LENGTHS, "all")).loss
        each = [model(t[None], labels=t[None] % 3).loss * len(t) for t in texts]
        torch.testing.assert_close(loss, sum(each) / TOKENS, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("is_causal", [True, False])
@torch.no_grad()
def test_classes_of_texts(is_causal):
    """A row's texts have a class each."""
    torch.manual_seed(0)
    config = OSNConfig(**DENSE, is_causal=is_causal, num_labels=3)
    model, texts = OSNForSequenceClassification(config).eval(), texts_of((4, 7, 6, 3))
    alone = torch.cat([model(text[None]).logits for text in texts])
    row = torch.cat(texts)[None]
    for way in WAYS:
        found = model(row, labels=torch.tensor([0, 1, 2, 0]), **said((4, 7, 6, 3), way))
        torch.testing.assert_close(found.logits, alone, rtol=1e-5, atol=1e-5)
        assert found.loss > 0
    rows = torch.full((2, 12), 39)
    rows[0, :11], rows[1, :6], rows[1, 7:10] = torch.cat(texts[:2]), *texts[2:]
    ids = torch.tensor([[0] * 4 + [1] * 7 + [-1], [0] * 6 + [-1] + [1] * 3 + [-1] * 2])
    torch.testing.assert_close(model(rows, sequence_ids=ids).logits, alone, rtol=1e-5, atol=1e-5)
    mask = torch.tensor([[0] * 5 + [1] * 7])
    left = model(torch.cat((mask[:, :5], texts[1][None]), 1), mask, (mask.cumsum(1) - 1).clamp(min=0)).logits
    torch.testing.assert_close(left, alone[1:2], rtol=1e-5, atol=1e-5)


ROW = torch.ones(1, TOKENS, dtype=torch.int64)
IDS = torch.arange(TOKENS)[None] // 9


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"cu_seq_lens_q": torch.tensor([1, 26])},
            ValueError,
            r"cu_seq_lens_q must begin with 0.*got \[1, 26\]",
        ),
        ({"cu_seq_lens_k": torch.tensor([0, 9, 5, 26])}, ValueError, r"cu_seq_lens_k must .*not fall"),
        ({"cu_seq_lens_q": torch.tensor([0, 27])}, ValueError, "end within the N = 26 tokens, got"),
        (
            {"cu_seq_lens_q": torch.tensor([0.0, 26])},
            ValueError,
            r"must be integers \(T \+ 1,\), got torch.float",
        ),
        ({"cu_seq_lens_q": torch.zeros(0, dtype=torch.int32)}, ValueError, r"must be integers \(T \+ 1,\)"),
        ({"cu_seq_lens_q": [0, "end"]}, TypeError, "cu_seq_lens_q must be a tensor of integers"),
        ({"seq_idx": [[0] * 25]}, ValueError, r"seq_idx must be integers of shape \(B or 1, N\)"),
        (
            {"cu_seq_lens_q": torch.tensor([0, 9, 26]), "cu_seq_lens_k": torch.tensor([0, 8, 26])},
            ValueError,
            "cu_seq_lens_k must tell the same texts apart as cu_seq_lens_q, got another text at row 0, colu",
        ),
        ({"max_length_q": 9}, ValueError, "max_length_q must come with cu_seq_lens_q and cu_seq_lens_k"),
        (
            {"cu_seqlens": torch.tensor([0, 26])},
            ValueError,
            "cu_seqlens must be left out.*told apart by sequ",
        ),
        ({"seq_idx": IDS.flip(1)}, ValueError, "seq_idx must not fall.*got 1 after 2 in row 0, column 8"),
        ({"seq_idx": IDS[0]}, ValueError, r"seq_idx must be integers of shape \(B or 1, N\) = \(1, 26\)"),
        (
            {"sequence_ids": IDS.float()},
            ValueError,
            "sequence_ids must be integers of shape .*got torch.float32",
        ),
        ({"sequence_ids": 5}, TypeError, "sequence_ids must be a tensor"),
        (
            {"sequence_ids": IDS, "seq_idx": IDS // 2},
            ValueError,
            "seq_idx must tell the same texts apart as seq",
        ),
        (
            {"sequence_ids": IDS, "use_cache": True},
            ValueError,
            "use_cache must be left out with several texts",
        ),
        (
            {"position_ids": torch.arange(TOKENS)[None] % 9, "use_cache": True},
            ValueError,
            "use_cache must be left out with several texts",
        ),
        (
            {"sequence_ids": IDS, "position_ids": torch.arange(TOKENS)[None] % 8},
            ValueError,
            "position_ids must rise from each real token.*got 0 after 7 in row 0, column 8",
        ),
        (
            {"position_ids": torch.tensor([[0, 1, 2, 0, 1, 1, *range(2, 22)]])},
            ValueError,
            "must rise within a text and begin anew at one number, got texts that begin at 0 and at 1",
        ),
    ],
)
def test_refused(options, error, message):
    with pytest.raises(error, match=message):
        build("osn")(ROW, **options)


def test_refused_with_a_past():
    model = build("osn")
    with pytest.raises(
        ValueError, match="past_key_values must be left out with several texts in a row, got Deco"
    ):
        model(ROW, sequence_ids=IDS, past_key_values=DecoderCache(model.config))
    cache = DecoderCache(model.config)
    model(ROW, past_key_values=cache)
    with pytest.raises(
        ValueError, match=r"position_ids must rise .*; several texts in one row are told apart"
    ):
        model(ROW, position_ids=IDS * 0 + torch.arange(TOKENS) % 5 + 26, past_key_values=cache)


def test_an_answer_is_of_one_text():
    torch.manual_seed(0)
    model, place = OSNForQuestionAnswering(OSNConfig(**DENSE, is_causal=False)), torch.tensor([3])
    for options in ({"sequence_ids": IDS}, {"position_ids": torch.arange(TOKENS)[None] % 9}):
        with pytest.raises(
            ValueError, match="start_positions and end_positions must be left out with several"
        ):
            model(ROW, start_positions=place, end_positions=place, **options)


def test_images_and_series_have_rows_of_their_own():
    image = OSNForImageClassification(
        OSNImageConfig(hidden_size=32, num_hidden_layers=1, image_size=8, patch_size=4, num_labels=2)
    )
    with pytest.raises(ValueError, match="seq_idx must be left out, got Tensor: a row holds one image"):
        image(torch.zeros(1, 1, 8, 8), seq_idx=torch.zeros(1, 4, dtype=torch.int32))
    series = OSNForTimeSeriesPrediction(OSNSeriesConfig(hidden_size=32, num_hidden_layers=1))
    with pytest.raises(ValueError, match="sequence_ids must be left out, got Tensor: a row holds one series"):
        series(torch.randn(1, 4, 1), sequence_ids=torch.zeros(1, 4, dtype=torch.int32))


@pytest.mark.parametrize("collator", [{}, {"return_flash_attn_kwargs": True, "return_seq_idx": True}])
def test_trainer_with_its_flattening_collator(tmp_path, collator):
    """The loss that a Trainer reports for packed texts is that of each text alone."""
    texts = texts_of(LENGTHS)
    torch.manual_seed(0)
    model = OSNForCausalLM(OSNConfig(**DENSE))
    arguments = TrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
        max_steps=2,
        learning_rate=0.0,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        use_cpu=True,
    )
    data = [{"input_ids": text.tolist()} for text in texts]
    trainer = Trainer(
        model,
        arguments,
        train_dataset=data,
        eval_dataset=data,
        data_collator=DataCollatorWithFlattening(**collator),
    )
    trained = trainer.train().training_loss
    reported = trainer.evaluate()["eval_loss"]
    model.eval()
    with torch.no_grad():
        each = [model(t[None], labels=t[None]).loss * (len(t) - 1) for t in texts if len(t) > 1]
    expected = float(sum(each)) / sum(n - 1 for n in LENGTHS)
    assert trained == pytest.approx(expected, rel=1e-5) and reported == pytest.approx(expected, rel=1e-5)
