"""Series: measurements at any times, what is missing among them, and predictions at other times."""

import copy
import math

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForTimeSeriesPrediction, Trainer, TrainingArguments

from syncattn.models import OSNForTimeSeriesPrediction, OSNSeriesConfig
from syncattn.nn import calibrate, limit_density_, locked_density

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "density_range": (0.2, 0.8)}
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


def make(**options):
    torch.manual_seed(0)
    config = OSNSeriesConfig(**SIZES | {"num_input_channels": 2, "prediction_length": 5} | options)
    model = OSNForTimeSeriesPrediction(config).eval()
    with torch.no_grad():
        model.head.weight.normal_()
        model.head.bias.normal_()
    values, times = series(channels=config.num_input_channels)
    calibrate(model, values, past_times=times[:, :20], future_times=times[:, 20:])
    return model


def series(batch=3, past=20, future=5, channels=2):
    """Values (B, N, C) around 300, and irregular times (B, N + P) that start late."""
    generator = torch.Generator().manual_seed(1)
    values = 300 + 5 * torch.randn(batch, past, channels, generator=generator)
    times = torch.rand(batch, past + future, generator=generator, dtype=torch.float64).cumsum(1) + 2e4
    return values, times


@torch.no_grad()
def predicted(model, values, times=None, mask=None):
    if times is None:
        return model(values, mask).prediction_outputs
    n = values.shape[1]
    return model(values, mask, past_times=times[:, :n], future_times=times[:, n:]).prediction_outputs


def test_some_pairs_lock_and_others_do_not():
    values, times = series()
    asked = {"past_times": times[:, :20], "future_times": times[:, 20:]}
    for name, density in locked_density(make(), values, **asked).items():
        assert density.min() > 0.1 and density.mean() < 0.9, (name, density)


def test_only_differences_of_times_count():
    model, (values, times) = make(), series()
    want = predicted(model, values, times)
    torch.testing.assert_close(predicted(model, values, times - 1.5e4), want, **TOLERANCE)
    assert not torch.allclose(predicted(model, values, 1.5 * times), want, atol=1e-2)
    numbered = torch.arange(25)[None]
    assert torch.equal(predicted(model, values, numbered), predicted(model, values))


def test_what_was_not_measured_is_as_if_it_were_not_there():
    """By NaN or by the mask, whatever stands there: the prediction is that of the other times alone."""
    model, (values, times) = make(), series()
    gap = torch.tensor([0, 5, 6, 7, 19])
    kept = torch.tensor([i for i in range(25) if i not in gap])
    want = predicted(model, values[:, kept[:-5]], times[:, kept])
    missing = values.clone()
    missing[:, gap] = torch.nan
    torch.testing.assert_close(predicted(model, missing, times), want, **TOLERANCE)
    mask = (~missing.isnan()).long()
    values[:, gap] = 1e9
    torch.testing.assert_close(predicted(model, values, times, mask), want, **TOLERANCE)
    values[:, gap] = torch.inf
    torch.testing.assert_close(predicted(model, values, times, mask.bool()), want, **TOLERANCE)


def test_channels_may_be_missing_one_by_one():
    model, (values, times) = make(), series()
    values[:, 3, 0] = torch.nan
    one = predicted(model, values, times)
    values[:, 3, 1] += 4
    assert one.isfinite().all() and not torch.allclose(predicted(model, values, times), one, atol=1e-3)


def test_every_series_has_its_own_scale_and_unit():
    model, (values, times) = make(), series()
    want = predicted(model, values, times)
    torch.testing.assert_close(predicted(model, values * 1e3, times), want * 1e3, rtol=1e-4, atol=0.1)
    torch.testing.assert_close(predicted(model, values[1:2], times[1:2]), want[1:2], **TOLERANCE)
    out = model(values)
    torch.testing.assert_close(out.loc, values.mean(1, keepdim=True))
    torch.testing.assert_close(out.scale, values.std(1, keepdim=True, correction=0))
    plain = make(scaling="none")(values)
    assert (plain.loc == 0).all() and (plain.scale == 1).all()


@pytest.mark.parametrize("values", [torch.full((1, 20, 2), 0.1), torch.full((1, 20, 2), torch.nan)])
def test_series_without_a_spread_or_without_measurements(values):
    found = predicted(make(), values)
    assert found.shape == (1, 5, 2) and found.isfinite().all() and found.abs().max() < 100


