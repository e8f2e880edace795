"""The fields of a configuration that are not its own: transformers' and other models'."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any

import torch

from syncattn.checks import check_choice, check_flag, check_real, short
from syncattn.models.fields import check_size

DTYPES = ("float64", "float32", "bfloat16", "float16")

# Fields of other models that change what a model computes, and the values under which nothing changes here.
_FOREIGN: dict[str, tuple[Any, ...]] = {
    "is_decoder": (None, True),
    "is_encoder_decoder": (None, False),
    "use_bidirectional_attention": (None, False),
    "add_cross_attention": (None, False),
    "cross_attention_hidden_size": (None,),
    "tie_encoder_decoder": (None, False),
    "tie_last_hidden_states": (None, True),
    "pruned_heads": (None, {}, []),
    "sliding_window": (None,),
    "use_sliding_window": (None, False),
    "attention_chunk_size": (None,),
    "layer_types": (None,),
    "mlp_layer_types": (None,),
    "per_layer_config": (None,),
    "position_embedding_type": (None,),
    "rope_theta": (None,),
    "rope_scaling": (None,),
    "rope_parameters": (None,),
    "partial_rotary_factor": (None,),
    "attn_implementation": (None, "eager"),
    "_attn_implementation": (None, "eager"),
}
# Fields to which transformers itself gives a meaning in every model, besides those of PreTrainedConfig.
_COMMON = frozenset(
    (
        *("model_type", "auto_map", "tokenizer_class", "quantization_config", "transformers_weights"),
        *("num_labels", "torch_dtype", "name_or_path", "output_attentions", "experts_implementation"),
        "gradient_checkpointing",  # an old way to switch it on, which models still obey
        *("classifier_dropout", "token_classification_bias"),  # its heads
        *("head_dim", "num_key_value_heads"),  # sizes that follow from ours: `DecoderConfig` compares them
        *("_name_or_path", "_commit_hash", "_experts_implementation", "_attn_implementation_autoset"),
        *("_attn_implementation_internal", "_experts_implementation_internal"),
    )
)


def check_foreign(given: Mapping[str, Any]) -> None:
    """Refuse fields of other models under whose values they would mean another model than ours.

    Raises:
        ValueError: such a field, by name.
    """
    for name in foreign(given):
        if given[name] not in _FOREIGN[name]:
            choice = "".join(f" or {value!r}" for value in _FOREIGN[name] if value is not None)
            reason = "it would change what the model computes, and has no counterpart here"
            if name in ("is_decoder", "use_bidirectional_attention"):
                reason = "is_causal=False is what makes a model bidirectional here"
            if name in ("rope_scaling", "rope_parameters"):
                reason = "a TransformerConfig's rotary_scaling is YaRN's factor here, and scales nothing else"
            if "implementation" in name:
                reason = "syncattn.use_backend chooses what attention runs on"
            raise ValueError(f"{name} must be left out{choice}, got {short(given[name])}: {reason}")


def foreign(given: Mapping[str, Any]) -> list[str]:
    """The names in `given` that `check_foreign` looks at."""
    return [name for name in given if name in _FOREIGN]


def without_effect(
    config: type, known: Collection[str], others: Mapping[str, type], given: Mapping[str, Any]
) -> tuple[list[str], str]:
    """The names in `given` that mean nothing to a configuration class, and a sentence that says so.

    Args:
        config: the class.
        known: the names of its fields.
        others: the classes that have a field which this one has not, by the field's name.
        given: what its constructor was given besides. With a "model_type" it comes from a file, perhaps of a
            newer version: there, a name that resembles a known one is no typing error.

    Raises:
        TypeError: a name resembles a known one (a likely typo), is that of a method or class attribute, or of
            another class's field.
    """
    names = [name for name in given if name not in known and name not in _COMMON and name not in _FOREIGN]
    described = []
    for name in names:
        if hasattr(config, name):
            raise TypeError(
                f"{config.__name__} has no field {name!r}: one of its methods or class attributes has that "
                f"name, got {short(given[name])}"
            )
        if name in others and "model_type" not in given:
            raise TypeError(
                f"{config.__name__} has no field {name!r}: it is one of {others[name].__name__}, got "
                f"{short(given[name])}"
            )
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
        if near and "model_type" not in given:
            raise TypeError(f"{config.__name__} has no field {name!r}; did you mean {near[0]!r}?")
        described.append(repr(name) + (f" (is {near[0]!r} meant?)" if near else ""))
    sentence = f"{config.__name__} has no field {', '.join(described)}: without effect on the model"
    if "model_type" in given:
        sentence += ". If a newer version of syncattn wrote this configuration, its model may be another"
    return names, sentence


def check_transformers(config: Any) -> None:
    """Check what every configuration of transformers has and would otherwise fail on, or hang, later.

    Raises:
        TypeError, ValueError: dtype, num_labels, id2label, label2id, architectures, problem_type,
            classifier_dropout, output_hidden_states, return_dict or quantization_config is not what it should
            be.
    """
    check_dtype("dtype", config.dtype)
    for name in ("output_hidden_states", "return_dict", "output_attentions"):
        if getattr(config, name) is not None:
            check_flag(name, getattr(config, name))
    names = config.architectures
    if names is not None and not (isinstance(names, list) and all(isinstance(x, str) for x in names)):
        raise TypeError(f"architectures must be None or a list of names, got {short(names)}")
    problems = ("regression", "single_label_classification", "multi_label_classification")
    if config.problem_type is not None:
        check_choice("problem_type", config.problem_type, problems)
    if (dropout := getattr(config, "classifier_dropout", None)) is not None:
        check_real("classifier_dropout", dropout, "in [0, 1)", lambda x: 0 <= x < 1)
    _check_quantization(getattr(config, "quantization_config", None))


def check_labels(id2label: Any, label2id: Any, num_labels: Any) -> None:
    """Check what transformers makes its table of labels of, before it does.

    Raises:
        TypeError, ValueError: one of the three is not what it should be.
    """
    if num_labels is not None:
        check_size("num_labels", num_labels)
    for name, table in (("id2label", id2label), ("label2id", label2id)):
        if table is not None and not isinstance(table, dict):
            raise TypeError(f"{name} must be None or a dictionary, got {short(table)}")
    for label in id2label or ():
        if not str(label).isdecimal():
            raise ValueError(f"id2label must have label numbers as keys, got {short(label)}")
    if id2label is not None and {int(label) for label in id2label} != {*range(len(id2label) or 1)}:
        raise ValueError(f"id2label must have a name for each of 0, 1, ..., got {short([*id2label])}")


def check_dtype(name: str, value: Any) -> None:
    """Make sure that a dtype is None or a floating-point one, as torch has it or by its name."""
    found = getattr(torch, value, None) if isinstance(value, str) else value
    if value is not None and found not in [getattr(torch, dtype) for dtype in DTYPES]:
        raise ValueError(f"{name} must be None or one of {', '.join(DTYPES)}, got {short(value)}")


def _check_quantization(value: Any) -> None:
    if value is None:
        return
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING
    from transformers.utils.quantization_config import QuantizationConfigMixin

    if isinstance(value, QuantizationConfigMixin):
        return
    method = value.get("quant_method") if isinstance(value, dict) else None
    bits = isinstance(value, dict) and (value.get("load_in_8bit") or value.get("load_in_4bit"))
    if not bits and (not isinstance(method, str) or method not in AUTO_QUANTIZATION_CONFIG_MAPPING):
        raise ValueError(
            "quantization_config must be None or have a quant_method that transformers knows, got "
            f"{short(value)}"
        )
