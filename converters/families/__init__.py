"""One table per model family, found by the `model_type` of a Hugging Face config."""

from typing import Any

from converters.errors import ConversionError
from converters.families.family import Family
from converters.families.llama import LLAMA
from converters.families.qwen2 import QWEN2
from converters.families.qwen3 import QWEN3
from converters.families.qwen3_moe import QWEN3_MOE

FAMILIES: dict[str, Family] = {family.model_type: family for family in (LLAMA, QWEN2, QWEN3, QWEN3_MOE)}


def family_of(hf_config: dict[str, Any]) -> Family:
    """The family of a parsed `config.json`.

    Raises:
        ConversionError: no table knows its `model_type`.
    """
    model_type = hf_config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ConversionError(
            f"config.json: model_type {model_type!r:.80} is not supported; supported: {sorted(FAMILIES)}"
        )
    return FAMILIES[model_type]
