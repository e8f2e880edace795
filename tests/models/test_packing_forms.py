"""Packed texts in every form that collators give them: of every head, of several rows, and compiled."""

import pytest
import torch
from transformers import DataCollatorWithFlattening

import syncattn
from syncattn.models import (
    OSNConfig,
    OSNForCausalLM,
    OSNForMaskedLM,
    OSNForQuestionAnswering,
    OSNForSequenceClassification,
    OSNForTokenClassification,
    OSNModel,
    mean_pooling,
)

from .conftest import DENSE, build

LENGTHS = (5, 1, 8, 12)
TEXTS = [
    torch.randint(1, 40, (n,), generator=torch.Generator().manual_seed(2 + i)) for i, n in enumerate(LENGTHS)
]
ROW = torch.cat(TEXTS)[None]
FLASH = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")


def collated(**options):
    """What the collator adds to the tokens, without the labels."""
    made = DataCollatorWithFlattening(**options)([{"input_ids": text.tolist()} for text in TEXTS])
    return {name: x for name, x in made.items() if name not in ("input_ids", "labels")}


def lengths_alone(change=lambda x: x):
    made = collated(return_flash_attn_kwargs=True)
    return {name: change(made[name]) if name[0] == "c" else made[name] for name in FLASH}


FORMS = {
    "position_ids": collated(),
    "from 2, as roberta counts": collated(position_ids_start=2),
    "all": collated(return_flash_attn_kwargs=True, return_seq_idx=True),
    "without position_ids": collated(return_position_ids=False, return_flash_attn_kwargs=True),
    "seq_idx alone": collated(return_position_ids=False, return_seq_idx=True),
    "int64": lengths_alone(torch.Tensor.long),
    "lists": lengths_alone(torch.Tensor.tolist),
    "arrays": lengths_alone(torch.Tensor.numpy),
    "seq_idx as a list": {"seq_idx": collated(return_seq_idx=True)["seq_idx"].tolist()},
    "maxima as tensors": lengths_alone() | dict.fromkeys(FLASH[2:], torch.tensor(12, dtype=torch.int32)),
}
ENCODER = {"is_causal": False, "num_labels": 3}
HEADS = {
    "causal": (OSNForCausalLM, {}),
    "masked": (OSNForMaskedLM, ENCODER),
    "tokens": (OSNForTokenClassification, ENCODER),
    "answers": (OSNForQuestionAnswering, ENCODER),
    "classes": (OSNForSequenceClassification, ENCODER),
    "classes, causal": (OSNForSequenceClassification, {"num_labels": 3}),
    "embeddings": (OSNModel, ENCODER),
}


def model_of(name):
    kind, options = HEADS[name]
    torch.manual_seed(0)
    return kind(OSNConfig(**DENSE, **options)).eval()


def outputs(model, ids, form):
    """One row for each token, or text."""
    out = model(ids, **form)
    if isinstance(model, OSNModel):
        texts = None if not form else syncattn.sequence_ids_of(torch.tensor([0, 5, 6, 14, 26]))
        return mean_pooling(out.last_hidden_state, sequence_ids=texts)
    if isinstance(model, OSNForQuestionAnswering):
        return torch.stack((out.start_logits[0], out.end_logits[0]), -1)
    return out.logits if out.logits.ndim == 2 else out.logits[0]


