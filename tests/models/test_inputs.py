"""What `forward` takes beside token ids: masks, positions and keywords that other people's code passes."""

import copy

import pytest
import torch
from torch.func import functional_call, grad, vmap
from transformers import DataCollatorWithFlattening

from syncattn.models import DecoderCache, OSNConfig, OSNForCausalLM


def counted(mask, padding):
    """Positions as `generate()` makes them of a mask."""
    return (mask.cumsum(-1) - 1).masked_fill(mask == 0, padding)


@torch.no_grad()
def test_positions_that_say_what_the_layers_count_change_nothing(typical, ids, mask):
    numbers = torch.arange(13)
    for positions in (numbers[None], numbers.expand(3, -1).int(), numbers[None] + 7):
        assert torch.equal(typical(ids, position_ids=positions).logits, typical(ids).logits)
    expected = typical(ids, mask).logits
    for positions in (counted(mask, 0), counted(mask, 1), numbers[None]):
        assert torch.equal(typical(ids, mask, positions).logits, expected)
        cache = DecoderCache(typical.config)
        parts = [
            typical(
                ids[:, start:stop], mask[:, :stop], positions[:, start:stop], past_key_values=cache
            ).logits
            for start, stop in ((0, 6), (6, 7), (7, 13))
        ]
        torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_positions_with_gaps_are_where_the_tokens_stand(model, ids, mask):
    if model.model.counts_only:
        return
    gaps = torch.randint(1, 9, (3, 13), generator=torch.Generator().manual_seed(2)).cumsum(1)
    expected = model(ids, mask, positions=gaps[..., None].double()).logits
    found = model(ids, mask, gaps + 1000).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    sees = getattr(model.config, "position", "none") != "none"
    assert torch.allclose(expected, model(ids, mask).logits, atol=1e-4) != sees
    cache = DecoderCache(model.config)
    options = {"past_key_values": cache}
    parts = [
        model(ids[:, start:stop], mask[:, :stop], gaps[:, start:stop], **options).logits
        for start, stop in ((0, 6), (6, 7), (7, 13))
    ]
    torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_positions_after_a_cache_that_counted(typical, ids, mask):
    """They are numbers of tokens, with or without the padding before them."""
    for part, real in ((ids, None), (ids[1:2], mask[1:2])):
        expected = typical(part, real).logits[:, 6:]
        for start in (6, 2) if real is not None else (6,):
            cache = DecoderCache(typical.config)
            typical(part[:, :6], None if real is None else real[:, :6], past_key_values=cache)
            at = torch.arange(start, start + 7)[None]
            found = typical(part[:, 6:], real, at, past_key_values=cache).logits
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_other_positions_are_refused(typical, ids, mask):
    numbers, counts = torch.arange(13), typical.model.counts_only
    for positions, got, counted_got in (
        (numbers[None].flip(1), "texts that begin at 0 and at 11", "texts that begin at 0 and at 11"),
        # without the mask that it was made of
        (counted(mask, 1), "texts that begin at 0 and at 1", "texts that begin at 0 and at 1"),
        (2 * numbers[None], None, "got 2 in place of 1.* told apart by sequence_ids"),
        (2 * (numbers[None] % 5), None, "got 2 in place of 1"),
    ):
        wanted = counted_got if counts else got
        if wanted is not None:
            with pytest.raises(ValueError, match=f"position_ids must rise .*{wanted}"):
                typical(ids, position_ids=positions)
    for wrong in (numbers, numbers[None, :12], numbers[None].float(), ids[None]):
        with pytest.raises(ValueError, match=r"position_ids must be integers of shape \(B, N\) = \(3, 13\)"):
            typical(ids, position_ids=wrong)
    with pytest.raises(TypeError, match=r"position_ids must be a tensor \(B, N\), got list"):
        typical(ids, position_ids=[0])
    with pytest.raises(ValueError, match="one of position_ids and positions must be given at most, got both"):
        typical(ids, position_ids=numbers[None], positions=numbers[None, :, None])
    cache = DecoderCache(typical.config)
    typical(ids[:, :6], mask[:, :6], past_key_values=cache)
    for start in (0, 5, 7) if counts else (0, 5):
        wanted = f"got {start} in place of 6 in row 0" if counts else f"got {start} after 5 in row 0"
        with pytest.raises(ValueError, match=wanted):
            typical(ids[:, 6:8], mask[:, :8], torch.arange(start, start + 2)[None], past_key_values=cache)
    assert cache.get_seq_length() == 6


