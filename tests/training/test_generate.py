"""Text from a trained folder."""

import copy
import socket
from dataclasses import replace

import pytest

from syncattn.training.checkpoints import load_model
from syncattn.training.errors import UserError
from syncattn.training.generate import generate
from syncattn.training.options import Sampling
from syncattn.training.tokenizers import char_tokenizer
from syncattn.training.train import train


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


def test_nothing_asks_the_network(corpus, tokenizer, config, options, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        pytest.fail("something asked the network")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    train(config, corpus, tokenizer, tmp_path / "run", replace(options, steps=1))
    assert generate(*load_model(tmp_path / "run"), "the ", Sampling(5, greedy=True))
