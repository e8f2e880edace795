"""The card and the classes' module beside a saved model, for a friend with and without the package."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, PreTrainedModel

import syncattn.models
from syncattn.models import (
    OSNConfig,
    OSNForCausalLM,
    OSNForImageClassification,
    OSNForTimeSeriesPrediction,
    OSNImageConfig,
    OSNModel,
    OSNSeriesConfig,
)
from syncattn.models.sharing import CARD, CLASSES, accompany, card


def tiny(kind=OSNForCausalLM):
    return kind(OSNConfig(vocab_size=11, hidden_size=8, num_hidden_layers=1, num_attention_heads=2))


@pytest.fixture
def folder(tmp_path):
    tiny().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def load(folder, *, without=None, before="", trusted=True):
    """What another process says that loads a folder; `without` hides a package from it."""
    hidden = "" if without is None else HIDE.format(name=without)
    code = f"""{hidden}{before}
from transformers import AutoModelForCausalLM
print(type(AutoModelForCausalLM.from_pretrained({str(folder)!r}, trust_remote_code={trusted})).__name__)"""
    env = {**os.environ, "HF_MODULES_CACHE": str(Path(folder).parent / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120)
    return done.stdout + done.stderr


HIDE = """
import importlib.abc, importlib.machinery, sys
class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] == '{name}':
            raise ModuleNotFoundError(f'No module named {{name}}', name=name)
sys.meta_path.insert(0, Hide())
"""


def test_a_card_says_what_it_is_and_how_to_load_it(folder):
    text = (folder / CARD).read_text()
    assert text.startswith(
        "---\nlibrary_name: transformers\ntags: [syncattn, osn]\npipeline_tag: text-generation\n---"
    )
    assert f"# OSNForCausalLM, {sum(p.numel() for p in tiny().parameters()):,} parameters" in text
    assert "import syncattn.models" in text and "AutoModelForCausalLM.from_pretrained" in text
    assert "pip install 'syncattn[hf]'" in text and "licence" in text


def test_a_base_models_card_loads_a_base_model(tmp_path):
    tiny(OSNModel).save_pretrained(tmp_path)
    text = (tmp_path / CARD).read_text()
    assert "AutoModel.from_pretrained" in text and "feature-extraction" in text
    assert (
        json.loads((tmp_path / "config.json").read_text())["auto_map"]["AutoModel"] == f"{CLASSES}.OSNModel"
    )


def test_every_kind_of_model_has_a_sentence_on_its_card():
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    image = OSNForImageClassification(OSNImageConfig(**sizes, image_size=4, patch_size=2))
    series = OSNForTimeSeriesPrediction(OSNSeriesConfig(**sizes))
    for model, what in ((tiny(), "tokens"), (image, "patches"), (series, "measurements")):
        assert f"An Oscillatory Synchronization Network: {what} are" in card(model)


def test_what_somebody_wrote_stays(tmp_path):
    (tmp_path / CARD).write_text("Mine.")
    tiny().save_pretrained(tmp_path)
    assert (tmp_path / CARD).read_text() == "Mine."
    accompany(tiny(), tmp_path, "## Numbers")
    assert (tmp_path / CARD).read_text() == "Mine."


def test_a_runs_numbers_stay_when_its_model_is_saved_again(tmp_path):
    accompany(tiny(), tmp_path, "## Numbers\n\n1.5")
    tiny().save_pretrained(tmp_path)
    assert "1.5" in (tmp_path / CARD).read_text()
    assert "1.5" not in card(tiny())


def test_a_class_that_is_not_ours_names_no_module(tmp_path):
    class Mine(OSNForCausalLM):
        pass

    tiny(Mine).save_pretrained(tmp_path)
    assert not (tmp_path / f"{CLASSES}.py").exists() and (tmp_path / CARD).exists()
    assert json.loads((tmp_path / "config.json").read_text()).get("auto_map") in (None, {})


def test_what_the_module_imports_is_there():
    for kind in _kinds(PreTrainedModel):
        if kind.__module__.startswith("syncattn.models.") and re.search(
            r"(For[A-Z]\w*|Model)$", kind.__name__
        ):
            public = kind.__name__.endswith("PreTrainedModel") or kind.__name__.startswith("Decoder")
            assert public or getattr(syncattn.models, kind.__name__) is kind


def _kinds(kind):
    return {kind}.union(*map(_kinds, kind.__subclasses__()))


def test_a_file_in_place_of_the_folder_is_left_alone(tmp_path):
    (tmp_path / "file").write_text("x")
    tiny().save_pretrained(tmp_path / "file")  # transformers logs an error
    assert (tmp_path / "file").read_text() == "x"


def test_loading_runs_no_code_where_the_classes_are_known(folder):
    (folder / f"{CLASSES}.py").write_text("raise SystemExit('was run')")
    assert type(AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)) is OSNForCausalLM
    assert type(AutoModelForCausalLM.from_pretrained(folder)) is OSNForCausalLM


def test_a_friend_needs_one_import_or_to_trust_the_folder(folder):
    assert "OSNForCausalLM" in load(folder, before="import syncattn.models", trusted=False)
    assert "OSNForCausalLM" in load(folder)


def test_a_friend_without_the_package_is_told_what_to_install(folder):
    said = load(folder, without="syncattn")
    assert "ImportError" in said and "pip install syncattn" in said


def test_a_folder_without_the_module_loads_too(folder):
    for name in (CARD, f"{CLASSES}.py"):
        (folder / name).unlink()
    assert type(AutoModelForCausalLM.from_pretrained(folder)) is OSNForCausalLM
    shutil.rmtree(folder)


def test_a_folder_of_another_class_gets_its_card(folder):
    tiny(OSNModel).save_pretrained(folder)
    assert "# OSNModel, " in (folder / CARD).read_text()
    accompany(tiny(), folder, "## Training\n\nMuch.")
    tiny(OSNModel).save_pretrained(folder)
    assert "Much." in (folder / CARD).read_text()  # what a run recorded stays


def test_a_folder_in_the_cards_place_stays(tmp_path):
    (tmp_path / CARD).mkdir()
    accompany(tiny(), tmp_path, "## Training")
    assert (tmp_path / CARD).is_dir() and (tmp_path / f"{CLASSES}.py").is_file()


def test_the_card_of_somebodys_class_names_it():
    class Mine(OSNForCausalLM):
        """Elsewhere."""

    text = card(tiny(Mine))
    assert "Mine.from_pretrained" in text and "AutoModel" not in text and "pipeline_tag" not in text
