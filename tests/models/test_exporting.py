"""Models and steps of cached decoding as programs of tensors: torch.export, ONNX, int8 weights."""

import copy

import pytest
import torch
from torch import nn

import syncattn
from syncattn.models import OSNConfig, OSNForCausalLM, OSNModel
from syncattn.models.exporting import CachedStep, StaticStep


def decode(step, start, ids, mask, sizes):
    """The logits of all tokens, so many at a time."""
    past, at, found = start, 0, []
    for tokens in sizes:
        given = ids[:, at : at + tokens].clone(), mask[:, : at + tokens].clone()
        logits, past = step(*given, [x.clone() for x in past])
        found.append(logits)
        at += tokens
    return torch.cat(found, 1)


def whole(model, ids, mask):
    with torch.no_grad():
        return model(ids, mask, use_cache=False).logits


@torch.no_grad()
def test_a_step_is_the_cached_model(model, ids, mask):
    step = CachedStep(model)
    names = step.names
    assert len(names) == len(step.start(3)) and names[:2] == ["0.send", "0.value"]
    for real in (mask, mask.flip(1)):
        expected = whole(model, ids, real)[real.bool()]
        for sizes in ((13,), (1,) * 13, (5, 1, 1, 6)):
            found = decode(step, step.start(3), ids, real, sizes)[real.bool()]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_step_reads_all_of_a_long_past(monkeypatch):
    """Whatever lies behind heads' windows: a past of tensors has one length for all of them."""
    for room in ("nn.groups", "nn.state", "models.cache"):
        monkeypatch.setattr(f"syncattn.{room}.BLOCK", 8)
    sizes = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    torch.manual_seed(0)
    model = OSNForCausalLM(OSNConfig(**sizes, windows=[0.2, 0.3, 4.0, 60.0])).eval()
    assert model.windows().min() < 16
    ids = torch.randint(1, 40, (1, 90), generator=torch.Generator().manual_seed(1))
    step, mask = CachedStep(model), torch.ones_like(ids)
    found = decode(step, step.start(1), ids, mask, (50, 1, 1, 30, 8))
    torch.testing.assert_close(found, whole(model, ids, mask), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_step_leaves_the_past_that_it_was_given(build_model, ids, mask):
    step = CachedStep(build_model("osn"))
    _, past = step(ids[:, :5], mask[:, :5], step.start(3))
    before = [x.clone() for x in past]
    once, _ = step(ids[:, 5:6], mask[:, :6], past)
    assert all(torch.equal(a, b) for a, b in zip(past, before, strict=True))
    assert torch.equal(once, step(ids[:, 5:6], mask[:, :6], past)[0])


def test_what_is_no_decoder_is_refused(build_model):
    with pytest.raises(TypeError, match=r"model must be a causal language model.*got OSNModel"):
        CachedStep(build_model("osn").model)
    with pytest.raises(ValueError, match=r"model must be in evaluation mode.*model\.eval"):
        CachedStep(build_model("osn").train())
    plane = OSNConfig(vocab_size=9, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, axes=2)
    with pytest.raises(ValueError, match="model must have axes=1, got axes=2"):
        CachedStep(OSNForCausalLM(plane).eval())


@torch.no_grad()
def test_exported_step(build_model, ids):
    """A program of one token at a time goes on from a past of any length."""
    model = build_model("osn")
    step, mask = CachedStep(model), torch.ones_like(ids)
    past = [x.clone() for x in step(ids[:, :4], mask[:, :4], step.start(3))[1]]
    of_ids, of_mask, of_past = step.dynamic_shapes()
    program = torch.export.export(
        step,
        (ids[:, 4:5].clone(), mask[:, :5].clone(), past),
        dynamic_shapes=({0: of_ids[0]}, of_mask, of_past),
        strict=False,
    )
    logits = []
    for t in range(4, 13):
        given = ids[:, t : t + 1].clone(), mask[:, : t + 1].clone()
        found, past = program.module()(*given, [x.clone() for x in past])
        logits.append(found)
    torch.testing.assert_close(torch.cat(logits, 1), whole(model, ids, mask)[:, 4:], rtol=1e-4, atol=1e-4)


def test_a_recorded_model_returns_no_cache(build_model, ids, mask):
    """Nor has a caller to say so: a program can return nothing but tensors."""
    model = build_model("osn")
    with torch.no_grad():
        program = torch.export.export(model, (ids,), {"attention_mask": mask}, strict=False)
    found = program.module()(ids, attention_mask=mask)
    assert found.past_key_values is None
    torch.testing.assert_close(found.logits, whole(model, ids, mask), rtol=1e-4, atol=1e-4)


def need(*packages):
    for package in packages:
        pytest.importorskip(package, reason=f"{package} is not installed")


def session(module, arguments, shapes, path, **names):
    """The module in onnxruntime: a function from tensors to the list of its results."""
    need("onnx", "onnxscript", "onnxruntime")
    import onnxruntime

    program = torch.onnx.export(module, arguments, dynamo=True, dynamic_shapes=shapes, verbose=False, **names)
    program.save(path)
    runtime = onnxruntime.InferenceSession(path)

    def run(*tensors):
        feed = {given.name: x.numpy() for given, x in zip(runtime.get_inputs(), tensors, strict=True)}
        return [torch.from_numpy(x) for x in runtime.run(None, feed)]

    return run


class Decoder(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids, mask):
        out = self.model(ids, mask)
        return out.logits if hasattr(out, "logits") else out.last_hidden_state


def batch(tokens, seed=0):
    """Ids (3, tokens), and a mask with padding on the left, none, and on the right."""
    g = torch.Generator().manual_seed(seed)
    number = torch.arange(tokens)
    mask = torch.stack((number >= tokens // 2, number >= 0, number < max(1, tokens // 3))).long()
    return torch.randint(1, 40, (3, tokens), generator=g), mask


def encoder():
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return OSNModel(OSNConfig(**sizes, is_causal=False, density_range=(0.2, 0.8))).eval()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["osn mix", "osn top k", "encoder"])
def test_onnx_of_a_model(name, build_model, tmp_path):
    free = torch.export.Dim.DYNAMIC
    module = Decoder(encoder() if name == "encoder" else build_model(name)).eval()
    run = session(module, batch(9), ({0: free, 1: free},) * 2, tmp_path / "it.onnx")
    for tokens in (9, 1, 2, 40):
        ids, mask = batch(tokens, seed=1)
        for rows in (slice(0, 3), slice(1, 2)):
            (found,) = run(ids[rows], mask[rows])
            with torch.no_grad(), syncattn.use_backend("eager"):
                expected = module(ids[rows], mask[rows])
            real = mask[rows].bool()
            torch.testing.assert_close(found[real], expected[real], rtol=1e-4, atol=2e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["osn token shift", "alibi", "yarn"])
@torch.no_grad()
def test_onnx_of_a_step(name, build_model, ids, mask, tmp_path):
    model = build_model(name)
    step = CachedStep(model)
    past = [x.clone() for x in step(ids[:2, :4], mask[:2, :4], step.start(2))[1]]
    arguments = ids[:2, 4:7].clone(), mask[:2, :7].clone(), past
    run = session(step, arguments, step.dynamic_shapes(), tmp_path / "step.onnx")

    def onnx_step(ids, mask, past):
        logits, *past = run(ids, mask, *past)
        return logits, past

    for sizes in ((13,), (1,) * 13, (5, 1, 1, 6)):
        found = decode(onnx_step, step.start(3), ids, mask, sizes)[mask.bool()]
        torch.testing.assert_close(found, whole(model, ids, mask)[mask.bool()], rtol=1e-4, atol=2e-4)


def test_int8_weights(build_model, ids, mask):
    """torchao's weights are the rounded ones: the model computes what it would with those in float32."""
    need("torchao")
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = build_model("osn")
    small, same = copy.deepcopy(model), copy.deepcopy(model)
    quantize_(small, Int8WeightOnlyConfig())
    for name, module in small.named_modules():
        if isinstance(module, nn.Linear):
            rounded = module.weight.dequantize().detach()
            same.get_submodule(name).weight = nn.Parameter(rounded, requires_grad=False)
    found, real = whole(small, ids, mask), mask.bool()
    torch.testing.assert_close(found[real], whole(same, ids, mask)[real], rtol=1e-4, atol=1e-4)
    assert not torch.equal(found, whole(model, ids, mask))
    assert small.generate(ids, attention_mask=mask, max_new_tokens=3, do_sample=False).shape == (3, 16)


@pytest.fixture
def static_step(build_model):
    """Of a small model, for three sequences and 20 tokens."""
    model = build_model("osn token shift")
    return model, StaticStep(model, batch_size=3, max_cache_len=20)


def place_by_place(step, ids, *mask):
    return torch.cat([step(ids[:, t : t + 1].clone(), torch.tensor([t]), *mask) for t in range(13)], 1)


def test_a_static_step_holds_the_past_itself(model, ids, mask):
    """One text after another, with padding and without; of any number of tokens."""
    step, wide = StaticStep(model, 3, 20), torch.nn.functional.pad(mask, (0, 7))
    for given, seen in (((), slice(None)), ((wide,), mask.bool())):
        expected = whole(model, ids, mask if given else None)[seen]
        parts = [step(ids[:, a:b], torch.arange(a, b), *given) for a, b in ((0, 6), (6, 7), (7, 13))]
        for found in (place_by_place(step, ids, *given), torch.cat(parts, 1)):
            torch.testing.assert_close(found[seen], expected, rtol=1e-4, atol=1e-5)


def test_exported_static_step(static_step, ids, mask, tmp_path):
    """Recorded once, saved and loaded: it goes on by itself, and begins anew at place 0."""
    model, step = static_step
    wide = torch.nn.functional.pad(mask, (0, 7))
    program = torch.export.export(step, (ids[:, :1].clone(), torch.tensor([0]), wide), strict=False)
    torch.export.save(program, tmp_path / "step.pt2")
    expected = whole(model, ids, mask)[mask.bool()]
    for recorded in (program, torch.export.load(tmp_path / "step.pt2")):
        run = recorded.module()
        for _ in range(2):
            found = place_by_place(run, ids, wide)[mask.bool()]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        with pytest.raises(RuntimeError, match="cache_position must begin at 0, or go on from the last"):
            run(ids[:, :1].clone(), torch.tensor([14]), wide)
        assert torch.is_grad_enabled()
        assert not any(x.requires_grad for name, x in run.named_buffers())
    run(ids[:, :1].clone(), torch.tensor([13]), torch.nn.functional.pad(mask, (0, 7), value=1))


def test_what_a_static_step_refuses(static_step, ids):
    model, step = static_step
    place_by_place(step, ids)
    before = {name: x.clone() for name, x in step.named_buffers()}
    more = torch.cat((ids, ids), 1)
    for tokens, places, message in (
        (ids[:, :1], torch.tensor([3]), "cache_position must begin at 0, or go on from the last token's"),
        (more[:, :8], torch.arange(13, 21), "room for the new tokens, 8, got one of 20 places that holds 13"),
        (ids[:2, :1], torch.tensor([13]), "as many sequences as the input, 2, got 3"),
        (ids[:2, :1], torch.tensor([0]), "as many sequences as the input, 2, got 3"),
    ):
        with pytest.raises((RuntimeError, ValueError), match=message):
            step(tokens, places)
        assert all(torch.equal(x, before[name]) for name, x in step.named_buffers())
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        StaticStep(model, 0, 20)
    with pytest.raises(ValueError, match="max_cache_len must be at least 1, got 0"):
        StaticStep(model, 1, 0)
    with pytest.raises(ValueError, match="model must be in evaluation mode"):
        StaticStep(model.train(), 1, 20)
