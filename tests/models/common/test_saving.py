"""Folders: what is written, what comes back, what is told of keys that are missing."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel


def assert_same(model, other):
    """The two have the same tensors, and share memory between the same names."""
    ours, theirs = model.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(theirs[name], tensor) for name, tensor in ours.items())
    assert shared(ours) == shared(theirs)


def shared(state):
    """The sets of names that are one tensor."""
    by_memory = {}
    for name, tensor in state.items():
        by_memory.setdefault(tensor.data_ptr(), set()).add(name)
    return [names for names in by_memory.values() if len(names) > 1]


@torch.no_grad()
@pytest.mark.parametrize("shard", ["10GB", "4KB"])
def test_outputs_survive_saving_twice(case, leaves, tmp_path, shard):
    """Whole and in shards; a second time, since loading adds fields to the configuration."""
    model = case.build()
    expected = leaves(model(**case.inputs))
    for number in range(2):
        folder = tmp_path / str(number)
        model.save_pretrained(folder, max_shard_size=shard)
        names = {file.name for file in folder.iterdir()}
        assert "config.json" in names and ("generation_config.json" in names) == model.can_generate()
        assert ("model.safetensors.index.json" in names) == (shard == "4KB")
        loaded, told = case.model_class.from_pretrained(folder, output_loading_info=True)
        assert not any(told.values()), told
        assert_same(model, loaded)
        assert not loaded.training and all(p.is_contiguous() for p in loaded.parameters())
        found = leaves(loaded.eval()(**case.inputs))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        model = loaded


@pytest.mark.parametrize("tied", [True, False])
def test_a_file_has_each_tensor_once_and_all_of_them(case, tmp_path, tied):
    """`_tied_weights_keys` names all tensors that are one, and none of them when they are not."""
    model = case.build(tie_word_embeddings=tied)
    groups = shared(model.state_dict())
    declared = set(model._tied_weights_keys or ()) if tied else set()
    assert all(len(names - declared) == 1 for names in groups)
    assert declared == {name for names in groups for name in names} & declared
    model.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == model.state_dict().keys() - declared
    assert_same(model, case.model_class.from_pretrained(tmp_path))


def test_a_file_without_weights_is_told_of_in_full(case, tmp_path):
    """Every parameter is named as missing, and nothing that is none."""
    model = case.build()
    model.save_pretrained(tmp_path)
    save_file({"stray": torch.zeros(2)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, told = case.model_class.from_pretrained(tmp_path, output_loading_info=True)
    tied = {name for names in shared(loaded.state_dict()) for name in names}
    assert told["missing_keys"] | tied == set(loaded.state_dict()) and told["unexpected_keys"] == {"stray"}
    assert not model._keys_to_ignore_on_load_missing and not model._keys_to_ignore_on_save


def test_a_base_model_and_its_head_load_from_each_other(head, tmp_path):
    model = head.build()
    prefix, tied = f"{model.base_model_prefix}.", set(model._tied_weights_keys or ())
    own = {name for name in model.state_dict() if not name.startswith(prefix)}
    model.base_model.save_pretrained(tmp_path / "base")
    # The head's name is no promise about the base alone: its fields say which tensors are tied.
    loaded, told = head.model_class.from_pretrained(tmp_path / "base", output_loading_info=True)
    assert told["missing_keys"] == (own - tied if head.config.tie_word_embeddings else own)
    for name, tensor in model.base_model.state_dict().items():
        assert torch.equal(loaded.base_model.state_dict()[name], tensor), name
    model.save_pretrained(tmp_path / "head")
    base, told = AutoModel.from_pretrained(tmp_path / "head", output_loading_info=True)
    assert not told["missing_keys"] and set(told["unexpected_keys"]) <= own
    assert_same(model.base_model, base)


def test_the_precision_is_what_is_asked_for(case, tmp_path):
    """As a dtype, by its name, and as stored; "torch_dtype" is the old word for it."""
    case.build().half().save_pretrained(tmp_path)
    for given, wanted in (
        ({"dtype": torch.bfloat16}, torch.bfloat16),
        ({"torch_dtype": "float32"}, torch.float32),
        ({"dtype": "auto"}, torch.float16),
    ):
        model = case.model_class.from_pretrained(tmp_path, **given)
        assert {p.dtype for p in model.parameters()} == {wanted} and model.dtype == wanted
    assert not case.model_class._keep_in_fp32_modules and not case.model_class._keep_in_fp32_modules_strict


@torch.no_grad()
def test_a_model_is_made_of_a_state_without_any_folder(case):
    model = case.build()
    state = model.state_dict()
    made = case.model_class.from_pretrained(None, config=case.make_config(), state_dict=state)
    assert_same(model, made)


def test_a_state_survives_torchs_own_format(case, tmp_path):
    state = case.build().state_dict()
    torch.save(state, tmp_path / "state.pt")
    found = torch.load(tmp_path / "state.pt", weights_only=True)
    assert found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)


def test_weights_of_other_sizes_are_refused_or_made_anew_when_told_to(reader, tmp_path):
    model = reader.build()
    model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"vocab_size": 10}))
    with pytest.raises(RuntimeError, match=r"size mismatch|mismatched"):
        reader.model_class.from_pretrained(tmp_path)
    loaded = reader.model_class.from_pretrained(tmp_path, ignore_mismatched_sizes=True)
    old = model.state_dict()
    for name, tensor in loaded.state_dict().items():
        if tensor.shape == old[name].shape:
            assert torch.equal(tensor, old[name]), name
        else:
            assert tensor.shape[0] == 10 and 0.05 < tensor.std() < 0.2, name


def test_a_head_of_other_labels_is_refused_or_made_anew_when_told_to(classifier, tmp_path):
    model = classifier.build()
    model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match=r"size mismatch|mismatched"):
        classifier.model_class.from_pretrained(tmp_path, num_labels=42)
    options = {"num_labels": 42, "ignore_mismatched_sizes": True, "output_loading_info": True}
    loaded, told = classifier.model_class.from_pretrained(tmp_path, **options)
    anew = {name for name, *_ in told["mismatched_keys"]}
    old = model.state_dict()
    assert anew and anew == {name for name, t in loaded.state_dict().items() if t.shape != old[name].shape}
    for name, tensor in loaded.state_dict().items():
        assert tensor.shape[0] == 42 if name in anew else torch.equal(tensor, old[name]), name
    assert loaded(**classifier.inputs).logits.shape[-1] == len(loaded.config.id2label) == 42


def test_loading_takes_no_device_from_around_it_and_refuses_meta(case, tmp_path):
    case.build().save_pretrained(tmp_path)
    with torch.device("cpu"):
        assert case.model_class.from_pretrained(tmp_path).device.type == "cpu"
    torch.set_default_device("cpu")
    try:
        assert case.model_class.from_pretrained(tmp_path).device.type == "cpu"
    finally:
        torch.set_default_device(None)
    with torch.device("meta"), pytest.raises(RuntimeError, match="meta device context manager"):
        case.model_class.from_pretrained(tmp_path)
