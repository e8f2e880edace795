"""What a run on text adds to its model's card."""

from dataclasses import replace

from syncattn.models.sharing import CARD, CLASSES
from syncattn.training.card import sections
from syncattn.training.checkpoints import load_model
from syncattn.training.train import train


def test_the_card_has_the_runs_numbers_and_says_what_is_not_known(finished):
    record, folder = finished
    text = (folder / CARD).read_text()
    assert f"{record.result.test_loss:.4f}" in text and record.data["sha256"] in text
    assert "not known to syncattn" in text  # a file of the user's
    assert "/text.txt" not in text and "text.txt" in text  # nor where it lies
    assert (folder / f"{CLASSES}.py").is_file()
    load_model(folder)


def test_a_built_in_text_has_its_licence(finished):
    record, _ = finished
    data = record.data | {"sources": ["stdlib"], "notes": ["stdlib: 381 modules"]}
    text, _, _ = sections(replace(record, data=data))
    assert "PSF License" in text and "381 modules" in text


def test_a_card_of_somebody_elses_stays_in_the_output_folder(config, corpus, tokenizer, options, tmp_path):
    (tmp_path / CARD).write_text("Mine.")
    train(config, corpus, tokenizer, tmp_path, options, overwrite=True)
    assert (tmp_path / CARD).read_text() == "Mine."
    load_model(tmp_path)
