"""A small text, a tiny model and short runs."""

import random
import shutil
import signal
from dataclasses import asdict

import pytest

pytest.importorskip("accelerate")
pytest.importorskip("transformers")

from syncattn.models import OSNConfig
from syncattn.training.data import Corpus, load_corpus
from syncattn.training.errors import Interrupted
from syncattn.training.loop import Loop
from syncattn.training.options import TrainingOptions
from syncattn.training.tokenizers import byte_tokenizer
from syncattn.training.train import train


@pytest.fixture(autouse=True)
def interruptible():
    """Ctrl-C as in a terminal: a shell starts its background jobs with the signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    sentence = "the oscillator that locks hears what another emits and the phase of each drifts"
    choose = random.Random(0)
    lines = [" ".join(choose.choices(sentence.split(), k=7)) + ".\n" for _ in range(250)]
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(lines))
    return path


@pytest.fixture(scope="session")
def corpus(text_file) -> Corpus:
    return load_corpus([text_file])


@pytest.fixture(scope="session")
def tokenizer():
    return byte_tokenizer(16)


@pytest.fixture(scope="session")
def config() -> OSNConfig:
    return OSNConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        hidden_dropout=0.1,
        density_range=(0.2, 0.6),
    )


@pytest.fixture(scope="session")
def options() -> TrainingOptions:
    return TrainingOptions(
        context=16,
        batch_size=4,
        steps=12,
        learning_rate=0.01,
        log_every=4,
        eval_every=6,
        save_every=5,
        eval_tokens=256,
        final_eval_tokens=512,
        device="cpu",
        threads=1,
        max_density=0.3,
        coupling_lr=0.5,
    )


@pytest.fixture(scope="session")
def stop_at():
    """Calls `stop` in the middle of a step of training, while `patch` lasts."""

    def stop_at(patch, step, stop):
        real = Loop.training_step

        def training_step(self, *args, **kwargs):
            if self.state.global_step + 1 == step:
                stop()
            return real(self, *args, **kwargs)

        patch.setattr(Loop, "training_step", training_step)

    return stop_at


@pytest.fixture(scope="session")
def trained(tmp_path_factory, corpus, tokenizer):
    """A tiny model's folder, to be looked at only."""
    config = OSNConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    options = TrainingOptions(
        context=16, batch_size=4, steps=3, device="cpu", threads=1, final_eval_tokens=64
    )
    out = tmp_path_factory.mktemp("trained") / "run"
    train(config, corpus, tokenizer, out, options)
    return out


@pytest.fixture(scope="session")
def unfinished(tmp_path_factory, config, corpus, tokenizer, options, stop_at):
    """A run that was stopped at step 3 of 12, to be looked at only; `copied` is for what changes it."""
    out = tmp_path_factory.mktemp("unfinished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 3, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(Interrupted):
            train(config, corpus, tokenizer, out, options)
    return out


@pytest.fixture
def copied(tmp_path):
    """Makes a copy of a folder that can be damaged."""
    return lambda folder: shutil.copytree(folder, tmp_path / "copied folder")


@pytest.fixture(scope="session")
def finished(config, corpus, tokenizer, options, tmp_path_factory):
    """A record and its folder, to be looked at only."""
    out = tmp_path_factory.mktemp("finished") / "run"
    return train(config, corpus, tokenizer, out, options), out


@pytest.fixture(scope="session")
def without_times():
    """What must be equal in two runs of the same seed."""
    times = ("tokens_per_second", "train_seconds", "wall_seconds")

    def without_times(record):
        history = [{k: v for k, v in entry.items() if k not in times} for entry in record.history]
        return history, {k: v for k, v in asdict(record.result).items() if k not in times}

    return without_times