def test_the_loss_is_of_what_was_measured_in_each_series_own_scale():
    model, (values, _) = make(), series()
    future = values[:, :7] + 1
    out = model(values, future_values=future)
    error = (out.prediction_outputs - future) / out.scale
    torch.testing.assert_close(out.loss, error.square().mean())
    future[0, 2:] = torch.nan
    some = ~future.isnan()
    found = model(values, future_values=future).loss
    torch.testing.assert_close(found, error[some].square().mean(), **TOLERANCE)
    masked = model(values, future_values=future.nan_to_num(0), future_observed_mask=some.long()).loss
    torch.testing.assert_close(masked, found)
    assert model(values, future_values=torch.full_like(future, torch.nan)).loss == 0


def test_a_causal_model_predicts_without_knowing_what_is_asked_for_later():
    model, (values, times) = make(is_causal=True), series()
    some = predicted(model, values, times[:, :22])
    torch.testing.assert_close(some, predicted(model, values, times)[:, :2], **TOLERANCE)


@torch.no_grad()
def test_times_between_and_before_may_be_asked_for():
    model, (values, times) = make(), series()
    asked = times[:, [0, 3]] + 0.01
    found = model(values, past_times=times[:, :20], future_times=asked).prediction_outputs
    assert found.shape == (3, 2, 2) and found.isfinite().all()


@torch.no_grad()
def test_outputs():
    model, (values, times) = make(), series()
    out = model(values, output_attentions=True, output_hidden_states=True)
    assert out.prediction_outputs.shape == (3, 5, 2) and out.loss is None
    assert out.attentions[0].shape == (3, 4, 25, 25) and out.hidden_states[2].shape == (3, 25, 32)
    predictions, *_ = model(values, return_dict=False)
    torch.testing.assert_close(predictions, out.prediction_outputs, **TOLERANCE)
    base = model.model(values, past_times=times[:, :20])
    assert base.last_hidden_state.shape == (3, 20, 32)
    assert model(values[:0]).prediction_outputs.shape == (0, 5, 2)


def test_every_parameter_learns_and_checkpointing_changes_no_gradient():
    model, (values, _) = make(position=["drift", "own_helix", "none", "helix"]).train(), series()
    for name, parameter in model.named_parameters():
        if name.endswith("ask_mix"):  # while it is 0, what it takes learns nothing
            torch.nn.init.normal_(parameter)
    future = values[:, :5]
    model(values, future_values=future).loss.backward()
    want = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    assert all(grad.abs().sum() > 0 for grad in want.values()), want
    model.zero_grad()
    model.gradient_checkpointing_enable()
    model(values, future_values=future).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, want[name], **TOLERANCE)


@torch.no_grad()
def test_bfloat16_keeps_the_unit():
    """300 has three digits in bfloat16; the mean and the spread do not go through it."""
    model, (values, times) = make(), series()
    want = predicted(model, values, times)
    found = predicted(copy.deepcopy(model).bfloat16(), values, times)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, want, rtol=0, atol=1.5)


@torch.no_grad()
def test_saved_and_loaded(tmp_path):
    model, (values, _) = make(), series()
    model.save_pretrained(tmp_path)
    again = AutoModelForTimeSeriesPrediction.from_pretrained(tmp_path)
    assert type(again) is OSNForTimeSeriesPrediction and again.config.prediction_length == 5
    assert torch.equal(predicted(again, values), predicted(model, values))
    assert AutoConfig.from_pretrained(tmp_path).to_dict() == again.config.to_dict()
    base = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(base(values).last_hidden_state, model.model(values).last_hidden_state)


def test_the_trainer_trains_and_evaluates(tmp_path):
    """Waves of many phases, measured at irregular times."""
    generator = torch.Generator().manual_seed(0)
    times = torch.rand(64, 28, generator=generator).cumsum(1)
    waves = torch.sin(2 * math.pi * (times / 6 + torch.rand(64, 1, generator=generator)))[..., None]
    data = [
        {"past_values": w[:24], "future_values": w[24:], "past_times": t[:24], "future_times": t[24:]}
        for w, t in zip(waves, times)
    ]
    torch.manual_seed(0)
    model = OSNForTimeSeriesPrediction(OSNSeriesConfig(**SIZES, helix_scales=[6 / 2 / math.pi]))
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=25,
        per_device_train_batch_size=32,
        learning_rate=1e-2,
        label_names=["future_values"],
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, train_dataset=data, eval_dataset=data)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.5 * before
    limit_density_(model, 0.1, waves[:4, :24])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"axes": 2}, ValueError, "axes must be 1 for series, time, got 2"),
        ({"num_input_channels": 0}, ValueError, "num_input_channels must be at least 1, got 0"),
        ({"prediction_length": 2.5}, TypeError, "prediction_length must be an integer, got 2.5"),
        ({"scaling": "mean"}, ValueError, "scaling must be one of 'std', 'none', got 'mean'"),
    ],
)
def test_configurations_that_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        OSNSeriesConfig(**SIZES | options)


