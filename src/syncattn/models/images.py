"""Images: patches as tokens with two axes of position, rows and columns, and a head that classifies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.utils import can_return_tuple

from syncattn.checks import short
from syncattn.models.decoder import DecoderModel
from syncattn.models.fields import check_size
from syncattn.models.labels import class_labels
from syncattn.models.osn import OSNConfig, OSNModel, OSNPreTrainedModel
from syncattn.models.packing import refuse_texts
from syncattn.models.pooling import mean_pooling
from syncattn.values import readable


class OSNImageConfig(OSNConfig):
    """Sizes and options of an `OSNImageModel` or `OSNForImageClassification`.

    Args:
        image_size: height and width in pixels of the images that the model is trained on, one number for both
            or two. Nothing depends on it: positions are real numbers without a table, so other sizes that
            patches divide are allowed.
        patch_size: height and width of a patch in pixels, one number for both or two; 1 makes a token of
            every pixel.
        num_channels: C, of an image.
        **options: as in `OSNConfig`. Other defaults than there: is_causal=False, and axes=2 (neither may be
            changed), no delay and no token shift, since patches have no one before them; windows from 1.5 to
            6 patches; a dense start (.3 to .95), since a pair that does not lock has no gradient; and values
            that are turned by where they come from (value_rotation=100), without which no value knows its
            place. vocab_size, special tokens, use_cache and max_position_embeddings are
            without effect.

    Raises:
        TypeError, ValueError: as `OSNConfig`; a patch does not divide the image.
    """

    model_type = "osn_image"

    is_causal: bool = False
    use_cache: bool = False
    tie_word_embeddings: bool = False
    axes: int = 2
    delay: float | Sequence[bool] = 0.0
    token_shift: bool = False
    window_range: Sequence[float] = (1.5, 6.0)
    density_range: Sequence[float] | None = (0.3, 0.95)
    value_rotation: float | Sequence[float | bool | None] | None = 100.0
    image_size: int | Sequence[int] = 224
    patch_size: int | Sequence[int] = 16
    num_channels: int = 3

    def check(self) -> None:
        """As `OSNConfig.check`, and the sizes of images and patches."""
        if self.is_causal is not False:
            raise ValueError(f"is_causal must be False for images, got {short(self.is_causal)}")
        if self.axes != 2:
            raise ValueError(f"axes must be 2 for images, rows and columns, got {short(self.axes)}")
        super().check()
        check_size("num_channels", self.num_channels)
        image, patch = sides("image_size", self.image_size), sides("patch_size", self.patch_size)
        if image[0] % patch[0] or image[1] % patch[1]:
            raise ValueError(
                "patch_size must divide image_size, got patch_size = "
                f"{self.patch_size} and image_size = {self.image_size}"
            )


def sides(name: str, size: Any) -> tuple[int, int]:
    """(height, width) of a size that is one number for both, or two.

    Raises:
        TypeError, ValueError: it is neither, or no size.
    """
    both = size if isinstance(size, (tuple, list)) else (size, size)
    if len(both) != 2:
        raise ValueError(f"{name} must be one number or two, height and width, got {short(size)}")
    for side in both:
        check_size(name, side)
    return both[0], both[1]


class PatchEmbedding(nn.Module):
    """Images to tokens: every patch's pixels through one linear map.

    Args:
        config: sizes.
    """

    def __init__(self, config: OSNImageConfig) -> None:
        super().__init__()
        self.height, self.width = sides("patch_size", config.patch_size)
        self.channels = config.num_channels
        pixels = self.channels * self.height * self.width
        self.projection = nn.Linear(pixels, config.hidden_size)
        # The start suits a map from the hidden size; this one has as many inputs as a patch has numbers.
        self.projection.initializer_scale = (config.hidden_size / pixels) ** 0.5  # type: ignore

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Tokens (B, N, D) of images (B, C, H, W), row by row.

        Raises:
            TypeError, ValueError: pixel_values is not finite real numbers (B, C, H, W) that patches divide.
        """
        if not isinstance(pixel_values, Tensor):
            raise TypeError(f"pixel_values must be a tensor (B, C, H, W), got {type(pixel_values).__name__}")
        shape, size = tuple(pixel_values.shape), f"{self.height} x {self.width}"
        if pixel_values.ndim != 4 or shape[1] != self.channels or not pixel_values.is_floating_point():
            raise ValueError(
                f"pixel_values must be floating-point images (B, {self.channels}, H, W), got "
                f"{pixel_values.dtype} {shape}: an image processor makes them so"
            )
        if 0 in shape[2:] or shape[2] % self.height or shape[3] % self.width:
            raise ValueError(f"pixel_values must be images that patches of {size} pixels divide, got {shape}")
        finite = readable(pixel_values.isfinite())
        if finite is not None and not bool(finite.all()):
            raise ValueError("pixel_values must be finite, got NaN or infinity")
        rows, columns = self.grid(pixel_values)
        patches = pixel_values.unflatten(3, (columns, self.width)).unflatten(2, (rows, self.height))
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # (B, N, C height width)
        return self.projection(patches.to(self.projection.weight.dtype))

    def grid(self, pixel_values: Tensor) -> tuple[int, int]:
        """How many rows and columns of patches images (B, C, H, W) have."""
        return pixel_values.shape[2] // self.height, pixel_values.shape[3] // self.width