@torch.no_grad()
def test_positions_on_two_axes(ids):
    model = OSNForCausalLM(OSNConfig(vocab_size=40, hidden_size=32, num_hidden_layers=1, axes=2)).eval()
    at = torch.stack((torch.arange(13) // 4, torch.arange(13) % 4), -1)[None]
    out = model(ids, positions=at, labels=ids)
    assert torch.equal(model(ids, positions=at + 10**6).logits, out.logits)
    cache = DecoderCache(model.config)
    parts = [
        model(ids[:, a:b], positions=at[:, a:b], past_key_values=cache).logits for a, b in ((0, 5), (5, 13))
    ]
    torch.testing.assert_close(torch.cat(parts, 1), out.logits, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="position_ids must be left out with axes=2"):
        model(ids, position_ids=torch.arange(13)[None])
    with pytest.raises(ValueError, match="positions must be given to a layer of axes=2"):
        model(ids)


@torch.no_grad()
def test_other_keywords_are_refused_by_name_or_passed_by(typical, ids):
    alone = DataCollatorWithFlattening()([{"input_ids": ids[0, :5].tolist()}])
    assert torch.equal(typical(**alone).logits, typical(ids[:1, :5]).logits)
    for name in ("cu_seqlens", "packed_seq_params", "block_sequence_ids"):
        with pytest.raises(
            ValueError, match=f"{name} must be left out, got Tensor: several texts in one row"
        ):
            typical(ids, **{name: ids[0]})
    with pytest.raises(ValueError, match="is_causal must be True or left out, got False"):
        typical(ids, is_causal=False)
    passed = {"seq_idx": None, "is_causal": True, "token_type_ids": ids, "tokenizer": object()}
    assert torch.equal(typical(ids, **passed).logits, typical(ids).logits)


@torch.no_grad()
def test_masks_that_are_not_of_0_and_1_are_refused(typical, ids, mask):
    expected = typical(ids, mask).logits
    for same in (mask.bool(), mask.float(), mask.int()):
        assert torch.equal(typical(ids, same).logits, expected)
    hidden = (1 - mask).float()
    for wrong, got in (
        (torch.where(mask.bool(), 0, -torch.inf), "torch.float32 from -inf to 0"),
        (hidden * torch.finfo(torch.float32).min, "torch.float32 from -3.40282e.38 to -?0"),
        ((1 - mask) * -10000, "torch.int64 from -10000 to 0"),
        (hidden * 0, "torch.float32 from 0 to 0"),  # additive, and it hides nothing
        (mask + 1, "torch.int64 from 1 to 2"),  # numbers of packed texts
        (mask * torch.nan, "torch.float32 from nan to nan"),
    ):
        with pytest.raises(ValueError, match=f"attention_mask must hold 1 for .* 0 for padding, got {got}"):
            typical(ids, wrong)
    with pytest.raises(
        ValueError, match=r"\(B, past \+ N\) = \(3, 13\).*got torch.float32 \(1, 1, 13, 13\): who sees whom"
    ):
        typical(ids, torch.ones(1, 1, 13, 13))
    with pytest.raises(TypeError, match=r"attention_mask must be a tensor .*, got dict"):
        typical(ids, {"full_attention": mask})


@pytest.mark.parametrize("typical", ["alibi delay"], indirect=True)  # the quickest to compile
def test_compiled_models_assert_what_they_cannot_read(typical, ids, mask, fresh_compiler):
    compiled = torch.compile(typical, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        expected = typical(ids, mask, use_cache=False).logits
        found = compiled(ids, mask, counted(mask, 1), use_cache=False).logits
        torch.testing.assert_close(found, expected)
        with pytest.raises(RuntimeError, match="attention_mask must hold 1"):
            compiled(ids, mask * 2, counted(mask, 1), use_cache=False)
        with pytest.raises(RuntimeError, match="position_ids must rise by 1"):
            compiled(ids, mask, counted(mask, 1) * 2, use_cache=False)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_gradients_of_each_sample(typical, ids, mask):
    """torch.func over a model: values are checked there, too."""
    model = copy.deepcopy(typical).train()
    labels = ids.masked_fill(mask == 0, -100)

    def loss(parameters, *sample):
        text, real, label, position = (x[None] for x in sample)
        inputs = {"attention_mask": real, "labels": label, "position_ids": position}
        return functional_call(model, parameters, (text,), inputs).loss

    parameters = dict(model.named_parameters())
    each = vmap(grad(loss), (None, 0, 0, 0, 0))
    found = each(parameters, ids, mask, labels, counted(mask, 0))
    for row in range(3):
        model.zero_grad()
        model(ids[row : row + 1], mask[row : row + 1], labels=labels[row : row + 1]).loss.backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(found[name][row], parameter.grad, rtol=1e-3, atol=1e-5)
    for samples, message in (
        ((ids + 39, mask, labels, counted(mask, 0)), "input_ids must be below vocab_size"),
        ((ids, mask + 1, labels, counted(mask, 0)), "attention_mask must hold 1"),
        ((ids, mask, labels, counted(mask, 0) % 3), "position_ids must rise "),
    ):
        with pytest.raises(ValueError, match=message):
            each(parameters, *samples)


def test_no_sequences_give_nothing_and_no_tokens_an_error(model, ids):
    model = copy.deepcopy(model)
    for training in (True, False):
        out = model.train(training)(ids[:0], labels=ids[:0], attention_mask=ids[:0], output_attentions=True)
        assert out.logits.shape == (0, 13, 40) and out.loss.isnan()  # a mean over nothing, as PyTorch has it
        assert [x.shape for x in out.attentions] == 2 * [(0, 4, 13, 13)]
    model(ids[:0, :1], past_key_values=out.past_key_values)
    model.zero_grad()
    model(ids[:0]).logits.sum().backward()
    assert not any(p.grad is not None and p.grad.any() for p in model.parameters())
    with pytest.raises(ValueError, match=r"at least one token, got torch.int64 \(3, 0\)"):
        model(ids[:, :0])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_refused(typical, ids):
    nested = torch.nested.nested_tensor([ids[0], ids[1, :4]], layout=torch.jagged)
    embedded = torch.nested.nested_tensor([torch.zeros(3, 32), torch.zeros(2, 32)], layout=torch.jagged)
    for given in (
        {"input_ids": nested},
        {"inputs_embeds": embedded},
        {"input_ids": ids, "attention_mask": nested},
        {"input_ids": ids, "position_ids": nested},
    ):
        with pytest.raises(ValueError, match=r"got .*nested tensor"):
            typical(**given)
