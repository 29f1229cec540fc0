"""The Qwen2 table against transformers' own model, and what of a config is refused."""

import re
from typing import Any

import pytest
import torch
from tiny import hf_config, shape_of
from transformers import Qwen2Config, Qwen2ForCausalLM

from converters.families import family_of
from converters.families.qwen2 import QWEN2
from converters.hf_config import model_shape


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("changes", [{}, {"head_dim": 48}, {"num_key_value_heads": 4}], ids=repr)
def test_the_table_covers_the_state_dict_exactly(tied: bool, changes: dict[str, Any]) -> None:
    config = hf_config(tie_word_embeddings=tied, **changes)
    with torch.device("meta"):
        state = Qwen2ForCausalLM(Qwen2Config(**config)).state_dict()
    if tied:
        assert state.pop("lm_head.weight").shape == state["model.embed_tokens.weight"].shape
    shape = model_shape(config, vocab_divisor=16)
    table = [
        (name, size)
        for entry in family_of(config).entries(shape)
        for name, size in zip(entry.hf, entry.op.hf_shapes(shape), strict=True)
    ]
    assert len(table) == len(dict(table)), "a tensor stands twice in the table"
    assert dict(table) == {name: tuple(tensor.shape) for name, tensor in state.items()}


def test_no_megatron_parameter_is_filled_twice() -> None:
    names = [name for entry in QWEN2.entries(shape_of()) for name in entry.megatron]
    assert len(names) == len(set(names))


def test_rotary_base_and_context_are_read_from_either_spelling() -> None:
    old = QWEN2.translate(hf_config(rope_theta=77.0))
    new = QWEN2.translate(hf_config(rope_theta=None, rope_parameters={"rope_type": "default", "rope_theta": 77.0}))
    assert old == new
    assert (old.rotary_base, old.max_position_embeddings) == (77.0, 256)


def test_what_transformers_saves_is_what_is_read(tmp_path: Any) -> None:
    """The config as the installed transformers writes it, not as this suite spells it."""
    Qwen2Config(**hf_config(rope_theta=77.0, rms_norm_eps=1e-5)).save_pretrained(tmp_path)
    from converters.hf_config import read_config

    written = read_config(tmp_path)
    translated = QWEN2.translate(written)
    assert translated.rotary_base == 77.0
    assert translated.transformer["layernorm_epsilon"] == 1e-5
    assert model_shape(written, 1) == shape_of()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope type='yarn'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope type='linear'"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e6}}, "rope type='llama3'"),
        ({"use_sliding_window": True}, "use_sliding_window=True"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"attention_dropout": 0.1}, "attention_dropout=0.1"),
    ],
    ids=repr,
)
def test_what_megatron_would_not_honour_is_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=re.escape(named)):
        QWEN2.translate(hf_config(**changes))


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model_type 'mamba' is not supported.*qwen2"):
        family_of(hf_config(model_type="mamba"))


def test_a_config_without_a_size_is_refused() -> None:
    with pytest.raises(ValueError, match="'intermediate_size' is missing"):
        shape_of(intermediate_size=None)
