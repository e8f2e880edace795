"""Reading back what training wrote: checked before anything is built; no pickled code is ever run."""

from __future__ import annotations

import math
import re
import shlex
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from syncattn.models import DecoderConfig, pretrained
from syncattn.models.sharing import CLASSES
from syncattn.nn import SelectiveSynchronizationAttention
from syncattn.training.errors import UserError
from syncattn.training.files import (
    CHECKPOINTS,
    PROGRESS_FILE,
    START,
    check_file,
    fingerprint,
    is_number,
    read_object,
)
from syncattn.training.tokenizers import load_tokenizer

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
GENERATION = "generation_config.json"
PROGRESS = ("train_seconds", "wall_seconds", "loss_sum", "loss_steps")
NOT_OURS = "is not a file that syncattn wrote; nothing in it was run"

_LARGEST_CONFIG = 1 << 20
_LARGEST_HEADER = 1 << 24
_FREE_SIZE = 1 << 20
"""What a number in a config may be without weights of that size: describing such a model costs nothing."""
_DTYPES = ("float32", "float16", "bfloat16", "float64")
_STORED_DTYPES = ("F32", "F16", "BF16", "F64")
_OTHER_CODE = re.compile("auto_map|quantization_config|compression_config|.*implementation.*")
"""Fields that say which other code is to be loaded or called."""
_STATES = re.compile(r"optimizer\.pt|scheduler\.pt|rng_state(_[0-9]+)?\.pth")
_PICKLES = (".pt", ".pth", ".bin")
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_FLAGS = ("output_attentions", "output_hidden_states", "use_cache", "return_dict")
_INHERITED = {"architectures", "dtype", "transformers_version", "_name_or_path", *_FLAGS}
"""What transformers stores beside an OSN's own fields."""


def find_checkpoint(folder: Path) -> Path:
    """What to go on from: `folder` itself when it is a checkpoint, else the newest that `folder`'s run left.

    A run that was stopped before its first checkpoint goes on from its start, which has the config and the
    tokeniser.

    Raises:
        UserError: neither.
    """
    if is_checkpoint(folder):
        return folder
    found = [path for path in (folder / CHECKPOINTS).glob("checkpoint-*") if is_checkpoint(path)]
    if found:
        return max(found, key=lambda path: int(path.name.rpartition("-")[2]))
    if (folder / CHECKPOINTS / START / PROGRESS_FILE).is_file():
        return folder / CHECKPOINTS / START
    raise UserError(
        f"cannot resume from {folder}: it holds no checkpoint (expected the --out folder of an "
        f"unfinished run, or one of its {CHECKPOINTS}/checkpoint-N)"
    )


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder was saved whole: the file that is written last is there."""
    return bool(re.fullmatch(r"checkpoint-[0-9]+", folder.name)) and (folder / PROGRESS_FILE).is_file()


def check_checkpoint(checkpoint: Path) -> dict[str, Any]:
    """Compare every file of a checkpoint, or of a run's start, with what was written.

    Returns:
        The options of the run that wrote it.

    Raises:
        UserError: a file is missing, truncated, changed, or of other origin; the message names it.
    """
    listed = checkpoint / PROGRESS_FILE
    progress = read_object(listed)
    files = progress.get("files")
    options = progress.get("options")
    if not isinstance(files, dict) or not isinstance(options, dict):
        raise UserError(f"{listed} has no list of files, it is of an earlier version: begin the run again")
    for name in PROGRESS if is_checkpoint(checkpoint) else ():
        number = progress.get(name)
        if not is_number(number) or number < 0:
            raise UserError(f"{listed}: {name} must be a number of 0 or more, got {number!r}")
    for path in sorted(checkpoint.iterdir()):
        ours = path.name in files and (path.suffix not in _PICKLES or _STATES.fullmatch(path.name))
        if not ours and path.name != PROGRESS_FILE and not path.name.startswith("."):
            raise UserError(f"{path} {NOT_OURS}: move it out of the checkpoint")
    for name, written in files.items():
        path = checkpoint / name
        check_file(path)
        if fingerprint(path) != written:
            raise UserError(f"{path} is truncated, corrupted or of another run: it {NOT_OURS}")
    return options


def load_config(folder: Path) -> PreTrainedConfig:
    """The model's config from a local folder.

    Raises:
        UserError: missing, damaged, of a model that is not known here, or it asks for other code.
    """
    path = folder / CONFIG
    fields = read_object(path, _LARGEST_CONFIG)
    model_type = fields.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise UserError(
            f"{path}: model_type must be of a model that is known here, such as 'osn', got {model_type!r}"
        )
    config_class = CONFIG_MAPPING[model_type]
    _check_fields(path, fields, config_class)
    try:
        return config_class.from_dict(fields)
    except Exception as error:  # a field of another type may fail anywhere in there
        raise damaged(path, error) from error


def model_folder(given: str | Path) -> Path:
    """The folder of a model, which may be given as the name of one that comes with the package."""
    path = Path(given).expanduser()
    return pretrained.folder(str(given)) if not path.exists() and str(given) in pretrained.names() else path


def load_model(folder: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A trained model, in evaluation mode, and its tokeniser, from a folder that training wrote.

    Args:
        folder: or the name of a model that comes with the package (`syncattn.models.pretrained`).

    Raises:
        UserError: what `load_weights` raises, or no tokeniser, or one of other tokens.
    """
    folder = model_folder(folder)
    model = load_weights(folder)
    tokenizer = load_tokenizer(folder)
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= model.config.vocab_size:
        raise UserError(
            f"the tokenizer in {folder} has the token {largest}, "
            f"{CONFIG} has vocab_size {model.config.vocab_size}"
        )
    return model, tokenizer