class OSNImageModel(OSNModel):
    """Patches through a linear map, a stack of OSN blocks and a final LayerNorm; the mean over the patches.

    There is no class token and no table of positions: a patch stands at its row and column, and images of any
    size that patches divide are one model's.

    Args:
        config: sizes and options.

    Raises:
        TypeError, ValueError: the configuration is inconsistent.
    """

    config: OSNImageConfig
    config_class = OSNImageConfig
    main_input_name = "pixel_values"

    def make_embedding(self) -> nn.Module:
        """What makes tokens of images."""
        return PatchEmbedding(self.config)

    @can_return_tuple
    def forward(  # type: ignore[override]
        self,
        pixel_values: Tensor,
        attention_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | Sequence[int] | None = None,
        *,
        positions: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Hidden states (B, N, D) of an image's N patches, row by row, and their mean (B, D).

        Args:
            pixel_values: images (B, C, H, W), floating-point, as an image processor makes them.
            attention_mask: 1 for real patches, 0 for those that nobody sees, (B, N): they are left out of the
                mean, and what the model returns for them means nothing.
            output_attentions, output_hidden_states: as in `DecoderModel.forward`.
            positions: real numbers (B or 1, N, 2) in place of each patch's row and column, as for patches
                that were cut at another scale.
            **kwargs: as in `DecoderModel.forward`, but for what tells texts in a row apart.

        Raises:
            TypeError, ValueError: pixel_values is not as documented, or as `DecoderModel.forward`.
        """
        refuse_texts(kwargs, "image")
        hidden = self.embed_tokens(pixel_values)
        if positions is None:
            rows, columns = self.embed_tokens.grid(pixel_values)  # type: ignore[operator]
            number = torch.arange(rows * columns, dtype=torch.int64, device=hidden.device)
            positions = torch.stack((number // columns, number % columns), dim=-1)[None]
        outputs = DecoderModel.forward(
            self,
            inputs_embeds=hidden,
            attention_mask=attention_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            positions=positions,
            return_dict=True,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden,
            pooler_output=mean_pooling(hidden, attention_mask),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class OSNForImageClassification(OSNPreTrainedModel):
    """`OSNImageModel` with a linear map of the mean over the patches: a class for each image.

    Args:
        config: sizes and options; num_labels, id2label and label2id as in every transformers configuration.

    Example:
        >>> model = OSNForImageClassification(OSNImageConfig(image_size=32, patch_size=4, num_labels=10))
        >>> images, labels = torch.randn(8, 3, 32, 32), torch.randint(10, (8,))
        >>> model(images, labels=labels).loss                # a scalar to call backward() on
    """

    config: OSNImageConfig
    config_class = OSNImageConfig
    main_input_name = "pixel_values"
    # The loss is a mean over the batch, so that the Trainer divides it where it accumulates gradients.
    accepts_loss_kwargs = False

    def __init__(self, config: OSNImageConfig) -> None:
        super().__init__(config)
        self.loss_type = "ForImageClassification"
        self.num_labels = config.num_labels
        self.model = OSNImageModel(config)
        self.classifier = nn.Linear(config.hidden_size, len(config.id2label or ()))
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        **kwargs: Any,
    ) -> ImageClassifierOutput:
        """Logits (B, num_labels) of each image, and the loss if `labels` are given.

        Args:
            pixel_values, attention_mask, positions: as in `OSNImageModel.forward`.
            labels: as in `DecoderForSequenceClassification.forward`, by `config.problem_type`: classes (B,),
                integers, or numbers (B, num_labels).
            **kwargs: as in `OSNImageModel.forward`, output_attentions and return_dict among them.

        Raises:
            TypeError, ValueError: as `OSNImageModel.forward`; labels are not as documented.
        """
        outputs = self.model(pixel_values, attention_mask, positions=positions, return_dict=True, **kwargs)
        logits = self.classifier(outputs.pooler_output)
        loss = None
        if labels is not None:
            labels = class_labels(labels, len(logits), self.config)
            loss = self.loss_function(labels, logits.float(), self.config)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )
