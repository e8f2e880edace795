"""Series: measurements at any times, with gaps, and a head that predicts what will be measured at others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput, can_return_tuple

from syncattn.checks import check_choice, short
from syncattn.models.decoder import DecoderModel
from syncattn.models.fields import check_size
from syncattn.models.osn import OSNConfig, OSNModel, OSNPreTrainedModel
from syncattn.models.packing import refuse_texts
from syncattn.values import readable

SCALINGS = ("std", "none")

# What models of texts are told, and a series' model tells its layers itself.
_OWN = ("input_ids", "inputs_embeds", "attention_mask", "position_ids", "positions", "use_cache")


class OSNSeriesConfig(OSNConfig):
    """Sizes and options of an `OSNSeriesModel` or `OSNForTimeSeriesPrediction`.

    Args:
        num_input_channels: C, how many numbers are measured at a time.
        prediction_length: how many times ahead are predicted where the caller gives no times.
        scaling: "std": what is measured is counted from each series' own mean, in its own standard deviation,
            channel by channel; "none": it is taken as it is.
        **options: as in `OSNConfig`. Other defaults than there: is_causal=False, and values that are turned
            by where they come from (value_rotation=100), without which no value knows its time.
            `window_range` and `helix_scales` are in the unit of the times: a season of length T is a helix of
            scale T / 2 pi. vocab_size, special tokens, use_cache and max_position_embeddings are without
            effect.

    Raises:
        TypeError, ValueError: as `OSNConfig`; axes is not 1.
    """

    model_type = "osn_series"

    is_causal: bool = False
    use_cache: bool = False
    tie_word_embeddings: bool = False
    value_rotation: float | Sequence[float | bool | None] | None = 100.0
    num_input_channels: int = 1
    prediction_length: int = 24
    scaling: str = "std"

    def check(self) -> None:
        """As `OSNConfig.check`, and what is measured."""
        if self.axes != 1:
            raise ValueError(f"axes must be 1 for series, time, got {short(self.axes)}")
        super().check()
        check_size("num_input_channels", self.num_input_channels)
        check_size("prediction_length", self.prediction_length)
        check_choice("scaling", self.scaling, SCALINGS)


@dataclass
class SeriesModelOutput(ModelOutput):
    """What an `OSNSeriesModel` returns.

    Args:
        last_hidden_state: (B, N + P, D), of the N past times and then the P others that were asked for.
        hidden_states, attentions: as in `DecoderModel.forward`.
        loc, scale: (B, 1, C) float32 at least, what the values were counted from and in.
    """

    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    loc: Tensor | None = None
    scale: Tensor | None = None


@dataclass
class TimeSeriesPredictionOutput(ModelOutput):
    """What an `OSNForTimeSeriesPrediction` returns.

    Args:
        loss: (), if future values are given: the mean squared error, in each series' own `scale`.
        prediction_outputs: (B, P, C), float32 at least, in the unit of past_values.
        hidden_states, attentions, loc, scale: as in `SeriesModelOutput`.
    """

    loss: Tensor | None = None
    prediction_outputs: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    loc: Tensor | None = None
    scale: Tensor | None = None


def measured(name: str, values: Any, mask: Any, shape: tuple[int | None, ...]) -> tuple[Tensor, Tensor]:
    """Values (B, n, C) with 0 where nothing was measured, and where something was, (B, n, C) bool.

    Args:
        name: of the values; their mask is called as they are, with "observed_mask" for "values".
        values: real numbers; NaN stands for nothing measured if there is no mask.
        mask: 1 where something was measured, 0 where not; None: wherever there is no NaN.
        shape: (B, n, C); None: any.

    Raises:
        TypeError: values or mask is no tensor.
        ValueError: they are not as described, or NaN or infinite where something was measured (where to look
            makes no device wait).
    """
    masked = name.replace("values", "observed_mask")
    wanted = "({}, {}, {})".format(*(size if size is not None else "BN"[i] for i, size in enumerate(shape)))
    _check_tensor(name, values, wanted)
    fits = values.ndim == 3 and all(size in (None, own) for size, own in zip(shape, values.shape))
    if not fits or values.is_complex() or values.dtype == torch.bool:
        raise ValueError(
            f"{name} must be real numbers of shape {wanted}, got {values.dtype} {tuple(values.shape)}"
        )
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    if mask is None:
        observed = ~values.isnan()
    elif not isinstance(mask, Tensor):
        raise TypeError(f"{masked} must be a tensor {wanted}, got {type(mask).__name__}")
    elif mask.shape != values.shape:
        raise ValueError(
            f"{masked} must have the shape of {name}, {tuple(values.shape)}, got {tuple(mask.shape)}"
        )
    else:
        held = readable((mask == 0) | (mask == 1))
        if held is not None and not bool(held.all()):
            raise ValueError(f"{masked} must hold 1 where something was measured and 0 where not")
        observed = mask.to(values.device).bool()
    values = torch.where(observed, values, 0)
    finite = readable(values.isfinite())
    if finite is not None and not bool(finite.all()):
        raise ValueError(
            f"{name} must be finite where something was measured, got NaN or infinity: {masked} or, without "
            "it, NaN says where nothing was"
        )
    return values, observed


class SeriesEmbedding(nn.Module):
    """Measurements to tokens: one linear map of the values, of which were measured, and whether a value is
    asked for.

    Args:
        config: sizes.
    """

    def __init__(self, config: OSNSeriesConfig) -> None:
        super().__init__()
        inputs = 2 * config.num_input_channels + 1
        self.projection = nn.Linear(inputs, config.hidden_size, bias=False)
        # The start suits a map from the hidden size; this one has few inputs.
        self.projection.initializer_scale = (config.hidden_size / inputs) ** 0.5  # type: ignore

    def forward(self, values: Tensor, observed: Tensor, asked: int) -> Tensor:
        """Tokens (B, N + P, D) of values and observed (B, N, C), and of P = `asked` times without a value."""
        inputs = torch.cat((values, observed.to(values.dtype), torch.zeros_like(values[..., :1])), dim=-1)
        question = torch.zeros_like(inputs[:1, :1])
        question[..., -1] = 1
        question = question.expand(len(inputs), asked, -1)
        return self.projection(torch.cat((inputs, question), dim=1).to(self.projection.weight.dtype))


class OSNSeriesModel(OSNModel):
    """Measurements as tokens at their times, a stack of OSN blocks and a final LayerNorm.

    Times at which a value is asked for are tokens too, behind the measured ones: whatever is near them, or
    stands at the same place of a season, can lock to them. A time at which nothing was measured is padding.

    Args:
        config: sizes and options.

    Raises:
        TypeError, ValueError: the configuration is inconsistent.
    """

    config: OSNSeriesConfig
    config_class = OSNSeriesConfig
    main_input_name = "past_values"

    def make_embedding(self) -> nn.Module:
        """What makes tokens of measurements."""
        return SeriesEmbedding(self.config)

    @can_return_tuple
    def forward(  # type: ignore[override]
        self,
        past_values: Tensor,
        past_observed_mask: Tensor | None = None,
        past_times: Tensor | None = None,
        future_times: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | Sequence[int] | None = None,
        **kwargs: Any,
    ) -> SeriesModelOutput:
        """Hidden states of the N past times and of the P others that are asked for.

        Args:
            past_values: what was measured (B, N, C), real numbers, in any unit.
            past_observed_mask: 1 where something was measured, 0 where not, (B, N, C). None: NaN in
                past_values says where nothing was.
            past_times: when, real numbers (B or 1, N) in the order of the values. None: 0, 1, 2, ....
            future_times: times that are asked for, (B or 1, P), beside past_times or, where those are
                numbered, in the same count. None: none. They need not lie in the future.
            output_attentions, output_hidden_states: as in `DecoderModel.forward`; weights are (B, H, N + P,
                N + P).
            **kwargs: as in `DecoderModel.forward`.

        Only differences of times count, and in what unit is for the configuration to say. Large ones (days
        since 1970, seconds) are exact to their own dtype: give them in float64, or as integers.

        Raises:
            TypeError, ValueError: values, masks or times are not as documented, no time is given at all, or
                as `DecoderModel.forward`.
        """
        for name in _OWN:
            given = kwargs.pop(name, None)
            if given is not None and given is not False:
                raise ValueError(f"{name} must be left out: values, masks and times say all that a series is")
        refuse_texts(kwargs, "series")
        shape = (None, None, self.config.num_input_channels)
        values, observed = measured("past_values", past_values, past_observed_mask, shape)
        batch, tokens, _ = values.shape
        if tokens == 0:
            raise ValueError(f"past_values must have at least one time, got {tuple(values.shape)}")
        times = _times("past_times", past_times, batch, tokens, values)
        asked = _times("future_times", future_times, batch, None, values)
        loc, scale = self._scale(values, observed)
        hidden = self.embed_tokens(torch.where(observed, (values - loc) / scale, 0), observed, asked.shape[1])
        real = torch.cat((observed.any(-1), observed.new_ones(batch, asked.shape[1])), dim=1)
        if times.dtype != asked.dtype and times.device.type != "mps":  # float32 would round the others
            times, asked = times.double(), asked.double()
        together = torch.cat([x.expand(max(len(times), len(asked)), -1) for x in (times, asked)], dim=1)
        outputs = DecoderModel.forward(
            self,
            inputs_embeds=hidden,
            attention_mask=real,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            positions=together[..., None],
            use_cache=False,
            return_dict=True,
            **kwargs,
        )
        return SeriesModelOutput(
            last_hidden_state=outputs.last_hidden_state,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            loc=loc,
            scale=scale,
        )

    def _scale(self, values: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
        """What each series' values are counted from and in, (B, 1, C)."""
        if self.config.scaling == "none":
            return torch.zeros_like(values[:, :1]), torch.ones_like(values[:, :1])
        count = observed.sum(1, keepdim=True).clamp(min=1)
        loc = (values / count).sum(1, keepdim=True)
        differences = torch.where(observed, values - loc, 0)
        # Squares of very large or small numbers are out of range, those of their shares are not.
        largest = differences.abs().amax(1, keepdim=True)
        shares = differences / torch.where(largest > 0, largest, 1)
        spread = largest * (shares.square().sum(1, keepdim=True) / count).sqrt()
        # A constant series has no spread: what is left of rounding must not be blown up to 1.
        least = 100 * torch.finfo(values.dtype).eps * loc.abs()
        return loc, torch.where(spread > least, spread, torch.ones_like(spread))


