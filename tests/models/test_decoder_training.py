"""Loss, gradients, precision, compilation and export."""

import copy

import pytest
import torch
import torch.nn.functional as F

from syncattn.models import (
    DecoderCache,
    OSNConfig,
    OSNForCausalLM,
    TransformerConfig,
    TransformerForCausalLM,
)


def gradients(model, ids, **kwargs):
    model.zero_grad()
    loss = model(ids, labels=ids, **kwargs).loss
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_the_loss_is_the_mean_cross_entropy_of_the_next_token(typical, ids):
    labels = ids.clone()
    labels[1, 4:] = -100
    with torch.no_grad():
        out = typical(ids, labels=labels)
    expected = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(out.loss, expected)
    with torch.no_grad():
        summed = typical(ids, labels=labels, num_items_in_batch=100).loss
    torch.testing.assert_close(summed, expected * (labels[:, 1:] != -100).sum() / 100)


def test_every_parameter_gets_a_gradient(model, ids):
    model = copy.deepcopy(model).train()
    _, found = gradients(model, ids)
    for name, _ in model.named_parameters():
        assert name in found and found[name].isfinite().all(), name
        # A constant added to all frequencies or all keys changes nothing.
        shift = name.endswith(("receive_proj.bias", "in_proj.bias"))
        assert shift or found[name].abs().max() > 0, name


@pytest.mark.filterwarnings("ignore:.*deprecated.*:FutureWarning")
def test_gradient_checkpointing_gives_the_same_gradients(typical, ids):
    model = copy.deepcopy(typical).train()
    loss, expected = gradients(model, ids)
    model.gradient_checkpointing_enable()
    assert all(layer.gradient_checkpointing for layer in model.model.layers)
    checkpointed, found = gradients(model, ids)
    assert torch.equal(loss, checkpointed)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient)
    assert model(ids, use_cache=True).past_key_values is None
    with pytest.raises(ValueError, match="training with gradient checkpointing"):
        model(ids, past_key_values=DecoderCache(model.config))
    model.gradient_checkpointing_disable()
    assert not any(layer.gradient_checkpointing for layer in model.model.layers)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("name", ["osn modern", "rotary modern"])
def test_a_value_residual_is_checkpointed_either_way(name, use_reentrant, build_model, ids):
    """The first layer's values reach all layers, whose recomputations go back to them one after the other."""
    model = build_model(name).train()
    _, expected = gradients(model, ids)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    _, found = gradients(model, ids)
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, msg=key)


def test_dropout_acts_in_training_only(ids):
    sizes = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    for dropout in ({"attention_dropout": 0.5}, {"hidden_dropout": 0.5}):
        for model in (
            OSNForCausalLM(OSNConfig(**sizes, **dropout)),
            TransformerForCausalLM(TransformerConfig(**sizes, **dropout)),
        ):
            with torch.no_grad():
                one, two = model.train()(ids).logits, model(ids).logits
                assert not torch.equal(one, two)
                assert torch.equal(model.eval()(ids).logits, model(ids).logits)


def test_no_cache_in_training(typical, ids):
    model = copy.deepcopy(typical).train()
    assert model(ids).past_key_values is None
    assert isinstance(model.eval()(ids).past_key_values, DecoderCache)
    model.config.use_cache = False
    assert model(ids).past_key_values is None


def test_it_learns_a_text_by_heart(typical):
    """One line of bytes. As published no pair locks, only the token itself is known, and .63 is the best."""
    torch.manual_seed(0)
    model = type(typical)(typical.config).train()
    ids = torch.tensor([list(b"the cat sat on the mat; the mat sat on the cat")]) % 40
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss = model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    published = getattr(typical.config, "parametrisation", None) == "softplus"
    assert losses[0] > 3.0
    assert 0.5 < losses[-1] < 0.8 if published else losses[-1] < 0.3, losses


def test_branches_start_small_and_biases_at_zero():
    sizes = {"hidden_size": 160, "num_hidden_layers": 8}
    for model in (
        OSNForCausalLM(OSNConfig(**sizes)),
        TransformerForCausalLM(TransformerConfig(**sizes)),
    ):
        layer = model.model.layers[0]
        for linear, std in (
            (layer.linear1, 0.05),
            (layer.linear2, 0.05 / 4),
            (layer.self_attn.out_proj, 0.05 / 4),
        ):
            assert abs(linear.weight.std() / std - 1) < 0.05 and not linear.bias.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(model, ids, dtype):
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
        low = copy.deepcopy(model).to(dtype)
        out = low(ids, labels=ids)
        assert out.logits.dtype == dtype and out.loss.dtype == torch.float32
        cache = out.past_key_values
        step = low(ids[:, :1], past_key_values=cache)
        assert step.logits.isfinite().all()
        assert out.past_key_values.states[0].value.dtype == dtype
        with torch.autocast("cpu", dtype):
            autocast = model(ids, use_cache=False).logits
    # Rounding moves pairs over the locking edge, so single logits may differ by more than the mean.
    for found in (out.logits, autocast):
        assert (found.float() - expected).abs().mean() < 0.1 * expected.abs().mean()


def test_compile_without_a_graph_break(typical, ids):
    torch._dynamo.reset()
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    model = copy.deepcopy(typical).train()
    loss, expected = gradients(model, ids, attention_mask=mask)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    model.zero_grad()
    again = compiled(ids, attention_mask=mask, labels=ids).loss
    again.backward()
    torch.testing.assert_close(again.detach(), loss)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-6)


def test_compiled_blocks(typical, ids):
    """Each block by itself, as docs/with-a-gpu.md has it."""
    torch._dynamo.reset()
    model = copy.deepcopy(typical).train()
    loss, expected = gradients(model, ids)
    for layer in model.model.layers:
        layer.compile(dynamic=False, fullgraph=True, backend="aot_eager")
    again, found = gradients(model, ids)
    torch.testing.assert_close(again, loss)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


def test_export(typical, ids):
    sizes = {0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("length", min=4, max=512)}
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    with torch.no_grad():
        program = torch.export.export(
            typical,
            (ids,),
            {"attention_mask": mask, "use_cache": False},
            dynamic_shapes={"input_ids": sizes, "attention_mask": sizes, "use_cache": None},
        )
        for tokens in (13, 7):
            given = {"attention_mask": mask[:, :tokens], "use_cache": False}
            out = program.module()(ids[:, :tokens], **given).logits
            expected = typical(ids[:, :tokens], **given).logits
            torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
