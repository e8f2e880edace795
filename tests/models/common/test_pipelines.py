"""`pipeline(...)` for every task that there is a head for, in both precisions."""

import pytest
import torch
from transformers import GenerationConfig, pipeline

import syncattn.models
from syncattn.models import OSNConfig, TransformerConfig
from syncattn.training.tokenizers import byte_tokenizer

TEXTS = ["it locks", "a phase drifts and locks"]
HEADS = {
    "text-generation": "ForCausalLM",
    "feature-extraction": "Model",
    "fill-mask": "ForMaskedLM",
    "text-classification": "ForSequenceClassification",
    "token-classification": "ForTokenClassification",
    "zero-shot-classification": "ForSequenceClassification",
}


def made(task, kind, dtype):
    """A pipeline of an untrained model and the byte tokenizer."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"mask_token": "[MASK]", "pad_token": "[PAD]"})
    tokenizer.padding_side = "left"
    config = (OSNConfig if kind == "OSN" else TransformerConfig)(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=tokenizer.pad_token_id,
        is_causal=task == "text-generation",
        id2label={0: "contradiction", 1: "neutral", 2: "entailment"},
    )
    torch.manual_seed(0)
    model = getattr(syncattn.models, kind + HEADS[task])(config).to(dtype)
    return pipeline(task, model, tokenizer=tokenizer)


@pytest.mark.filterwarnings("ignore:You seem to be using the pipelines sequentially")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("kind", ["OSN", "Transformer"])
@pytest.mark.parametrize("task", HEADS)
def test_one_text_and_several(task, kind, dtype):
    run = made(task, kind, dtype)
    options = {}
    if task == "text-generation":
        options = {"generation_config": GenerationConfig(max_new_tokens=3, do_sample=False)}
    elif task == "zero-shot-classification":
        options = {"candidate_labels": ["order", "noise"]}
    texts = [text + "[MASK]" for text in TEXTS] if task == "fill-mask" else TEXTS
    one, several = run(texts[0], **options), run(texts, batch_size=2, **options)
    assert len(several) == 2
    one, same = (x[0] if isinstance(x, list) else x for x in (one, several[0]))
    if task == "text-generation":
        assert one["generated_text"].startswith(TEXTS[0]) and one == same
    elif task == "feature-extraction":
        found = torch.tensor(same)[-len(one) :]  # transformers returns the padding, too, on the left here
        torch.testing.assert_close(torch.tensor(one), found, rtol=1e-2, atol=1e-2)
    else:
        assert one.keys() == same.keys() and set(one) & {"score", "scores"}
        scores = [torch.tensor(x.get("score", x.get("scores"))) for x in (one, same)]
        torch.testing.assert_close(*scores, rtol=1e-2, atol=1e-2)
