"""What the tests share: a tiny random Qwen2 folder, configurations of it, and random sequences."""

import json
import random
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from converters.hf_config import ModelShape, model_shape
from megatron_rl.algorithms.losses import PolicyGradient
from megatron_rl.algorithms.normalizers import token_weights
from megatron_rl.config.loader import to_config
from megatron_rl.config.schema import KLType, LossNormalizer, RolloutCorrection, TrainConfig
from megatron_rl.policy.batch import TrainSequence

TEMPERATURE = 0.7
HF_CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "vocab_size": 500,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "rope_theta": 5000.0,
    "hidden_act": "silu",
    "use_sliding_window": False,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
    "dtype": "float32",
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}


# What each family's config.json has in place of, or besides, `HF_CONFIG`.
FAMILY_CONFIGS: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "llama": {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "mlp_bias": False,
        "use_sliding_window": None,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "head_dim": 48},
    "qwen3_moe": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "attention_bias": False,
        "head_dim": 48,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 64,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
}


def family_config(model_type: str, **changes: Any) -> dict[str, Any]:
    """A tiny `config.json` of a family, with changes."""
    return hf_config(**{"model_type": model_type} | FAMILY_CONFIGS[model_type] | changes)


def hf_config(**changes: Any) -> dict[str, Any]:
    """`HF_CONFIG` with changes; None takes a key away."""
    return {key: value for key, value in (HF_CONFIG | changes).items() if value is not None}


def shape_of(vocab_divisor: int = 1, **changes: Any) -> ModelShape:
    """The sizes of `hf_config(**changes)`."""
    return model_shape(hf_config(**changes), vocab_divisor)


def make_model_folder(folder: Path, tied: bool, model_type: str = "qwen2", **changes: Any) -> None:
    """A Hugging Face folder with config, tokenizer and fp32 weights; the same bytes wherever it is made.

    Norms and biases are random too: at their usual first values (1 and 0) a mix-up of them would not be seen.
    """
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder.mkdir(parents=True)
    config = family_config(model_type, tie_word_embeddings=tied, **changes)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 1, "pad_token_id": 0}))
    # One token per byte, then names for the ids up to the size of the vocabulary.
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<pad>", "<eos>", *letters, *(f"<{i}>" for i in range(len(letters) + 2, config["vocab_size"]))]
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<eos>", "pad_token": "<pad>"}
    settings["chat_template"] = "{{ messages[0]['content'] }}"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    save_file(_random_weights(config), folder / "model.safetensors", metadata={"format": "pt"})


def _random_weights(config: dict[str, Any]) -> dict[str, np.ndarray]:
    from converters.families import family_of

    weights = {}
    for name, size in family_of(config).hf_tensors(model_shape(config, 1)).items():
        noise = np.random.default_rng(zlib.crc32(name.encode()))
        middle = 1.0 if "norm" in name else 0.0
        weights[name] = (middle + 0.08 * noise.standard_normal(size)).astype(np.float32)
    return weights


def train_config(folder: Path | str, **changes: Any) -> TrainConfig:
    """A checked GRPO configuration of the model in `folder`; changes are dotted keys with `__` for the dots."""
    base = {
        "algorithm": "grpo",
        "name": "test",
        "grpo": {"max_num_steps": 1},
        "generation": {"max_new_tokens": 32, "enforce_eager": True, "num_engines": 1},
        "cluster": {"gpus_per_node": 1, "device": "cpu", "timeout_minutes": 3},
        "policy": {
            "model_name": str(folder),
            "max_total_sequence_length": 128,
            "precision": "fp32",
            "micro_batch_tokens": 300,
            "logprob_chunk_tokens": 64,
            "make_vocab_size_divisible_by": 16,
            "optimizer": {"lr": 1e-3, "lr_warmup_steps": 3},
        },
        "data": {"path": "unused.jsonl"},
    }
    config = OmegaConf.create(base)
    for key, value in changes.items():
        OmegaConf.update(config, key.replace("__", "."), value, force_add=True)
    return to_config(config, "test")


