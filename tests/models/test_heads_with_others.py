"""Heads in the hands of others: pipelines, the Trainer, PEFT, accelerate; and what walks models here."""

import copy
import importlib.util

import pytest
import torch
from tokenizers import Tokenizer, pre_tokenizers, processors, trainers
from tokenizers import models as tokenizer_models
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorForLanguageModeling,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    pipeline,
)

import syncattn
from syncattn.models import OSNConfig
from syncattn.nn import calibrate, count_locked, limit_density_, locked_density
from syncattn.training.tokenizers import byte_tokenizer

TASKS = ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
TEXTS = ["the phase drifts", "a phase of the oscillator locks and drifts", "it locks"]


def bpe():
    """A small tokenizer of whole words and their parts, with the usual special tokens."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made = Tokenizer(tokenizer_models.BPE(unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=special, show_progress=False)
    made.train_from_iterator(TEXTS * 5, trainer)
    pair, ends = "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)]
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", pair, ends)
    names = ("pad", "unk", "cls", "sep", "mask")
    named = {f"{name}_token": f"[{name.upper()}]" for name in names}
    return PreTrainedTokenizerFast(tokenizer_object=made, **named)


def of_bytes():
    """The byte tokenizer with the two tokens that masking and batches need."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"mask_token": "[MASK]", "pad_token": "[PAD]"})
    return tokenizer


def tiny(task, tokenizer, **fields):
    config = OSNConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        is_causal=False,
        pad_token_id=tokenizer.pad_token_id,
        **fields,
    )
    torch.manual_seed(0)
    return getattr(syncattn.models, "OSN" + task)(config).eval()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("tokenizer", [bpe, of_bytes])
def test_pipelines(tokenizer, side):
    """A batch gives what each text gives alone."""
    tokenizer = tokenizer()
    tokenizer.padding_side = side

    def made(task, head, *others, **fields):
        return pipeline(task, tiny(head, tokenizer, **fields), tokenizer=tokenizer, **dict(others))

    classify = made("text-classification", "ForSequenceClassification", num_labels=3)
    for text, found in zip(TEXTS, classify(TEXTS, batch_size=3, top_k=None)):
        for one, other in zip(classify(text, top_k=None), found, strict=True):
            assert one["label"] == other["label"] and one["score"] == pytest.approx(other["score"], abs=1e-5)
    names = {0: "O", 1: "B-x", 2: "I-x"}
    tag = made("token-classification", "ForTokenClassification", ("ignore_labels", []), id2label=names)
    for text, found in zip(TEXTS, tag(TEXTS, batch_size=3)):
        assert [each["entity"] for each in found] == [each["entity"] for each in tag(text)]
        assert len(found) == len(tokenizer(text, add_special_tokens=False)["input_ids"])
    fill = made("fill-mask", "ForMaskedLM")
    assert len(fill("the [MASK] locks", top_k=4)) == 4
    features = torch.tensor(made("feature-extraction", "Model")(TEXTS[0]))
    assert features.shape == (1, len(tokenizer(TEXTS[0])["input_ids"]), 32)
    verdicts = {0: "contradiction", 1: "neutral", 2: "entailment"}
    judge = made("zero-shot-classification", "ForSequenceClassification", id2label=verdicts)
    assert set(judge(TEXTS[0], candidate_labels=["order", "noise"])["labels"]) == {"order", "noise"}


def trainer_of(model, folder, **options):
    quiet = {"report_to": [], "save_strategy": "no", "disable_tqdm": True, "logging_strategy": "no"}
    chosen = {"max_steps": 6, "learning_rate": 3e-3, "use_cpu": True}
    collator, data = options.pop("data_collator"), options.pop("data")
    arguments = TrainingArguments(str(folder), **(quiet | chosen | options))
    return Trainer(model, arguments, data_collator=collator, train_dataset=data, eval_dataset=data)


def examples(task, tokenizer):
    """Eight texts with labels, and what makes batches of them."""
    encoded = [tokenizer(text)["input_ids"] for text in TEXTS + TEXTS[::-1] + TEXTS[:2]]
    if task == "ForSequenceClassification":
        data = [{"input_ids": ids, "labels": len(ids) % 3} for ids in encoded]
        return {"data": data, "data_collator": DataCollatorWithPadding(tokenizer)}
    data = [{"input_ids": ids, "labels": [i % 3 for i in ids]} for ids in encoded]
    if task == "ForMaskedLM":  # masked once, so that runs can be compared
        for row in data:
            kept, row["labels"] = row["input_ids"][3], [-100] * len(row["labels"])
            row["labels"][3], row["input_ids"][3] = kept, tokenizer.mask_token_id
    return {"data": data, "data_collator": DataCollatorForTokenClassification(tokenizer)}


