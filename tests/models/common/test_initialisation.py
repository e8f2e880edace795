"""`_init_weights` alone makes a whole model: of parameters and buffers that hold anything before."""

import copy

import pytest
import torch
from transformers import PreTrainedModel


@pytest.fixture(autouse=True)
def seeded(monkeypatch):
    """Every submodule draws the same numbers, whatever was drawn before."""
    own = PreTrainedModel._initialize_weights

    def initialise(self, module, *args, **kwargs):
        torch.manual_seed(0)
        return own(self, module, *args, **kwargs)

    monkeypatch.setattr(PreTrainedModel, "_initialize_weights", initialise)


@pytest.fixture
def poisoned():
    """A model of the meta device moved to memory that holds the worst."""

    def move(model):
        model.to_empty(device="cpu")
        with torch.no_grad():
            for tensor in [*model.parameters(), *model.buffers()]:
                tensor.fill_(torch.nan if tensor.is_floating_point() else 1)
        return model

    return move


def test_missing_weights_are_those_of_a_new_model(case):
    made = case.model_class(case.make_config()).state_dict()
    loaded = case.model_class.from_pretrained(None, config=case.make_config(), state_dict={})
    assert not any(tensor.is_meta for tensor in [*loaded.parameters(), *loaded.buffers()])
    found = loaded.state_dict()
    assert found.keys() == made.keys()
    for name, tensor in made.items():
        assert torch.equal(found[name], tensor), name


@torch.no_grad()
def test_a_model_of_the_meta_device_can_be_filled(case, poisoned, leaves):
    """Nothing keeps what was there, buffers neither; no tensor of `forward` is left on the meta device."""
    made = case.model_class(case.make_config()).eval()
    with torch.device("meta"):
        empty = case.model_class(case.make_config()).eval()
    assert all(tensor.is_meta for tensor in [*empty.parameters(), *empty.buffers()])
    filled = poisoned(empty)
    filled.init_weights()
    for name, tensor in [*made.named_parameters(), *made.named_buffers()]:
        assert torch.equal(dict([*filled.named_parameters(), *filled.named_buffers()])[name], tensor), name
    found = leaves(filled(**case.inputs))
    assert all(torch.equal(a, b) for a, b in zip(found, leaves(made(**case.inputs)), strict=True))


def test_the_configurations_range_reaches_every_linear_layer(case):
    """Nearly nothing at a range of nearly nothing, but for what an attention layer starts calibrated."""
    model = case.build(initializer_range=1e-9)
    for name, parameter in model.named_parameters():
        calibrated = any(part in name for part in (".frequency.", ".phase_proj.", ".raw_", ".norm"))
        norm = name.rpartition(".")[0].endswith(("norm", "norm1", "norm2"))
        if norm:
            assert torch.equal(parameter, torch.full_like(parameter, float(name.endswith("weight")))), name
        elif not calibrated:
            assert parameter.abs().max() < 1e-7, name


def test_a_configuration_serves_several_models(case):
    """Building changes nothing of it that another model would see."""
    config = copy.deepcopy(case.config)
    before = config.to_dict()
    torch.manual_seed(0)
    first = case.model_class(config).state_dict()
    torch.manual_seed(0)
    second = case.model_class(config).state_dict()
    assert config.to_dict() == before
    assert all(torch.equal(first[name], second[name]) for name in first)