def with_gradients(model, out):
    model.zero_grad()
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    return [out.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("head", HEADS)
def test_every_head_gives_each_text_what_it_has_alone(head):
    model = model_of(head)
    alone = with_gradients(model, torch.cat([outputs(model, text[None], {}) for text in TEXTS]))
    for form in FORMS.values():
        packed = with_gradients(model, outputs(model, ROW, form))
        for a, b in zip(packed, alone, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * max(1.0, float(b.abs().max())))


@pytest.mark.parametrize("name", ["osn mix", "rotary token shift", "alibi", "no position", "yarn"])
def test_lengths_of_several_rows_count_through_all(name):
    """As flash-attention's kernels, which know no rows, are given them by transformers' models."""
    model = build(name)
    rows = torch.stack((torch.cat((TEXTS[2], TEXTS[0])), torch.cat((TEXTS[3], TEXTS[1]))))
    given = {"cu_seq_lens_q": torch.tensor([0, 8, 13, 25, 26], dtype=torch.int32), "max_length_q": 12}
    found = model(rows, **given, labels=rows)
    alone = [model(TEXTS[i][None]).logits[0] for i in (2, 0, 3, 1)]
    torch.testing.assert_close(found.logits.flatten(0, 1), torch.cat(alone), rtol=1e-5, atol=1e-5)
    ids = torch.tensor([[0] * 8 + [1] * 5, [2] * 12 + [3]])
    torch.testing.assert_close(found.loss, model(rows, sequence_ids=ids, labels=rows).loss)
    short = model(rows, cu_seq_lens_k=[0, 8, 13, 25]).logits  # what comes after the last text is padding
    torch.testing.assert_close(short.flatten(0, 1)[:25], torch.cat(alone)[:25], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("given", [[0, 8, 25, 26], [0, 8, 13], [0, 8], [0, 13, 13]])
def test_a_text_of_two_rows_and_rows_without_a_text_are_refused(given):
    """A text cannot go on in the next row, and lengths of one row are not those of each."""
    with pytest.raises(
        ValueError, match=r"cu_seq_lens_q must let a text begin at every row.*B \* N = 26.*got"
    ):
        build("osn")(ROW.view(2, 13), cu_seq_lens_q=torch.tensor(given))
    with pytest.raises(ValueError, match=r"end within the B \* N = 26 tokens, got \[0, 13, 27\]"):
        build("osn")(ROW.view(2, 13), cu_seq_lens_q=torch.tensor([0, 13, 27]))


def small(**options):
    """Quick to compile."""
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 16}
    return OSNConfig(**DENSE | sizes | options)


def compiled(model):
    return torch.compile(model, fullgraph=True, backend="aot_eager")


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_training():
    """In one graph, without anything being read: position_ids that begin anew, or not."""
    model = OSNForCausalLM(small()).eval()
    run = compiled(model)
    for form in (FORMS["position_ids"], {"position_ids": torch.arange(26)[None]}):
        want = with_gradients(model, model(ROW, labels=ROW, **form).loss)
        found = with_gradients(model, run(ROW, labels=ROW, use_cache=False, **form).loss)
        for a, b in zip(found, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * max(1.0, float(b.abs().max())))
    places = torch.tensor([[0, 1, 2, 0, 1, 1, *range(2, 22)]])
    with pytest.raises(RuntimeError, match="must rise within a text and begin anew at one number"):
        run(ROW, labels=ROW, use_cache=False, position_ids=places)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("form", ["without position_ids", "seq_idx alone"])
@torch.no_grad()
def test_compiled_forms(form):
    model = OSNForCausalLM(small()).eval()
    found = compiled(model)(ROW, use_cache=False, **FORMS[form]).logits
    torch.testing.assert_close(found, model(ROW, **FORMS[form]).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("kind", ["a cache", "classes"])
@torch.no_grad()
def test_compiled_where_a_row_has_one_text(kind):
    """A cache holds one, and how many classes there are cannot be read: what to pass instead is said."""
    if kind == "classes":
        model, options = OSNForSequenceClassification(small(is_causal=False, num_labels=3)).eval(), {}
    else:
        model, options = OSNForCausalLM(small()).eval(), {"use_cache": True}
    run, one = compiled(model), torch.arange(26)[None]
    torch.testing.assert_close(run(ROW, position_ids=one, **options).logits, model(ROW).logits)
    with pytest.raises(
        RuntimeError, match=r"position_ids must rise .* told apart by sequence_ids, not by pos"
    ):
        run(ROW, **options, **FORMS["position_ids"])