def load_weights(folder: str | Path) -> PreTrainedModel:
    """A trained model, in evaluation mode, from a folder that training or `save_pretrained` wrote.

    Everything is checked first against everything else, the sizes in the config against the header of the
    weights; only then is anything of those sizes made.

    Raises:
        UserError: no such folder, a file is missing, truncated or corrupted, the weights are not this
            config's or are no working model's.
    """
    folder = model_folder(folder)
    if not folder.is_dir():
        shipped = ", ".join(map(repr, pretrained.names()))
        raise UserError(
            f"no folder {folder}: expected one that `syncattn train --out` wrote, or a model that comes with "
            f"the package ({shipped})"
        )
    if not (folder / CONFIG).is_file() and (folder / CHECKPOINTS).is_dir():
        raise UserError(
            f"training in {folder} is not finished: go on with `syncattn train --resume "
            f"{shlex.quote(str(folder))}`, or give one of its {CHECKPOINTS}/checkpoint-N"
        )
    if (folder / "adapter_config.json").exists():
        raise UserError(
            f"{folder / 'adapter_config.json'} {NOT_OURS}: merge the adapter into the model first"
        )
    config = load_config(folder)
    check_weights(folder, config)
    special_tokens = _special_tokens(folder / GENERATION, config)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            generation_config=special_tokens,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # reported below, like missing ones
            output_loading_info=True,
        )
    except Exception as error:  # of transformers, torch and safetensors
        raise damaged(folder / WEIGHTS, error) from error
    model, report = loaded
    wrong = [
        str(key[0]) if isinstance(key, tuple) else str(key)
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        for key in report.get(kind) or ()
    ]
    if wrong:
        raise _unfit(folder, f"{len(wrong)} tensors are missing, unexpected or of another shape", wrong[0])
    if (name := unusable(model)) is not None:
        raise UserError(
            f"{folder / WEIGHTS}: {name} has values that are not finite, or out of all proportion"
        )
    _check_speech(folder, model.eval())
    return model


def check_weights(folder: Path, config: PreTrainedConfig) -> None:
    """Compare the header of a folder's weights with the model that its config describes, without either.

    Raises:
        UserError: no weights, truncated or corrupted, or not this config's.
    """
    path = folder / WEIGHTS
    found = _header(path)
    numbers = sum(math.prod(shape) for shape, _ in found.values())
    fields = config.to_dict()
    for name, value in fields.items():
        if name == "max_position_embeddings" and isinstance(config, DecoderConfig):
            continue  # no size of anything
        if isinstance(value, int) and value > max(numbers, _FREE_SIZE):
            raise _unfit(folder, f"{name} is {value}, and there are {numbers:,} numbers in the file")
    layers = getattr(config, "num_hidden_layers", 0)
    held = len({match[1] for name in found if (match := re.search(r"\.(\d+)\.", name))})
    if layers > held:  # more cost time, before they are found missing
        raise _unfit(folder, f"num_hidden_layers is {layers}, and the file has {held} layers")
    try:
        with torch.device("meta"):
            expected = AutoModelForCausalLM.from_config(config).state_dict(keep_vars=True)
    except Exception as error:  # whatever a field makes of a model's constructor
        raise damaged(folder / CONFIG, error) from error
    for name, tensor in expected.items():
        if name in found and (found[name][1] in _STORED_DTYPES) != tensor.dtype.is_floating_point:
            raise _unfit(folder, f"a tensor is stored as {found[name][1]}", name)
    distinct = {id(tensor): tensor for tensor in expected.values()}
    wanted = sum(tensor.numel() for tensor in distinct.values())
    if wanted > numbers:
        first = next(
            name for name, tensor in expected.items() if name not in found or found[name][0] != tensor.shape
        )
        raise _unfit(folder, f"a model of {wanted:,} numbers is described, the file has {numbers:,}", first)