BAD = torch.zeros(3, 20, 2)
BAD[1, 4, 0] = torch.nan


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"past_values": np.zeros((3, 20, 2))}, TypeError, "past_values must be a tensor .B, N, 2., got nda"),
        (
            {"past_values": torch.zeros(3, 20)},
            ValueError,
            "past_values must be real numbers of shape .B, N, 2.",
        ),
        (
            {"past_values": torch.zeros(3, 20, 1)},
            ValueError,
            "past_values must be real numbers of shape .B, N",
        ),
        ({"past_values": torch.ones(3, 20, 2) / 0}, ValueError, "past_values must be finite where something"),
        (
            {"past_values": BAD, "past_observed_mask": torch.ones(3, 20, 2)},
            ValueError,
            "past_values must be finite where something was measured, got NaN",
        ),
        (
            {"past_observed_mask": torch.ones(3, 20)},
            ValueError,
            "past_observed_mask must have the shape of past",
        ),
        ({"past_observed_mask": [1]}, TypeError, "past_observed_mask must be a tensor .B, N, 2., got list"),
        (
            {"past_observed_mask": torch.full((3, 20, 2), 2)},
            ValueError,
            "past_observed_mask must hold 1 where",
        ),
        (
            {"past_times": torch.arange(20)[None]},
            ValueError,
            "future_times must be given with past_times, got",
        ),
        (
            {"future_times": torch.arange(5)[None]},
            ValueError,
            "past_times must be given with future_times, got",
        ),
        (
            {"past_times": torch.arange(19)[None]},
            ValueError,
            "past_times must have shape .B or 1, 20., with B = 3",
        ),
        (
            {"future_times": torch.arange(5)},
            ValueError,
            "future_times must have shape .B or 1, P., with B = 3",
        ),
        ({"past_values": [[0.0]]}, TypeError, "past_values must be a tensor .B, N, 2., got list"),
        ({"past_values": torch.zeros(3, 0, 2)}, ValueError, "past_values must have at least one time, got"),
        (
            {"future_times": [1.0], "future_values": torch.zeros(3, 5, 2)},
            TypeError,
            "future_times must be a tensor .B or 1, P., got list",
        ),
        ({"future_observed_mask": torch.ones(3, 5, 2)}, ValueError, "future_values must be given with"),
        ({"attention_mask": torch.ones(3, 20)}, ValueError, "attention_mask must be left out: values, masks"),
        ({"positions": torch.ones(3, 20, 1)}, ValueError, "positions must be left out: values, masks"),
        ({"future_times": [1.0]}, TypeError, "future_times must be a tensor .B or 1, P., got list"),
        ({"future_times": torch.full((1, 5), torch.nan)}, ValueError, "positions must be finite"),
        (
            {"future_values": torch.zeros(2, 5, 2)},
            ValueError,
            "future_values must be real numbers of shape .3, N",
        ),
    ],
)
def test_inputs_that_are_refused(given, error, message):
    values, times = series()
    if "future_times" in given and "must be given" not in message:
        given = {"past_times": times[:, :20]} | given
    elif "past_times" in given and "must be given" not in message:
        given = {"future_times": times[:, 20:]} | given
    with pytest.raises(error, match=message):
        make()(**{"past_values": values} | given)


def test_the_base_model_needs_a_time():
    with pytest.raises(ValueError, match="past_values must have at least one time, got"):
        make().model(torch.zeros(3, 0, 2))


@pytest.mark.parametrize("unit", [1e-30, 1e30])
def test_units_whose_squares_are_out_of_range(unit):
    model, (values, times) = make(), series()
    expected = predicted(model, values, times)
    torch.testing.assert_close(predicted(model, values * unit, times) / unit, expected, rtol=1e-3, atol=1e-3)


def test_a_small_spread_far_from_zero_is_one():
    model, (values, _) = make().double(), series()
    values = values.double()
    torch.testing.assert_close(model(values + 1e8).scale, model(values).scale, rtol=1e-4, atol=0)


def test_times_of_two_dtypes_are_exact_in_both():
    model, (values, _) = make(), series()
    times = torch.arange(25)[None]
    expected = predicted(model, values, times)
    far = times + 10**9
    found = model(values, past_times=far[:, :20], future_times=torch.full((1, 5), 1e9 + 64))
    other = model(values, past_times=times[:, :20], future_times=torch.full((1, 5), 64))
    torch.testing.assert_close(found.prediction_outputs, other.prediction_outputs)
    assert found.prediction_outputs.shape == expected.shape
    assert model(values, use_cache=False).prediction_outputs.shape == expected.shape