@pytest.mark.parametrize("task", TASKS[:3])
def test_the_trainer(task, tmp_path):
    """It fine-tunes, evaluates, and accumulates gradients to what one batch gives."""
    tokenizer, losses = of_bytes(), []
    for batch, accumulated in ((8, 1), (4, 2)):
        model = tiny(task, tokenizer, num_labels=3)
        sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulated}
        trainer = trainer_of(model, tmp_path, **sizes, **examples(task, tokenizer))
        start = trainer.evaluate()["eval_loss"]
        losses.append(trainer.train().training_loss)
        assert trainer.evaluate()["eval_loss"] < start
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_masking_by_the_collator_of_transformers(tmp_path):
    tokenizer = of_bytes()
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.3)
    data = [{"input_ids": tokenizer(text)["input_ids"]} for text in TEXTS]
    trainer = trainer_of(tiny("ForMaskedLM", tokenizer), tmp_path, data=data, data_collator=collator)
    assert 0 < trainer.train().training_loss < 8


@pytest.mark.parametrize("task", ("Model", *TASKS))
def test_what_walks_models_here(task):
    tokenizer = of_bytes()
    model = tiny(task, tokenizer, num_labels=3, density_range=(0.2, 0.6))
    ids = torch.tensor([list(b"the phase of the oscillator drifts and then it locks"[:48])] * 2)
    mask = torch.ones_like(ids)
    mask[1, :20] = 0
    calibrate(model, ids, mask)
    wanted = torch.tensor([0.2, 0.2884, 0.416, 0.6])
    for density in locked_density(model, ids, attention_mask=mask).values():
        torch.testing.assert_close(density, wanted, atol=0.02, rtol=0)
    (counted,) = count_locked(model, ids, mask).values()
    assert counted.receivers.tolist() == [76] * 4  # padding listens to nobody
    assert counted.allowed.tolist() == [48 * 47 + 28 * 27] * 4  # in both directions, nobody itself
    before = {name: density.mean() for name, density in locked_density(model, ids, mask).items()}
    for _ in range(4):
        limit_density_(model, 0.1, ids, mask, gain=0.5)
    for name, density in locked_density(model, ids, mask).items():
        assert density.mean() < 0.75 * before[name]
    page = syncattn.explore(model, ids[:1], switch_off=True)
    assert '"next":null' in str(page.html) and page.tokens == 48


def test_accelerates_device_maps(tmp_path):
    pytest.importorskip("accelerate")
    model = tiny("ForSequenceClassification", of_bytes(), num_labels=3)
    model.save_pretrained(tmp_path)
    ids = torch.tensor([list(b"the phase")])
    with torch.no_grad():
        expected = model(ids).logits
        for where in ("auto", "cpu", {"": "cpu"}, {"model": "disk", "dropout": "cpu", "score": "cpu"}):
            options = {"offload_folder": str(tmp_path / "off")} if isinstance(where, dict) else {}
            loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path, device_map=where, **options)
            torch.testing.assert_close(loaded(ids).logits, expected)


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")
@pytest.mark.parametrize("targets", [["receive_proj", "value_proj", "out_proj"], "all-linear"])
def test_lora(targets, tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    base = tiny("ForSequenceClassification", of_bytes(), num_labels=3)
    plain = copy.deepcopy(base)
    config = LoraConfig(task_type="SEQ_CLS", r=4, target_modules=targets)
    model = get_peft_model(base, config)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert any("lora_A" in name for name in trained) and any("score" in name for name in trained)
    assert all("lora_" in name or "score" in name for name in trained)
    ids, labels = torch.tensor([list(b"the phase"), list(b"it locks!")]), torch.tensor([0, 2])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(12):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    model.eval()
    with torch.no_grad():
        tuned = model(input_ids=ids).logits
        model.save_pretrained(tmp_path)
        again = PeftModel.from_pretrained(plain, tmp_path).eval()
        torch.testing.assert_close(again(input_ids=ids).logits, tuned)
        merged = again.merge_and_unload()
        torch.testing.assert_close(merged(ids).logits, tuned, rtol=1e-4, atol=1e-5)
    assert not any("lora" in name for name in merged.state_dict())
    merged.save_pretrained(tmp_path / "merged")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert torch.equal(loaded(ids).logits, merged(ids).logits)
