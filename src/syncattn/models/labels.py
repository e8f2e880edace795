"""What a head is told is right: labels of texts, images and tokens, checked before a loss takes them.

A loss broadcasts or flattens what does not fit, and then says nothing or names its own arguments.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from syncattn.models.configuration import DecoderConfig
from syncattn.values import readable


def class_labels(labels: Any, batch: int, config: DecoderConfig) -> Tensor:
    """Labels of texts or images as the loss takes them: int64 (B,), or float32 (B, num_labels).

    What kind they are is written into the configuration, as transformers does it.

    Raises:
        TypeError: labels is no tensor.
        ValueError: it is of another shape or dtype than `config.problem_type` says, or holds a class that
            there is not.
    """
    _check_tensor("labels", labels)
    classes, integer = len(config.id2label or ()), _is_integer(labels)
    problem: Any = config.problem_type
    if problem is None:
        if classes == 1:
            problem = "regression"
        else:
            problem = "single_label_classification" if integer else "multi_label_classification"
    single = problem == "single_label_classification"
    shapes = [(batch,), (batch, 1)] if single or classes == 1 else [(batch, classes)]
    if tuple(labels.shape) not in shapes or (single and not integer) or labels.is_complex():
        kind = "integers" if single else "numbers"
        raise ValueError(
            f"labels must be {kind} of shape {' or '.join(map(str, shapes))} with num_labels = {classes} and "
            f"problem_type = {problem!r}, got {labels.dtype} {tuple(labels.shape)}"
        )
    if single:
        labels = labels.reshape(batch).long()
        _check_classes(labels, "num_labels", classes)
    else:
        labels = labels.float().reshape(batch, classes)
    config.problem_type = problem
    return labels


def token_labels(labels: Any, inputs: Any, name: str, classes: int, ignored: int = -100) -> Tensor:
    """Labels of tokens as int64 (B, N).

    Args:
        labels: as the caller gave them.
        inputs: (B, N) or (B, N, E), the tokens that they are of.
        name: what the configuration calls the number of classes.
        classes: that number.
        ignored: stands where a token does not count.

    Raises:
        TypeError: labels is no tensor.
        ValueError: it is not integers (B, N) below `classes`, or `ignored`.
    """
    _check_tensor("labels", labels)
    batch, tokens = inputs.shape[:2]
    if tuple(labels.shape) != (batch, tokens) or not _is_integer(labels):
        raise ValueError(
            f"labels must be integers of shape (B, N) = ({batch}, {tokens}), got {labels.dtype} "
            f"{tuple(labels.shape)}"
        )
    labels = labels.long()
    _check_classes(labels, name, classes, ignored)
    return labels


def answer_place(name: str, place: Any, inputs: Any) -> Tensor:
    """Where answers start or end as int64 (B,), those outside of the text as N, which the loss leaves out.

    Args:
        name: of the argument.
        place: as the caller gave it.
        inputs: (B, N) or (B, N, E), the tokens that it is of.

    Raises:
        TypeError: place is no tensor.
        ValueError: it is not integers (B,) or (B, 1).
    """
    _check_tensor(name, place)
    batch, tokens = inputs.shape[:2]
    if tuple(place.shape) not in ((batch,), (batch, 1)) or not _is_integer(place):
        raise ValueError(
            f"{name} must be integers of shape ({batch},) or ({batch}, 1), got {place.dtype} "
            f"{tuple(place.shape)}"
        )
    place = place.reshape(batch).long()
    # The loss takes a negative one for the first token.
    return place.masked_fill((place < 0) | (place > tokens), tokens)


def _check_tensor(name: str, given: Any) -> None:
    if not isinstance(given, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(given).__name__}")


def _is_integer(labels: Tensor) -> bool:
    return not labels.is_floating_point() and not labels.is_complex()


def _check_classes(labels: Tensor, name: str, classes: int, ignored: int = -100) -> None:
    """Make sure, where values can be read, that every label is a class, or `ignored`."""
    values = readable(labels)
    if values is None:
        return
    known = (values == ignored) | ((values >= 0) & (values < classes))
    if not known.all():
        raise ValueError(
            f"labels must be below {name} = {classes}, or {ignored}, got {int(values[~known][0])}"
        )
