"""What the planner's tests share: the two public models' sizes, and a recipe for one of them."""

import json
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from converters.hf_config import ModelShape, model_shape
from megatron_rl.config.loader import to_config
from megatron_rl.config.schema import TrainConfig

_QWEN2: dict[str, Any] = {
    "model_type": "qwen2",
    "vocab_size": 152064,
    "max_position_embeddings": 131072,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "use_sliding_window": False,
    "tie_word_embeddings": False,
}
B7 = _QWEN2 | {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
}
B14 = _QWEN2 | {
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 48,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
}
PARAMETERS_7B, PARAMETERS_14B = 7_615_616_512, 14_770_033_664
_RECIPE: dict[str, Any] = {
    "algorithm": "grpo",
    "name": "planned",
    "cluster": {"num_nodes": 16},
    "policy": {
        "model_name": "models/DeepSeek-R1-Distill-Qwen-14B",
        "tensor_model_parallel_size": 8,
        "sequence_parallel": True,
        "recompute_granularity": "full",
        "max_total_sequence_length": 34816,
        "micro_batch_tokens": 34816,
    },
    "generation": {"max_new_tokens": 32768, "tensor_parallel_size": 2},
    "grpo": {"max_num_steps": 1},
    "data": {"path": "unused.jsonl", "domain": "code"},
}


def recipe(**changes: Any) -> dict[str, Any]:
    """The 14B model at 32K on 16 nodes, with changes: dotted keys with `__` for the dots."""
    raw = OmegaConf.create(_RECIPE)
    for key, value in changes.items():
        OmegaConf.update(raw, key.replace("__", "."), value, force_add=True)
    plain = OmegaConf.to_container(raw)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def config(**changes: Any) -> TrainConfig:
    """`recipe(**changes)`, checked."""
    return to_config(OmegaConf.create(recipe(**changes)), "test")


def shape(hf_config: dict[str, Any], tp: int = 1) -> ModelShape:
    """Sizes with the vocabulary padded as the recipe's default says."""
    return model_shape(hf_config, 128 * tp)


def write_recipe(folder: Path, **changes: Any) -> Path:
    """A recipe file in `folder/recipes`, beside the public copy of its model's config."""
    public = folder / "recipes" / "models" / "DeepSeek-R1-Distill-Qwen-14B"
    public.mkdir(parents=True, exist_ok=True)
    (public / "config.json").write_text(json.dumps(B14), encoding="utf-8")
    path = folder / "recipes" / "planned.yaml"
    OmegaConf.save(OmegaConf.create(recipe(**changes)), path)
    return path
