"""Text from a trained folder, and what a damaged one says."""

import copy
import shutil
import socket
from dataclasses import replace

import pytest
import torch

from syncattn.training.checkpoints import load_model
from syncattn.training.errors import UserError
from syncattn.training.generate import Sampling, generate
from syncattn.training.tokenizers import char_tokenizer
from syncattn.training.train import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory, corpus, tokenizer):
    from syncattn.models import OSNConfig
    from syncattn.training.options import TrainingOptions

    config = OSNConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    options = TrainingOptions(
        context=16, batch_size=4, steps=3, device="cpu", threads=1, final_eval_tokens=64
    )
    out = tmp_path_factory.mktemp("trained") / "run"
    train(config, corpus, tokenizer, out, options)
    return out


def test_sampling_is_decided_by_the_seed(trained):
    model, tokenizer = load_model(trained)
    texts = [generate(model, tokenizer, "the ", Sampling(30, seed=seed)) for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]
    greedy = [generate(model, tokenizer, "the ", Sampling(30, greedy=True, seed=seed)) for seed in (0, 1)]
    assert greedy[0] == greedy[1] == generate(model, tokenizer, "the ", Sampling(30, top_k=1))
    assert not greedy[0].startswith("the the ")


def test_the_prompt_may_be_longer_than_the_context(trained):
    model, tokenizer = load_model(trained)
    text = generate(model, tokenizer, "the phase of " * 10, Sampling(5, greedy=True))
    assert 1 <= len(text.encode()) <= 15


def test_bad_sampling_is_refused(trained):
    bad = [{"max_new_tokens": 0}, {"temperature": 0.0}, {"temperature": float("nan")}, {"top_k": 0}]
    for fields in [*bad, {"seed": -1}, {"seed": 2**32}]:
        with pytest.raises(UserError, match=next(iter(fields))):
            Sampling(**fields)
    with pytest.raises(UserError, match="prompt is empty"):
        generate(*load_model(trained), "")
    with pytest.raises(UserError, match=r"the prompt is not UTF-8 text: '\\udcff' at position 2"):
        generate(*load_model(trained), "ab\udcff")


def test_characters_without_a_token_are_named(corpus, config, options, tmp_path):
    tokenizer = char_tokenizer(corpus.train + corpus.validation + corpus.test)
    config = copy.deepcopy(config)
    config.vocab_size = len(tokenizer)
    train(config, corpus, tokenizer, tmp_path / "run", replace(options, steps=1))
    model, loaded = load_model(tmp_path / "run")
    assert set(generate(model, loaded, "the ", Sampling(20))) <= set(loaded.get_vocab())
    with pytest.raises(UserError, match="'X' 'ß'"):
        generate(model, loaded, "theßX", Sampling(5))


def test_damaged_folders_are_told_in_one_line(trained, tmp_path):
    def damaged(name, change):
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        shutil.copytree(trained, folder)
        change(folder / name)
        return folder

    def halve(path):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    def garble(path):
        path.write_bytes(b"\xff" * 100)

    cases = [
        (tmp_path / "missing", "no folder"),
        (damaged("model.safetensors", halve), "model.safetensors, it is truncated"),
        (damaged("model.safetensors", garble), "model.safetensors, it is truncated, corrupted"),
        (damaged("model.safetensors", lambda path: path.write_bytes(b"")), "model.safetensors"),
        (damaged("model.safetensors", lambda path: path.unlink()), "no model.safetensors"),
        (damaged("config.json", halve), "config.json"),
        (damaged("config.json", lambda path: path.unlink()), "no config.json"),
        (damaged("config.json", lambda path: path.write_text('{"model_type": "unheard-of"}')), "config.json"),
        (damaged("config.json", lambda path: path.write_text("[1]")), "config.json"),
        (damaged("tokenizer.json", halve), "cannot load a tokenizer"),
        (
            damaged(
                "config.json",
                lambda path: path.write_text(
                    path.read_text().replace('"hidden_size": 16', '"hidden_size": 32')
                ),
            ),
            "does not fit",
        ),
    ]
    for folder, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            load_model(folder)
        assert "\n" not in str(caught.value), message


def test_nothing_is_unpickled(trained, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    torch.save({"x": torch.ones(1)}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("torch.load was called"))
    with pytest.raises(UserError, match=r"no model\.safetensors"):
        load_model(folder)


def test_nothing_asks_the_network(corpus, tokenizer, config, options, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        pytest.fail("something asked the network")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    train(config, corpus, tokenizer, tmp_path / "run", replace(options, steps=1))
    assert generate(*load_model(tmp_path / "run"), "the ", Sampling(5, greedy=True))


def test_an_unfinished_run_says_so(trained, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="is not finished: go on with `syncattn train --resume"):
        load_model(tmp_path / "run")