def unusable(model: torch.nn.Module) -> str | None:
    """The first tensor whose values are out of all proportion, so that the SSA operator may refuse them.

    A parameter is not finite or above 1e5 in magnitude, which no working model comes near, or a bandwidth or
    coupling is not positive and finite.
    """
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if not bool((tensor.abs() < 1e5).all()):
                return name
        for name, module in model.named_modules():
            if isinstance(module, SelectiveSynchronizationAttention):
                for raw, value in (("bandwidth", module.bandwidth), ("coupling", module.coupling)):
                    if not bool(((value > 0) & torch.isfinite(value)).all()):
                        return f"{name}.raw_{raw}"
    return None


def damaged(path: Path, error: BaseException) -> UserError:
    """The error for a file that cannot be used, with the first line of what a library said of it."""
    return UserError(
        f"cannot load {path}, it is truncated, corrupted or of another kind: {_first_line(error)}"
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _check_fields(path: Path, fields: dict[str, Any], config_class: type[PreTrainedConfig]) -> None:
    """Refuse what a config of this library never has, though transformers would act on it."""
    own = {"model_type"}
    if issubclass(config_class, DecoderConfig):
        own |= {config_class.stored_as.get(name, name) for name in config_class.own_fields()}
    for name, value in fields.items():
        if name == "auto_map" and _is_ours(value):  # names what is known here, and is not looked at
            continue
        if value is not None and _OTHER_CODE.fullmatch(name):
            raise UserError(
                f"{path}: {name} must not be there, got {value!r}: no other code is loaded or called"
            )
        if not issubclass(config_class, DecoderConfig) or name in own:
            continue
        if name not in _INHERITED and hasattr(config_class, name):
            raise UserError(f"{path}: {name} means nothing to this model, got {value!r}: leave it out")
    for name in _FLAGS:
        if not isinstance(fields.get(name, False), bool):
            raise UserError(f"{path}: {name} must be true or false, got {fields[name]!r}")
    if (dtype := fields.get("dtype")) is not None and dtype not in _DTYPES:
        raise UserError(f"{path}: dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")


def _is_ours(auto_map: Any) -> bool:
    """Whether the code that a config names is what is written beside every model here."""
    return isinstance(auto_map, dict) and all(
        isinstance(name, str) and re.fullmatch(rf"{CLASSES}\.[A-Za-z]+", name) for name in auto_map.values()
    )


def _special_tokens(path: Path, config: PreTrainedConfig) -> GenerationConfig:
    """What is taken from generation_config.json: how the next token is chosen is for the caller to say."""
    fields = read_object(path, _LARGEST_CONFIG) if path.exists() or path.is_symlink() else config.to_dict()
    tokens = {name: fields.get(name) for name in _TOKENS}
    for name, value in tokens.items():
        for token in value if isinstance(value, list) else [value]:
            if token is not None and not (type(token) is int and 0 <= token < config.vocab_size):
                raise UserError(f"{path}: {name} must be an id below {config.vocab_size}, got {value!r}")
    return GenerationConfig(**tokens)


def _check_speech(folder: Path, model: PreTrainedModel) -> None:
    """A few tokens through the model: settings that are allowed one by one may overflow together."""
    tokens = torch.arange(min(4, model.config.vocab_size))[None]  # (1, 4)
    try:
        with torch.inference_mode():
            logits = model(input_ids=tokens.to(model.device), use_cache=False).logits
        if not bool(torch.isfinite(logits).all()):
            raise ValueError("its logits are not finite")
    except Exception as error:
        raise UserError(
            f"{folder / CONFIG} and {folder / WEIGHTS} are of no model that works: {_first_line(error)}"
        ) from error


def _header(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and stored dtype of each tensor in a safetensors file, whose size has to fit them."""
    check_file(path)
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
        if size > _LARGEST_HEADER:
            raise ValueError(f"its header has {size:,} bytes")
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    except (SafetensorError, ValueError, OSError) as error:
        raise damaged(path, error) from error


def _unfit(folder: Path, how: str, first: str | None = None) -> UserError:
    detail = how if first is None else f"{how}, the first is {first}"
    return UserError(f"{folder / WEIGHTS} does not fit {folder / CONFIG}: {detail}")
