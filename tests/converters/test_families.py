"""The tables against transformers' own models, and what of a config is refused."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import FAMILY_CONFIGS, family_config, hf_config, shape_of
from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Config

from converters.families import FAMILIES, family_of
from converters.families.llama import LLAMA
from converters.families.qwen2 import QWEN2
from converters.hf_config import model_shape, read_config


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("changes", [{}, {"head_dim": 48}, {"num_key_value_heads": 4}], ids=repr)
@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_table_covers_the_state_dict_exactly(model_type: str, tied: bool, changes: dict[str, Any]) -> None:
    config = family_config(model_type, tie_word_embeddings=tied, **changes)
    auto = AutoConfig.for_model(config["model_type"], **{key: config[key] for key in config.keys() - {"model_type"}})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(auto)
    table = family_of(config).hf_tensors(model_shape(config, vocab_divisor=16))
    assert table == {name: tuple(tensor.shape) for name, tensor in _stored(model, tied).items()}


def _stored(model: torch.nn.Module, tied: bool) -> dict[str, torch.Tensor]:
    """What `save_pretrained` writes of a model: transformers keeps all experts of a layer in one parameter."""
    found = {}
    for name, tensor in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        if ".experts." not in name:
            found[name] = tensor
            continue
        prefix, _, kind = name.rpartition(".")
        for expert, whole in enumerate(tensor):
            parts = whole.chunk(2) if kind == "gate_up_proj" else [whole]
            names = ["gate_proj", "up_proj"] if kind == "gate_up_proj" else ["down_proj"]
            found |= {f"{prefix}.{expert}.{part}.weight": data for part, data in zip(names, parts, strict=True)}
    return found


@pytest.mark.parametrize("model_type", FAMILIES)
def test_no_tensor_stands_twice_in_a_table(model_type: str) -> None:
    config = family_config(model_type)
    shape = model_shape(config, 1)
    walk = list(FAMILIES[model_type].walk(shape))
    names = [name for weight, layer, expert in walk for name in weight.hf_names(layer, expert)]
    assert len(names) == len(set(names))
    assert len(walk) == len({(weight.key, layer, expert) for weight, layer, expert in walk})


def test_every_family_has_a_fixture() -> None:
    assert FAMILY_CONFIGS.keys() == FAMILIES.keys()


def test_rotary_base_and_context_are_read_from_either_spelling() -> None:
    old = QWEN2.translate(hf_config(rope_theta=77.0))
    new = QWEN2.translate(hf_config(rope_theta=None, rope_parameters={"rope_type": "default", "rope_theta": 77.0}))
    assert old == new
    assert (old.rotary_base, old.max_position_embeddings) == (77.0, 256)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_transformers_own_configs_mean_the_same(model_type: str, tmp_path: Path) -> None:
    """The config as the installed transformers writes it, not as this suite spells it."""
    ours = family_config(model_type)
    auto = AutoConfig.for_model(model_type, **{key: ours[key] for key in ours.keys() - {"model_type"}})
    auto.save_pretrained(tmp_path)
    written = read_config(tmp_path)
    assert family_of(written).translate(written) == FAMILIES[model_type].translate(ours)
    assert model_shape(written, 16) == model_shape(ours, 16)


def test_what_transformers_saves_is_what_is_read(tmp_path: Path) -> None:
    Qwen2Config(**hf_config(rope_theta=77.0, rms_norm_eps=1e-5)).save_pretrained(tmp_path)
    written = read_config(tmp_path)
    translated = QWEN2.translate(written)
    assert translated.rotary_base == 77.0
    assert translated.transformer["layernorm_epsilon"] == 1e-5
    assert model_shape(written, 1) == shape_of()


def test_llamas_rope_scaling_is_read() -> None:
    assert LLAMA.translate(family_config("llama")).rope_scaling_factor == 8.0
    assert LLAMA.translate(family_config("llama", rope_scaling=None)).rope_scaling_factor is None


@pytest.mark.parametrize(
    ("model_type", "changes", "named"),
    [
        ("qwen2", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope type='yarn'"),
        ("qwen2", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope type='linear'"),
        ("qwen2", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e6}}, "rope type='llama3'"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window=True"),
        ("qwen2", {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ("qwen2", {"attention_dropout": 0.1}, "attention_dropout=0.1"),
        ("llama", {"attention_bias": True}, "attention_bias=True"),
        ("llama", {"mlp_bias": True}, "mlp_bias=True"),
        (
            "llama",
            {"rope_scaling": FAMILY_CONFIGS["llama"]["rope_scaling"] | {"low_freq_factor": 2.0}},
            "rope low_freq_factor=2.0",
        ),
        ("qwen3", {"attention_bias": True}, "attention_bias=True"),
        ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob=False"),
        ("qwen3_moe", {"mlp_only_layers": [1]}, "mlp_only_layers=[1]"),
        ("qwen3_moe", {"decoder_sparse_step": 2}, "decoder_sparse_step=2"),
        ("qwen3_moe", {"norm_topk_prob": None}, "'norm_topk_prob' is missing"),
        ("qwen3_moe", {"num_experts_per_tok": None}, "'num_experts_per_tok' is missing"),
        ("qwen3_moe", {"num_local_experts": 4}, "num_experts and num_local_experts are not the same"),
        ("qwen3_moe", {"num_experts": "8"}, "num_experts='8' is not a positive number"),
        ("qwen3", {"head_dim": None}, "'head_dim' is missing"),
        ("qwen2", {"max_position_embeddings": None}, "'max_position_embeddings' is missing"),
        ("qwen2", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types="),
        ("qwen2", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        (
            "llama",
            {"rope_scaling": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "partial_rotary_factor=0.5",
        ),
        ("llama", {"rope_scaling": {"rope_type": "llama3"}}, "config.json: factor=None is not a positive number"),
        ("llama", {"rope_scaling": "llama3"}, "RoPE settings 'llama3'"),
        ("llama", {"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "RoPE settings {'full_attention'"),
        ("llama", {"rope_parameters": {"rope_theta": 1.0}}, "rope_parameters and rope_scaling say different things"),
        ("qwen2", {"quantization_config": {"quant_method": "fp8"}}, "quantization_config="),
    ],
    ids=repr,
)
def test_what_megatron_would_not_honour_is_refused(model_type: str, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=re.escape(named)):
        FAMILIES[model_type].translate(family_config(model_type, **changes))


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model_type 'mamba' is not supported.*qwen2"):
        family_of(hf_config(model_type="mamba"))


@pytest.mark.parametrize("value", [None, 0, -1, "128"])
def test_a_config_without_a_size_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="intermediate_size"):
        shape_of(intermediate_size=value)
