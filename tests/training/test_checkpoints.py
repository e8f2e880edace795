"""What is read from a folder: damage is told at once, in a line with the file; nothing is run or written."""

import errno
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from syncattn.cli.app import app
from syncattn.training.checkpoints import find_checkpoint, is_checkpoint, load_model
from syncattn.training.errors import UserError
from syncattn.training.files import fingerprints
from syncattn.training.generate import generate
from syncattn.training.loop import Loop
from syncattn.training.options import Sampling
from syncattn.training.train import resume

runner = CliRunner()
CONFIG, WEIGHTS, GENERATION = "config.json", "model.safetensors", "generation_config.json"
DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000


def fields(name, **changed):
    def change(folder):
        found = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(found | changed))

    return change


def config(**changed):
    return fields(CONFIG, **changed)


def content(name, written):
    written = written.encode() if isinstance(written, str) else written
    return lambda folder: (folder / name).write_bytes(written)


def edited(name, change):
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def halved(name):
    return edited(name, lambda data: data[: len(data) // 2])


def removed(name):
    return lambda folder: (folder / name).unlink()


def replaced(name, make):
    """Something that is no file in a file's place."""

    def change(folder):
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return change


def tensor(end, change):
    """One tensor of the weights changed; None takes it out."""

    def apply(folder):
        tensors = load_file(folder / WEIGHTS)
        name = next(name for name in tensors if name.endswith(end))
        found = tensors.pop(name)
        if change is not None:
            tensors[name] = change(found)
        save_file(tensors, folder / WEIGHTS, {"format": "pt"})

    return apply


class Crafted:
    """A pickle that leaves a file when it is run."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (open, (str(self.trace), "w"))


NAN, HUGE = float("nan"), 10**12
MODEL = {
    # The weights' values
    "nan weights": (tensor("value_proj.weight", lambda t: t * NAN), WEIGHTS),
    "infinite weights": (tensor("linear1.weight", lambda t: t / 0), WEIGHTS),
    "nan coupling": (tensor("raw_coupling", lambda t: t * NAN), "raw_coupling"),
    "overflowing coupling": (tensor("raw_coupling", lambda t: t * 0 + 500), "raw_coupling"),
    "vanishing bandwidth": (tensor("raw_bandwidth", lambda t: t * 0 - 500), "raw_bandwidth"),
    "huge embeddings": (tensor("embed_tokens.weight", lambda t: t * 1e30), WEIGHTS),
    "overflow together": (config(edge=1e300), "no model that works"),
    # The weights' file
    "missing tensor": (tensor("raw_coupling", None), "raw_coupling"),
    "other shape": (tensor("raw_coupling", lambda t: t[:1]), "raw_coupling"),
    "whole numbers": (tensor("value_proj.weight", lambda t: t.to(torch.int8)), WEIGHTS),
    "float8": (tensor("value_proj.weight", lambda t: t.to(torch.float8_e4m3fn)), WEIGHTS),
    "truncated weights": (halved(WEIGHTS), WEIGHTS),
    "garbled weights": (content(WEIGHTS, b"\xff" * 100), WEIGHTS),
    "empty weights": (content(WEIGHTS, ""), WEIGHTS),
    "more weights": (edited(WEIGHTS, lambda data: data + b"0000"), WEIGHTS),
    "no weights": (removed(WEIGHTS), f"no {WEIGHTS}"),
    "endless header": (edited(WEIGHTS, lambda data: (1 << 62).to_bytes(8, "little") + data[8:]), WEIGHTS),
    "deep header": (content(WEIGHTS, len(DEEP).to_bytes(8, "little") + DEEP.encode()), WEIGHTS),
    "folder as weights": (replaced(WEIGHTS, lambda path: path.mkdir()), WEIGHTS),
    "weights nowhere": (replaced(WEIGHTS, lambda path: path.symlink_to("nowhere")), "link to nowhere"),
    # The config: sizes
    **{
        f"{name} of 1e12": (config(**{name: HUGE}), name)
        for name in ("hidden_size", "vocab_size", "intermediate_size", "num_hidden_layers", "freq_dim")
    },
    "100,000 layers": (config(num_hidden_layers=100_000), "must be at most 2048"),
    "another layer": (config(num_hidden_layers=3), "num_hidden_layers is 3"),
    "a layer less": (config(num_hidden_layers=1), "does not fit"),
    "wide": (config(hidden_size=1 << 20, num_attention_heads=1 << 10), "does not fit"),
    "digits": (content(CONFIG, '{"model_type": "osn", "hidden_size": ' + "9" * 5000 + "}"), CONFIG),
    "bidirectional": (config(is_causal=False), "predicts no next token"),
    "window overflow": (config(window_range=[1, 10**400]), CONFIG),
    # The config: what it may say
    "nan": (config(eps=NAN), CONFIG),
    "infinite": (edited(CONFIG, lambda data: data.replace(b"1e-08", b"1e999")), CONFIG),
    "other code": (config(auto_map={"AutoConfig": "x.Y"}), "auto_map"),
    "quantised": (config(quantization_config={"quant_method": "bitsandbytes"}), "quantization_config"),
    "implementation": (config(_attn_implementation="owner/kernel"), "_attn_implementation"),
    "no dtype": (config(dtype="nonsense"), "dtype"),
    "whole dtype": (config(dtype="int8"), "dtype"),
    "dtype of no kind": (config(dtype={"": "float32"}), "dtype"),
    "model type": (config(model_type="unheard-of"), "model_type"),
    "many model types": (config(model_type=["osn"]), "model_type"),
    "another model": (config(model_type="gpt2"), "does not fit"),
    "labels": (config(num_labels=10**9), "num_labels"),
    "a method": (config(to_dict=1), "to_dict"),
    "a model within": (config(text_config={"model_type": "llama"}), CONFIG),
    "a flag": (config(output_hidden_states="x"), "output_hidden_states"),
    "a list": (config(pad_token_id=[1]), CONFIG),
    # The config's file
    "truncated config": (halved(CONFIG), CONFIG),
    "no config": (removed(CONFIG), f"no {CONFIG}"),
    "list as config": (content(CONFIG, "[1]"), CONFIG),
    "null as config": (content(CONFIG, "null"), CONFIG),
    "deep config": (content(CONFIG, DEEP), CONFIG),
    "endless config": (content(CONFIG, '{"a": "' + "x" * (2 << 20) + '"}'), CONFIG),
    "byte order mark": (edited(CONFIG, lambda data: b"\xef\xbb\xbf" + data), CONFIG),
    "binary config": (content(CONFIG, b"\xff\xfe"), CONFIG),
    "folder as config": (replaced(CONFIG, lambda path: path.mkdir()), CONFIG),
    "pipe as config": (replaced(CONFIG, os.mkfifo), CONFIG),
    "config of itself": (replaced(CONFIG, lambda path: path.symlink_to(CONFIG)), CONFIG),
    # How to generate
    "list to generate": (content(GENERATION, "[1]"), GENERATION),
    "garbage to generate": (content(GENERATION, "{"), GENERATION),
    "nowhere to generate": (replaced(GENERATION, lambda path: path.symlink_to("nowhere")), GENERATION),
    "end token": (fields(GENERATION, eos_token_id="x"), "eos_token_id"),
    # The tokeniser
    "truncated tokenizer": (halved("tokenizer.json"), "tokenizer.json"),
    "no tokenizer": (removed("tokenizer.json"), "no tokenizer.json"),
    "deep tokenizer": (content("tokenizer.json", DEEP), "tokenizer.json"),
    "list as tokenizer": (content("tokenizer.json", "[1]"), "tokenizer.json"),
    "folder as tokenizer": (replaced("tokenizer.json", lambda path: path.mkdir()), "tokenizer.json"),
    "list as settings": (content("tokenizer_config.json", "[1]"), "tokenizer_config.json"),
    "length of text": (fields("tokenizer_config.json", model_max_length="x"), "tokenizer_config.json"),
    "token too many": (fields("tokenizer_config.json", pad_token="<pad>"), "token 256, .* vocab_size 256"),
    "special tokens": (content("special_tokens_map.json", "[5]"), "special_tokens_map.json"),
    # What is not ours
    "adapter": (content("adapter_config.json", '{"base_model_name_or_path": "/x"}'), "adapter_config.json"),
}


@pytest.mark.parametrize("damage", MODEL)
def test_a_damaged_model_is_told_in_one_line(damage, trained, copied):
    change, message = MODEL[damage]
    folder = copied(trained)
    change(folder)
    before = sorted(folder.rglob("*"))
    result = runner.invoke(app, ["generate", str(folder), "--prompt", "the"])
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit), result.exception
    (line,) = result.stderr.splitlines()
    assert line.startswith("syncattn: ") and str(folder) in line
    with pytest.raises(UserError, match=message):
        load_model(folder)
    assert sorted(folder.rglob("*")) == before


def test_what_changes_nothing_is_allowed(trained, copied):
    folder = copied(trained)
    fields(GENERATION, num_beams=10**6, cache_implementation="x", do_sample=5, eos_token_id=[3, 7])(folder)
    model, tokenizer = load_model(folder)
    assert model.generation_config.eos_token_id == [3, 7]
    text = generate(model, tokenizer, "the", Sampling(5))  # what is stored on sampling is for others
    (folder / GENERATION).unlink()
    model, tokenizer = load_model(folder)
    assert model.generation_config.eos_token_id is None
    assert generate(model, tokenizer, "the", Sampling(5))[: len(text)] == text
    (folder / "README.md").write_text("mine")
    config(max_position_embeddings=10**9, _name_or_path="x", dtype="bfloat16")(folder)
    model, _ = load_model(folder)
    assert model.dtype == torch.bfloat16 and not model.training


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, GENERATION, "tokenizer.json"])
def test_a_file_without_permission(name, trained, monkeypatch):
    real = Path.open

    def refuse(path, *args, **kwargs):
        if path.name == name:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match=f"{name}.*Permission denied"):
        load_model(trained)


def test_no_model_here(unfinished, tmp_path):
    with pytest.raises(UserError, match="no folder"):
        load_model(tmp_path / "missing")
    quoted = tmp_path / "it's mine"
    shutil.copytree(unfinished, quoted)
    with pytest.raises(UserError, match="is not finished") as caught:
        load_model(quoted)
    assert f"""syncattn train --resume '{tmp_path}/it'"'"'s mine'`""" in str(caught.value)
    model, _ = load_model(find_checkpoint(quoted))
    assert model.config.hidden_size == 16


PICKLES = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "rng_state_0.pth", "scaler.pt")
PICKLES += ("training_args.bin", "pytorch_model.bin", "optimizer.bin")


@pytest.fixture
def untrained(monkeypatch):
    monkeypatch.setattr(Loop, "training_step", lambda *args, **kwargs: pytest.fail("it trained"))


def in_checkpoint(change):
    return lambda out: change(find_checkpoint(out))


def option(name, value):
    def change(out):
        run = json.loads((out / "run.json").read_text())
        run["options"][name] = value
        (out / "run.json").write_text(json.dumps(run))

    return change


CHECKPOINT = {
    **{f"truncated {name}": (in_checkpoint(halved(name)), name) for name in (*PICKLES[:3], WEIGHTS, CONFIG)},
    **{
        f"{name} of another run": (in_checkpoint(content(name, "{}")), name)
        for name in ("trainer_state.json", "tokenizer.json", GENERATION)
    },
    "a step more": (in_checkpoint(fields("trainer_state.json", global_step=4)), "trainer_state.json"),
    "another eps": (in_checkpoint(config(layer_norm_eps=0.5)), CONFIG),
    "no optimizer": (in_checkpoint(removed("optimizer.pt")), "no optimizer.pt"),
    "folder as optimizer": (
        in_checkpoint(replaced("optimizer.pt", lambda path: path.mkdir())),
        "optimizer.pt must be a file",
    ),
    "sharded": (
        in_checkpoint(lambda folder: (folder / "pytorch_model_fsdp_0").mkdir()),
        "fsdp_0 is not a file",
    ),
    "nan progress": (in_checkpoint(fields("progress.json", loss_sum=NAN)), "progress.json"),
    "text as progress": (in_checkpoint(fields("progress.json", train_seconds="x")), "progress.json"),
    "list as progress": (in_checkpoint(content("progress.json", "[]")), "progress.json"),
    "earlier progress": (in_checkpoint(content("progress.json", "{}")), "earlier version"),
    "truncated run": (halved("run.json"), "run.json"),
    "list as run": (content("run.json", "[]"), "run.json"),
    "deep run": (content("run.json", DEEP), "run.json"),
    "no options": (fields("run.json", options=None), "run.json: options"),
    "no data": (fields("run.json", data=5), "run.json: data"),
    "no sources": (fields("run.json", data={"sources": 5, "sha256": ""}), "run.json: data.sources"),
    "numbers as sources": (fields("run.json", data={"sources": [5], "sha256": ""}), "run.json: data.sources"),
    "no cap": (fields("run.json", data={"sources": [], "max_chars": "x", "sha256": ""}), "data.max_chars"),
    "nan option": (option("learning_rate", NAN), "run.json"),
    "half a step": (option("steps", 12.5), "run.json: options.steps must be of type int, got 12.5"),
    "many steps": (option("steps", 10**12), "run.json: options.steps must be 12 .*, got 1000000000000"),
    "text as flag": (option("calibrate", "x"), "run.json: options.calibrate must be of type bool"),
    "flag as number": (option("steps", True), "run.json: options.steps must be of type int"),
    "bad option": (option("device", "tpu"), "run.json: device must be"),
    "unknown option": (option("nonsense", 1), "run.json: options.nonsense is not known"),
}


@pytest.mark.parametrize("damage", CHECKPOINT)
def test_a_damaged_run_is_told_in_one_line(damage, unfinished, copied, untrained):
    change, message = CHECKPOINT[damage]
    out = copied(unfinished)
    change(out)
    before = sorted(out.rglob("*"))
    with pytest.raises(UserError, match=message) as caught:
        resume(out)
    assert "\n" not in str(caught.value)
    assert sorted(out.rglob("*")) == before


@pytest.mark.parametrize("name", PICKLES)
def test_a_crafted_pickle_is_never_run(name, unfinished, copied, untrained, tmp_path):
    out = copied(unfinished)
    checkpoint = find_checkpoint(out)
    crafted = Crafted(tmp_path / "trace")
    not_ours = f"{name} .*is not a file that syncattn wrote; nothing in it was run"
    (checkpoint / name).write_bytes(pickle.dumps(crafted))
    with pytest.raises(UserError, match=not_ours):
        resume(out)
    torch.save(crafted, checkpoint / name)
    with pytest.raises(UserError, match=not_ours):
        resume(out)
    if name == "rng_state_0.pth":
        return  # one process does not read it
    # Whoever crafts a pickle can craft the list of files, too.
    files = {name: digest for name, digest in fingerprints(checkpoint).items() if name != "progress.json"}
    fields("progress.json", files=files)(checkpoint)
    with pytest.raises(UserError, match=not_ours) as caught:
        resume(out)
    assert "weights_only" not in str(caught.value) and not (tmp_path / "trace").exists()


def test_a_models_pickles_are_not_even_opened(trained, copied, monkeypatch, tmp_path):
    folder = copied(trained)
    for name in PICKLES:
        torch.save(Crafted(tmp_path / "trace"), folder / name)
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("torch.load was called"))
    load_model(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"no model\.safetensors"):
        load_model(folder)
    assert not (tmp_path / "trace").exists()


def test_a_checkpoint_that_was_not_written_whole_is_none(unfinished, copied):
    out = copied(unfinished)
    whole = find_checkpoint(out)
    torn = whole.with_name("checkpoint-9")
    shutil.copytree(whole, torn)
    (torn / "progress.json").unlink()  # several processes do not write to a folder that is moved
    shutil.copytree(whole, whole.with_name("checkpoint-²"))
    assert find_checkpoint(out) == whole and is_checkpoint(whole) and not is_checkpoint(torn)
    shutil.rmtree(whole)
    assert find_checkpoint(out).name == "start"
