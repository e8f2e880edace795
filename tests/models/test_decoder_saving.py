"""Saving, loading and the Auto classes."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from syncattn.models import OSNForCausalLM


@pytest.fixture
def folder(typical, tmp_path):
    typical.save_pretrained(tmp_path)
    return tmp_path


@torch.no_grad()
def test_a_saved_model_comes_back_exactly(model, ids, tmp_path):
    model.save_pretrained(tmp_path)
    assert {f.name for f in tmp_path.iterdir()} == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "syncattn_models.py",
    }
    torch.manual_seed(123)  # what loading draws by the way must not matter
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is type(model) and not loaded.training
    for name, value in model.config.to_dict().items():
        assert name in ("architectures", "_name_or_path") or loaded.config.to_dict()[name] == value, name
    state = model.state_dict()
    assert loaded.state_dict().keys() == state.keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, state[name]) and tensor.dtype == state[name].dtype, name
    assert torch.equal(loaded(ids, use_cache=False).logits, model(ids, use_cache=False).logits)

    tied = loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert tied == model.config.tie_word_embeddings
    assert ("lm_head.weight" in load_file(tmp_path / "model.safetensors")) != tied

    decoder = AutoModel.from_pretrained(tmp_path)
    assert type(decoder) is type(model.model)
    assert torch.equal(decoder(ids, use_cache=False)[0], model.model(ids, use_cache=False)[0])


def test_auto_classes_build_from_a_configuration(typical):
    config = AutoConfig.for_model(typical.config.model_type, hidden_size=32, num_hidden_layers=1)
    assert type(config) is type(typical.config)
    assert type(AutoModelForCausalLM.from_config(config)) is type(typical)
    assert type(AutoModel.from_config(config)) is type(typical.model)


@torch.no_grad()
def test_loading_in_another_precision(typical, ids, folder):
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    assert all(p.dtype == torch.bfloat16 for p in loaded.parameters())
    assert torch.equal(loaded.state_dict()["lm_head.weight"], typical.lm_head.weight.bfloat16())
    assert loaded(ids).logits.isfinite().all()


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.99])
def test_a_truncated_checkpoint_is_an_error(folder, kept):
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(Exception, match=r"(?i)safetensor|header|incomplete|buffer"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_a_corrupted_checkpoint_is_an_error(folder):
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[:64] = b"x" * 64
    weights.write_bytes(content)
    with pytest.raises(Exception, match=r"(?i)safetensor|header"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_weights_of_other_sizes_are_an_error(typical, folder):
    stored = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(stored | {"intermediate_size": 20}))
    with pytest.raises(RuntimeError, match=r"size mismatch|mismatched"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_a_missing_checkpoint_is_an_error(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"model\.safetensors"):
        AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(OSError):
        OSNForCausalLM.from_pretrained(folder / "nowhere")


def test_importing_the_core_needs_no_transformers_and_the_models_say_so():
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "import syncattn, syncattn.nn\n"
        "try:\n    import syncattn.models\n"
        "except ImportError as error:\n    print(error)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.startswith("syncattn.models needs transformers: ") and "hf" in out.stdout
