"""A tiny Qwen2 model that answers at lengths of our choice: what it writes next depends on the last token alone.

Each token of the chain has a dimension of its own in the embedding, and the output layer holds the logits of what may
follow it. The layers compute as in any model, yet add next to nothing. A response: filler, `</think>`, one of two boxed
answers by the toss of a coin, end.
"""

import json
import math
import random
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist
from typing import Any

import convert
import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from converters.families import family_of
from converters.hf_config import model_shape
from megatron_rl.data.prompts import MATH_INSTRUCTION

VOCABULARY, HIDDEN = 512, 128
RIGHT, WRONG = "\\boxed{1}", "\\boxed{0}"
THINK_END, EOS = "</think>", "<eos>"
_AROUND = 3
"""Tokens of a response besides its filler."""
_SURE = 25.0
"""Logit of what follows for certain: all other tokens together have a chance of 1 in 100 million."""

Chain = dict[str, dict[str, float]]
"""By token: what follows it, with its probability."""


def equal(length: int) -> Chain:
    """Responses of that many tokens."""
    filler = _fillers(length - _AROUND)
    steps = [_START, *filler, THINK_END]
    return {a: {b: 1.0} for a, b in pairwise(steps)} | _end()


def long_tailed(mean: float, limit: int, kinds: int = 32, sigma: float = 1.0) -> Chain:
    """Responses cut at `limit` tokens, `mean` tokens on average: of so many kinds, whose mean lengths are log-normal.

    Within a kind lengths are geometric. `sigma` is that of the logarithm.
    """
    spread = [math.exp(sigma * NormalDist().inv_cdf((i + 0.5) / kinds)) for i in range(kinds)]
    low, high = 0.0, 100.0 * mean
    for _ in range(60):  # the scale that gives this mean once long ones are cut
        scale = (low + high) / 2
        found = sum(_cut_mean(1 + scale * s, limit - _AROUND) for s in spread) / kinds + _AROUND
        low, high = (scale, high) if found < mean else (low, scale)
    filler = _fillers(kinds)
    chain: Chain = {_START: dict.fromkeys(filler, 1 / kinds)}
    for token, s in zip(filler, spread, strict=True):
        stop = 1 / (1 + scale * s)
        chain[token] = {token: 1 - stop, THINK_END: stop}
    return chain | _end()


def sample_length(chain: Chain, limit: int, rng: random.Random) -> int:
    """Tokens of a response, its end counted."""
    token, length = _START, 0
    while token != EOS and length < limit:
        token = rng.choices([*chain[token]], [*chain[token].values()])[0]
        length += 1
    return length


def make_folder(folder: Path, chain: Chain, context: int) -> None:
    """The model's Hugging Face folder: 4 layers, 128 wide, 512 tokens of vocabulary, fp32."""
    folder.mkdir(parents=True)
    names = _token_names()
    config = _config(context)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 1, "pad_token_id": 0}))
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(MATH_INSTRUCTION, normalized=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": EOS, "pad_token": "<pad>"}
    settings["chat_template"] = "{{ messages[0]['content'] }}"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    save_file(_weights(config, chain, names), folder / "model.safetensors", metadata={"format": "pt"})


_LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
_START = "\u010a"  # the line break that ends a prompt, as byte-level tokenizers write it


def _fillers(count: int) -> list[str]:
    return [f"<{i}>" for i in range(count)]


def _end() -> Chain:
    return {THINK_END: {RIGHT: 0.5, WRONG: 0.5}, RIGHT: {EOS: 1.0}, WRONG: {EOS: 1.0}}


def _cut_mean(mean: float, limit: int) -> float:
    """Mean of geometric lengths of that mean, cut at a limit."""
    return mean * (1 - (1 - 1 / mean) ** limit)


def _token_names() -> list[str]:
    known = ["<pad>", EOS, *_LETTERS, THINK_END, RIGHT, WRONG, MATH_INSTRUCTION]
    return known + _fillers(VOCABULARY - len(known))


def _config(context: int) -> dict[str, Any]:
    return convert.CONFIG | {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": 352,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": context,
        "torch_dtype": "float32",
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }


def _weights(config: dict[str, Any], chain: Chain, names: list[str]) -> dict[str, np.ndarray]:
    assert len(chain) <= HIDDEN
    rng = np.random.default_rng(1)
    weights = {}
    for name, shape in family_of(config).hf_tensors(model_shape(config, 1)).items():
        small = name.endswith(("o_proj.weight", "down_proj.weight"))
        scale = 1e-5 if small else HIDDEN**-0.5
        noise = (
            np.ones(shape) if "norm" in name else np.zeros(shape) if len(shape) == 1 else rng.normal(0, scale, shape)
        )
        weights[name] = noise.astype(np.float32)
    number = {name: i for i, name in enumerate(names)}
    embedding, output = weights["model.embed_tokens.weight"], weights["lm_head.weight"]
    output[:] = 0.0
    for dimension, (token, following) in enumerate(chain.items()):
        embedding[number[token]] = np.eye(HIDDEN)[dimension]
        for other, probability in following.items():
            # After the last norm the token's own dimension is sqrt(HIDDEN).
            output[number[other], dimension] = (_SURE + math.log(probability)) / HIDDEN**0.5
    return weights