def random_sequences(seed: int | str, count: int, sft: bool) -> list[TrainSequence]:
    """Sequences of 10 to 90 random tokens.

    Their weight is 1 over all response tokens. GRPO: advantages of both signs, and rollout log-probs that are anything.
    """
    rng = random.Random(f"{seed}")
    lengths = [(rng.randrange(1, 9), rng.randrange(3, 82)) for _ in range(count)]
    responses = sum(response for _, response in lengths)
    return [
        TrainSequence(
            tokens=tuple(rng.randrange(HF_CONFIG["vocab_size"]) for _ in range(prompt + response)),
            prompt_length=prompt,
            weight=1.0 / responses,
            advantage=1.0 if sft else rng.uniform(-1.5, 2.0),
            rollout_log_probs=() if sft else tuple(rng.uniform(-7.0, -5.0) for _ in range(response)),
        )
        for prompt, response in lengths
    ]


VARIANTS: dict[str, tuple[LossNormalizer, bool, PolicyGradient]] = {
    "paper": (LossNormalizer.GROUP_TOKENS, False, PolicyGradient()),
    "token_correction": (
        LossNormalizer.TOKENS,
        False,
        PolicyGradient(correction=RolloutCorrection.TOKEN, correction_max=1.01),
    ),
    "sequence_correction": (
        LossNormalizer.SEQUENCES,
        False,
        PolicyGradient(correction=RolloutCorrection.SEQUENCE, correction_max=1.2),
    ),
    "dual_clip": (LossNormalizer.CONSTANT, True, PolicyGradient(clip_min=0.1, clip_max=0.28, dual_clip=1.2)),
    "kl_k3": (LossNormalizer.TOKENS, False, PolicyGradient(kl_penalty=0.1, kl_type=KLType.K3)),
    "kl_k1": (LossNormalizer.SEQUENCES, False, PolicyGradient(kl_penalty=0.2, kl_type=KLType.K1)),
    "entropy_bonus": (LossNormalizer.GROUP_TOKENS, False, PolicyGradient(entropy_bonus=0.5)),
    "everything": (
        LossNormalizer.CONSTANT,
        True,
        PolicyGradient(
            dual_clip=2.0, kl_penalty=0.1, entropy_bonus=0.1, correction=RolloutCorrection.SEQUENCE, correction_max=3.0
        ),
    ),
}
"""Losses by name: the normaliser, whether it is a later update of a batch, and the terms."""


def variant_sequences(seed: int | str, variant: str) -> list[TrainSequence]:
    """A batch for one of `VARIANTS`, three samples to a prompt."""
    normalizer, is_later, _ = VARIANTS[variant]
    sequences = random_sequences(f"{seed} {variant}", 11, sft=False)
    lengths = [len(sequence.tokens) - sequence.prompt_length for sequence in sequences]
    weights = token_weights(lengths, [number // 3 for number in range(len(lengths))], normalizer, max_length=100)
    rng = random.Random(f"{seed} {variant} others")

    def near(count: int, spread: float) -> tuple[float, ...]:
        return tuple(rng.uniform(-6.2 - spread, -6.2 + spread) for _ in range(count))

    return [
        replace(
            sequence,
            weight=weight,
            advantage=rng.uniform(-1.5, 2.0),
            rollout_log_probs=near(length, 0.2),
            old_log_probs=near(length, 0.4) if is_later else (),
        )
        for sequence, weight, length in zip(sequences, weights, lengths, strict=True)
    ]


def step_sequences(step: int, sft: bool) -> list[TrainSequence]:
    """The batch of a step, the same in every layout; that of step 3 is a single sequence, less than there are ranks."""
    return random_sequences(f"step {step}", count=1 if step == 3 else 11, sft=sft)
