"""What can be told of a Hugging Face folder without importing torch: its config, its sizes, its weight files."""

import json
import math
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from converters.errors import ConversionError

INDEX_NAME = "model.safetensors.index.json"
HF_FILES = "hf"
"""Folder in a Megatron checkpoint with the model's config, generation config and tokenizer."""
_PLAIN_NAME = re.compile(r"\w[\w.+-]{0,199}")
_LARGEST = 1 << 22
"""Of any size in a config: what is larger is a slip, and would keep us busy for ever."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes that layouts depend on; the families' tables name them.

    Attributes:
        ffn_hidden_size: of one expert, in a mixture of experts.
        num_experts: 0 in a dense model.
    """

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    padded_vocab_size: int
    tied: bool
    num_experts: int = 0

    @property
    def query_size(self) -> int:
        """Rows of the query projection."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_value_size(self) -> int:
        """Rows of the key projection, and of the value projection."""
        return self.num_key_value_heads * self.head_dim


def read_config(folder: Path) -> dict[str, Any]:
    """The parsed `config.json`.

    Raises:
        ConversionError: the folder or the file is missing, or is not JSON.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ConversionError(f"{path}: missing; {folder} is not a Hugging Face model folder")
    try:
        parsed = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"{path}: not JSON ({error}); restore the file") from error
    if not isinstance(parsed, dict):
        raise ConversionError(f"{path}: holds a {type(parsed).__name__}, not a JSON object; restore the file")
    return parsed


def weight_files(folder: Path) -> dict[str, Path]:
    """Tensor name to the safetensors file that holds it.

    Raises:
        ConversionError: no weights, a file of the index is missing, a file is damaged, or it is not clear which holds a
            tensor.
    """
    index = folder / INDEX_NAME
    listed = _weight_map(index) if index.is_file() else None
    if listed is not None and (folder / "model.safetensors").is_file() and "model.safetensors" not in listed.values():
        raise ConversionError(f"{folder}: holds model.safetensors and {INDEX_NAME} with others; remove what is stale")
    files = sorted(set(listed.values())) if listed is not None else sorted(p.name for p in folder.glob("*.safetensors"))
    if not files:
        raise ConversionError(f"{folder}: no *.safetensors weights; download them, or convert other formats")
    names: dict[str, Path] = {}
    for file in files:
        path = folder / file
        if not path.is_file():
            raise ConversionError(f"{path}: named in {INDEX_NAME} but missing; fetch the file again")
        try:
            with safe_open(path, framework="np") as reader:
                found = list(reader.keys())
        except (SafetensorError, OSError, ValueError) as error:
            raise ConversionError(f"{path}: damaged or cut short ({error}); fetch the file again") from error
        for name in found:
            if name in names:
                raise ConversionError(f"{path}: {name} stands in {names[name].name} as well; remove what is stale")
            names[name] = path
    if not names:
        raise ConversionError(f"{folder}: its weight files hold no tensor; fetch them again")
    for name, file in (listed or {}).items():
        if names.get(name) != folder / file:
            raise ConversionError(f"{folder / file}: lacks {name}, which {INDEX_NAME} promises; fetch both again")
    return names


def _weight_map(index: Path) -> dict[str, str]:
    try:
        listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = {str(name): str(file) for name, file in listed.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConversionError(f"{index}: not an index with a weight_map ({error!r}); fetch the file again") from error
    for name, file in files.items():
        if not _PLAIN_NAME.fullmatch(file):
            raise ConversionError(
                f"{index}: {name} lies in {file!r:.80}, which is no file of the folder; fetch it again"
            )
    return files


def size_of(hf_config: dict[str, Any], key: str, default: int | None = None) -> int:
    """The positive number at `key` of a parsed `config.json`; `default` where it is not there.

    Raises:
        ConversionError: it is missing, or another thing.
    """
    value = hf_config.get(key)
    value = default if value is None else value
    if value is None:
        raise ConversionError(f"config.json: {key!r} is missing; restore the whole file")
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _LARGEST:
        raise ConversionError(
            f"config.json: {key}={value!r:.80} is not a positive number up to {_LARGEST}; restore the file"
        )
    return value


def number_of(hf_config: dict[str, Any], key: str, default: float | None = None) -> float:
    """The positive, finite number at `key`, whole or not; `default` where it is not there.

    Raises:
        ConversionError: it is missing, or another thing.
    """
    value = hf_config.get(key)
    value = default if value is None else value
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise ConversionError(f"config.json: {key}={value!r:.80} is not a positive number; restore the file")
    return value


def model_shape(hf_config: dict[str, Any], vocab_divisor: int) -> ModelShape:
    """Sizes from a parsed `config.json`; the vocabulary is padded to a multiple of `vocab_divisor`.

    Raises:
        ConversionError: a size is missing or not a positive number.
    """
    size = partial(size_of, hf_config)
    heads, hidden, vocab = size("num_attention_heads"), size("hidden_size"), size("vocab_size")
    # transformers writes the second name and reads both.
    expert_keys = [key for key in ("num_experts", "num_local_experts") if hf_config.get(key)]
    numbers = {size(key) for key in expert_keys}
    if len(numbers) > 1:
        raise ConversionError("config.json: num_experts and num_local_experts are not the same; remove the wrong one")
    num_experts = numbers.pop() if numbers else 0
    tied = hf_config.get("tie_word_embeddings", False)
    if tied not in (None, True, False):
        raise ConversionError(
            f"config.json: tie_word_embeddings={tied!r:.80} is neither true nor false; restore the file"
        )
    return ModelShape(
        num_layers=size("num_hidden_layers"),
        hidden_size=hidden,
        ffn_hidden_size=size("moe_intermediate_size" if num_experts else "intermediate_size"),
        num_attention_heads=heads,
        num_key_value_heads=size("num_key_value_heads", heads),
        head_dim=size("head_dim", hidden // heads),
        vocab_size=vocab,
        padded_vocab_size=-(-vocab // vocab_divisor) * vocab_divisor,
        tied=bool(tied),
        num_experts=num_experts,
    )
