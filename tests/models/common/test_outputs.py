"""What `forward` returns, however it is asked for."""

import copy
import inspect

import pytest
import torch
from torch import nn

TIGHT = {"rtol": 1e-5, "atol": 1e-5}
EVERYTHING = {"output_attentions": True, "output_hidden_states": True}


@torch.no_grad()
def test_the_same_call_gives_the_same(case, leaves):
    model = case.build()
    one, two = (leaves(model(**case.inputs, **EVERYTHING)) for _ in range(2))
    assert one and all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@torch.no_grad()
def test_a_row_in_a_batch_is_the_row_alone(case, leaves):
    """Of every output; what stands at padding means nothing, so the row without any is compared."""
    model, inputs = case.build(), case.inputs
    together = model(**inputs, **EVERYTHING)
    alone = model(**{name: value[1:2] for name, value in inputs.items()}, **EVERYTHING)
    for a, b in zip(leaves(together), leaves(alone), strict=True):
        torch.testing.assert_close(a[1:2], b, **TIGHT)


@torch.no_grad()
@pytest.mark.parametrize(
    "options", [{}, {"output_attentions": True}, {"output_hidden_states": True}, EVERYTHING]
)
def test_a_tuple_holds_what_the_dictionary_holds(case, leaves, options):
    model = case.build()
    for labels in ({}, case.labels):
        given = case.inputs | labels | options
        named, unnamed = model(**given, return_dict=True), model(**given, return_dict=False)
        assert isinstance(unnamed, tuple) and len(unnamed) == len(named.to_tuple())
        assert ("loss" in named) == bool(labels)
        for a, b in zip(leaves(named.to_tuple()), leaves(unnamed), strict=True):
            assert torch.equal(a, b)


@torch.no_grad()
def test_attentions_and_hidden_states_by_call_and_by_configuration(case):
    """One for each layer, and the embedding's; attentions come right after hidden states."""
    plain = case.build()(**case.inputs)
    assert "attentions" not in plain and "hidden_states" not in plain
    by_call = case.build()(**case.inputs, **EVERYTHING)
    order = [*by_call.keys()]
    assert [name for name in order if name in plain] == [*plain.keys()]
    assert len(order) == len(plain) + 2 and order.index("hidden_states") + 1 == order.index("attentions")
    by_configuration = case.build(**EVERYTHING)(**case.inputs)
    layers, heads = case.config.num_hidden_layers, case.config.num_attention_heads
    for out in (by_call, by_configuration):
        batch, tokens, width = out.hidden_states[0].shape
        assert (batch, width) == (len(next(iter(case.inputs.values()))), case.config.hidden_size)
        assert [h.shape for h in out.hidden_states] == [(batch, tokens, width)] * (layers + 1)
        assert [a.shape for a in out.attentions] == [(batch, heads, tokens, tokens)] * layers
    off = case.build(**EVERYTHING)(**case.inputs, output_attentions=False, output_hidden_states=False)
    assert [*off.keys()] == [*plain.keys()]


@torch.no_grad()
def test_some_hidden_states_by_their_indices(case):
    model = case.build()
    every = model(**case.inputs, output_hidden_states=True).hidden_states
    some = model(**case.inputs, output_hidden_states=[0, -1]).hidden_states
    assert len(some) == len(every) == 3 and some[1] is None
    assert torch.equal(some[0], every[0]) and torch.equal(some[2], every[2])
    assert "hidden_states" not in model(**case.inputs, output_hidden_states=[])
    with pytest.raises(ValueError, match="output_hidden_states must hold indices from -3 to 2, got 3"):
        model(**case.inputs, output_hidden_states=[3])


def test_hidden_states_and_attentions_get_gradients(case):
    """What is returned is what the output was computed from, no copy beside it."""
    out = case.build()(**case.inputs, **EVERYTHING)
    watched = [out.hidden_states[0], out.attentions[0]]
    for tensor in watched:
        tensor.retain_grad()
    out[0].flatten()[-1].backward()
    for tensor in watched:
        assert tensor.grad is not None and tensor.grad.isfinite().all() and tensor.grad.any()


@torch.no_grad()
def test_embeddings_in_place_of_ids(reader, leaves):
    model, inputs = reader.build(), reader.inputs
    expected = leaves(model(**inputs))
    inputs["inputs_embeds"] = model.get_input_embeddings()(inputs.pop("input_ids"))
    for a, b in zip(leaves(model(**inputs)), expected, strict=True):
        assert torch.equal(a, b)


def test_the_embeddings_can_be_read_and_replaced(reader):
    model = reader.build()
    assert isinstance(model.get_input_embeddings(), nn.Embedding)
    other = nn.Embedding(10, 10)
    model.set_input_embeddings(other)
    assert model.get_input_embeddings() is other
    output = model.get_output_embeddings()
    assert output is None or isinstance(output, nn.Linear)


def test_the_main_input_comes_first(case):
    names = [name for name in inspect.signature(case.model_class.forward).parameters if name != "self"]
    assert case.model_class.main_input_name == names[0] == next(iter(case.inputs))


def test_a_head_stands_on_a_base_model(head):
    model = head.build()
    base = model.base_model
    assert base is not model and base is getattr(model, model.base_model_prefix)
    assert not base.can_generate()


@torch.no_grad()
def test_special_tokens_may_be_left_out(reader, leaves):
    stored = reader.config.to_diff_dict()
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "tie_word_embeddings"):
        stored.pop(name, None)
    model = reader.model_class(type(reader.config)(**stored)).eval()
    assert all(x.isfinite().all() for x in leaves(model(**reader.inputs)))


def test_the_models_here_are_small(case):
    assert case.build().num_parameters() < 50_000 and case.config.num_hidden_layers <= 2


def test_there_is_one_implementation_of_attention(case):
    """`syncattn.use_backend` chooses what it runs on; transformers' names for that are refused."""
    model = case.model_class._from_config(copy.deepcopy(case.config), attn_implementation="eager")
    for name in ("sdpa", "flash_attention_2", "flex_attention", "nonsense"):
        message = f"attn_implementation must be left out or 'eager', got '{name}'"
        with pytest.raises(ValueError, match=message):
            case.model_class._from_config(copy.deepcopy(case.config), attn_implementation=name)
        with pytest.raises(ValueError, match=message):
            model.set_attn_implementation(name)
    model.set_attn_implementation("eager")
    assert model.config._attn_implementation == "eager"
    assert not (model._supports_sdpa or model._supports_flash_attn or model._supports_flex_attn)


def test_there_is_no_table_of_positions(case):
    with pytest.raises(NotImplementedError, match="resize_position_embeddings"):
        case.build().resize_position_embeddings(20)


@torch.no_grad()
def test_the_whole_feed_forward_runs_at_once(case):
    """Chunks save memory and change nothing; they are refused by name where others ignore the field."""
    with pytest.raises(ValueError, match="chunk_size_feed_forward must be left out or 0, got 1"):
        case.build(chunk_size_feed_forward=1)
    with pytest.raises(ValueError, match="pruned_heads must be left out"):
        case.build(pruned_heads={0: [1]})
    assert not hasattr(case.model_class, "prune_heads")  # transformers 5 has none