def _check_tensor(name: str, given: Any, shape: str) -> None:
    if not isinstance(given, Tensor):
        raise TypeError(f"{name} must be a tensor {shape}, got {type(given).__name__}")


def _times(name: str, given: Any, batch: int, tokens: int | None, like: Tensor) -> Tensor:
    """Times (B or 1, n) on the device of `like`; numbers if None is given, and none where n is not known."""
    if given is None:
        return torch.arange(tokens or 0, dtype=torch.int64, device=like.device)[None]
    size = "P" if tokens is None else tokens
    _check_tensor(name, given, f"(B or 1, {size})")
    if given.ndim != 2 or given.shape[0] not in (1, batch) or tokens not in (None, given.shape[1]):
        raise ValueError(
            f"{name} must have shape (B or 1, {size}), with B = {batch}, got {tuple(given.shape)}"
        )
    return given.to(like.device)


class OSNForTimeSeriesPrediction(OSNPreTrainedModel):
    """`OSNSeriesModel` with a linear map of what it says at times without a value: a prediction for each.

    It predicts a number, no distribution.

    Args:
        config: sizes and options.

    Example:
        >>> model = OSNForTimeSeriesPrediction(OSNSeriesConfig(hidden_size=64, num_hidden_layers=2))
        >>> past, future = torch.randn(8, 100, 1), torch.randn(8, 24, 1)
        >>> times = torch.rand(8, 124).cumsum(1)             # irregular
        >>> out = model(past, past_times=times[:, :100], future_times=times[:, 100:], future_values=future)
        >>> out.loss                                         # a scalar to call backward() on
        >>> out.prediction_outputs                           # (8, 24, 1)
    """

    config: OSNSeriesConfig
    config_class = OSNSeriesConfig
    main_input_name = "past_values"
    # The loss is a mean over the batch, so that the Trainer divides it where it accumulates gradients.
    accepts_loss_kwargs = False

    def __init__(self, config: OSNSeriesConfig) -> None:
        super().__init__(config)
        self.model = OSNSeriesModel(config)
        self.head = nn.Linear(config.hidden_size, config.num_input_channels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        past_values: Tensor,
        past_observed_mask: Tensor | None = None,
        future_values: Tensor | None = None,
        future_observed_mask: Tensor | None = None,
        past_times: Tensor | None = None,
        future_times: Tensor | None = None,
        **kwargs: Any,
    ) -> TimeSeriesPredictionOutput:
        """Predictions at the P times that are asked for, and the loss if future values are given.

        Args:
            past_values, past_observed_mask, past_times, future_times: as in `OSNSeriesModel.forward`. Where
                neither times are given, P is that of future_values, else config.prediction_length, and they
                are numbered on from the past. Future times may be any: before, between and after the past.
            future_values: what is to be predicted (B, P, C); where nothing was measured, nothing is asked.
            future_observed_mask: as past_observed_mask, of future_values.
            **kwargs: as in `OSNSeriesModel.forward`, output_attentions and return_dict among them.

        Raises:
            TypeError, ValueError: as `OSNSeriesModel.forward`; past_times without future_times, or the other
                way round; future_observed_mask without future_values.
        """
        if (past_times is None) != (future_times is None):
            missing, there = ("past_times", "future_times")[:: 1 if past_times is None else -1]
            raise ValueError(f"{missing} must be given with {there}, got {there} alone")
        _check_tensor("past_values", past_values, f"(B, N, {self.config.num_input_channels})")
        if future_times is not None:
            _check_tensor("future_times", future_times, "(B or 1, P)")
        if future_observed_mask is not None and future_values is None:
            raise ValueError("future_values must be given with future_observed_mask, got the mask alone")
        future, observed, asked = None, None, self.config.prediction_length
        if future_values is not None:
            length = None if future_times is None or future_times.ndim != 2 else future_times.shape[1]
            shape = (len(past_values), length, self.config.num_input_channels)
            future, observed = measured("future_values", future_values, future_observed_mask, shape)
            asked = future.shape[1]
        if future_times is None:
            first = past_values.shape[1]
            future_times = torch.arange(first, first + asked, dtype=torch.int64, device=past_values.device)[
                None
            ]
        outputs = self.model(
            past_values, past_observed_mask, past_times, future_times, return_dict=True, **kwargs
        )
        predicted = self.head(outputs.last_hidden_state[:, past_values.shape[1] :]).to(outputs.loc.dtype)
        loss = None
        if future is not None and observed is not None:
            error = torch.where(observed, predicted - (future - outputs.loc) / outputs.scale, 0)
            loss = error.square().sum() / observed.sum().clamp(min=1)
        return TimeSeriesPredictionOutput(
            loss=loss,
            prediction_outputs=predicted * outputs.scale + outputs.loc,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            loc=outputs.loc,
            scale=outputs.scale,
        )
