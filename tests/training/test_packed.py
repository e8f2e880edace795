"""Documents packed into windows: whole where they fit, each alone, and nothing twice."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, GPT2Config

from syncattn.models import TransformerConfig
from syncattn.training.data import PARTS, encode_documents, load_corpus, reload_corpus
from syncattn.training.errors import UserError
from syncattn.training.packed import InRandomOrder, PackedWindows, pack
from syncattn.training.tokenizers import encode
from syncattn.training.train import train


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(0, 40), max_size=30), context=st.integers(2, 20))
def test_every_token_once_and_no_document_cut_that_fits(lengths, context):
    windows = pack(lengths, context)
    pieces = sorted(piece for window in windows for piece in window)
    assert all(0 < sum(piece.length for piece in window) <= context for window in windows)
    for document, length in enumerate(lengths):
        own = [piece for piece in pieces if piece.document == document]
        whole = length - (length % context == 1)
        assert sum(piece.length for piece in own) == whole
        assert [piece.start for piece in own] == list(range(0, whole, context))


def test_a_window_has_its_documents_one_after_the_other():
    documents = [torch.arange(1, 4), torch.arange(10, 24), torch.arange(30, 35), torch.tensor([99])]
    windows = PackedWindows(documents, 8)
    assert (
        len(windows) == 3 and windows.predicted == 2 + 7 + 5 + 4 and windows.padding == pytest.approx(2 / 24)
    )
    found = {tuple(window["input_ids"].tolist()): window for window in windows}
    window = found[1, 2, 3, 30, 31, 32, 33, 34]
    assert window["sequence_ids"].tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    assert window["labels"].tolist() == [-100, 2, 3, -100, 31, 32, 33, 34]
    rest = found[18, 19, 20, 21, 22, 23, 0, 0]
    assert rest["sequence_ids"].tolist() == [0] * 6 + [-1] * 2 and rest["labels"].tolist()[6:] == [-100] * 2
    assert len(PackedWindows(documents, 8, max_tokens=16)) == 2
    order = InRandomOrder(windows, 7, seed=1)
    assert sorted(order.order.tolist())[:2] == [0, 0] and set(order.order[:3].tolist()) == {0, 1, 2}
    assert torch.equal(order.order, InRandomOrder(windows, 7, seed=1).order)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("documents")
    for i in range(45):
        (folder / f"{i:02}.txt").write_text(
            f"the phase of oscillator {i} drifts, " * (1 + i % 3) + "\n" * (i % 4)
        )
    return folder


def test_a_corpus_knows_its_documents(files, text_file):
    for specs in ([files], [text_file], [files, text_file], ["pydoc"]):
        corpus = load_corpus(specs)
        for part in PARTS:
            assert "\n".join(corpus.documents(part)).strip("\n") in getattr(corpus, part)
            between = len(corpus.borders[part])
            assert sum(map(len, corpus.documents(part))) == len(getattr(corpus, part)) - between
        again = reload_corpus(corpus.describe())
        assert again.borders == corpus.borders and again.sha256 == corpus.sha256
    corpus = load_corpus([files])
    assert len(corpus.documents("train")) == 41 and len(corpus.documents("test")) == 2
    assert {path.read_text() for path in files.iterdir()} == {
        document for part in PARTS for document in corpus.documents(part)
    }


@pytest.mark.parametrize("kind", ["osn", "transformer"])
def test_a_run_is_measured_on_each_document_alone(kind, files, config, tokenizer, options, tmp_path):
    corpus = load_corpus([files])
    options = replace(options, pack=True, context=48)
    if kind == "transformer":
        config = TransformerConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    record = train(config, corpus, tokenizer, tmp_path / "run", options)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run").eval()
    documents = encode_documents(corpus, lambda text: encode(tokenizer, text), 48)
    total = count = 0
    for document in documents["test"]:
        for piece in document.long().split(48):
            if len(piece) > 1:
                with torch.no_grad():
                    total += model(piece[None], labels=piece[None]).loss.item() * (len(piece) - 1)
                count += len(piece) - 1
    assert record.result.test_tokens == count and record.options["pack"]
    assert record.result.test_loss == pytest.approx(total / count, rel=1e-5)
    assert record.tokens["test"] == sum(map(len, documents["test"]))


def test_models_of_others_are_refused(files, tokenizer, options, tmp_path):
    with pytest.raises(UserError, match=r"pack must be False for models of others.*of type 'gpt2'"):
        train(GPT2Config(), load_corpus([files]), tokenizer, tmp_path / "run", replace(options, pack=True))
    assert not (tmp_path / "run").exists()
