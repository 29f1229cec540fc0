"""A Hugging Face model folder from nothing, for tiny worlds: a tokenizer trained on the data, and random weights."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron_rl.config.schema import Domain, ScratchConfig
from megatron_rl.data.problems import THINK_END, Problem, read_jsonl
from megatron_rl.data.prompts import THINK_START, user_message
from megatron_rl.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PAD, TURN_START, EOS = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
THINK_TOKENS = (THINK_START.strip(), THINK_END)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
QUESTION_COLUMNS = ("prompt", "question", "problem")
RESPONSE_COLUMNS = ("response", "solution", "answer")
# transformers gives every Qwen2 tokenizer this split (each digit alone) and NFC, whatever its file says.
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
HEAD_DIMS = (32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""What vLLM's attention on CPU is compiled for."""
SMALLEST_VOCAB = 256 + 3 + len(THINK_TOKENS)
"""Every byte and the special tokens: any text can be encoded."""


def make_model_folder(scratch: ScratchConfig, folder: Path, seed: int) -> None:
    """Write `folder`: tokenizer, `config.json` (Qwen2ForCausalLM), `generation_config.json` and fp32 weights.

    The same arguments and data files give the same bytes. The folder appears whole or not at all, and replaces one that
    is already there.

    Raises:
        InputError: a shape that no Qwen2 model can have or vLLM cannot serve, a vocabulary below `SMALLEST_VOCAB`, or
            data files that are missing, broken or hold no text.
    """
    from safetensors.numpy import save_file

    _check_shape(scratch)
    tokenizer = train_tokenizer(scratch.tokenizer_data, scratch.vocab_size)
    config = _model_config(scratch, tokenizer)
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    tokenizer.save(str(temporary / "tokenizer.json"))
    _write_json(temporary / "tokenizer_config.json", _tokenizer_config(scratch.max_position_embeddings))
    _write_json(temporary / "config.json", config)
    generation = {key: config[key] for key in ("eos_token_id", "pad_token_id")}
    _write_json(temporary / "generation_config.json", {**generation, "do_sample": True})
    save_file(_random_weights(config, seed), temporary / "model.safetensors", metadata={"format": "pt"})
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def train_tokenizer(paths: tuple[str, ...], vocab_size: int) -> "Tokenizer":
    """A byte-level BPE tokenizer of at most `vocab_size` entries, every digit a token of its own.

    `<think>` and `</think>` are ordinary added tokens: decoding without special tokens keeps them.

    Raises:
        InputError: as `make_model_folder`.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    if vocab_size < SMALLEST_VOCAB:
        raise InputError(
            f"policy.from_scratch.vocab_size={vocab_size}: the bytes and special tokens alone are {SMALLEST_VOCAB}; "
            "raise it"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(THINK_TOKENS),
        special_tokens=[PAD, TURN_START, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_training_texts(paths), trainer)
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in THINK_TOKENS])
    return tokenizer


def _training_texts(paths: tuple[str, ...]) -> Iterator[str]:
    """Whatever the model will read and write, without the added tokens, which training must not learn to merge."""
    if not paths:
        raise InputError("policy.from_scratch.tokenizer_data is empty; name the JSONL files that train the tokenizer")
    added = re.compile("|".join(map(re.escape, THINK_TOKENS)))
    for path in paths:
        found = False
        for _, row in read_jsonl(Path(path)):
            for text in _row_texts(row):
                found = True
                yield from added.split(text)
        if not found:
            columns = [*QUESTION_COLUMNS, *RESPONSE_COLUMNS]
            raise InputError(f"{path}: no line has text for the tokenizer in one of the columns {columns}")


def _row_texts(row: dict[str, Any]) -> Iterator[str]:
    question = next((row[key] for key in QUESTION_COLUMNS if isinstance(row.get(key), str)), None)
    if question is not None:
        starter = row.get("starter_code")
        problem = Problem(
            id="",
            question=question,
            domain=Domain.CODE if row.get("tests") or row.get("domain") == Domain.CODE else Domain.MATH,
            answer=None,
            tests=None,
            fn_name=None,
            starter_code=starter if isinstance(starter, str) and starter else None,
            response=None,
        )
        yield f"user\n{user_message(problem)}"
        yield "assistant\n"
    yield from (row[key] for key in RESPONSE_COLUMNS if isinstance(row.get(key), str))


def _check_shape(scratch: ScratchConfig) -> None:
    def refuse(text: str) -> None:
        raise InputError(f"policy.from_scratch: {text}")

    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    for name in (*sizes, "max_position_embeddings"):
        if getattr(scratch, name) < 1:
            refuse(f"{name}={getattr(scratch, name)} must be at least 1")
    hidden, heads, kv_heads = scratch.hidden_size, scratch.num_attention_heads, scratch.num_key_value_heads
    if hidden % heads:
        refuse(f"num_attention_heads={heads} does not divide hidden_size={hidden}; change one of them")
    if hidden // heads not in HEAD_DIMS:
        refuse(
            f"hidden_size={hidden} / num_attention_heads={heads} = {hidden // heads} per head, and vLLM on CPU serves "
            f"only {list(HEAD_DIMS)}; change one of them"
        )
    if heads % kv_heads:
        refuse(f"num_key_value_heads={kv_heads} does not divide num_attention_heads={heads}; change one of them")


def _model_config(scratch: ScratchConfig, tokenizer: "Tokenizer") -> dict[str, Any]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": scratch.hidden_size,
        "intermediate_size": scratch.intermediate_size,
        "num_hidden_layers": scratch.num_hidden_layers,
        "num_attention_heads": scratch.num_attention_heads,
        "num_key_value_heads": scratch.num_key_value_heads,
        "max_position_embeddings": scratch.max_position_embeddings,
        "tie_word_embeddings": scratch.tie_word_embeddings,
        "hidden_act": "silu",
        "initializer_range": scratch.hidden_size**-0.5,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "use_cache": True,
        "torch_dtype": "float32",
        "bos_token_id": None,
        "eos_token_id": tokenizer.token_to_id(EOS),
        "pad_token_id": tokenizer.token_to_id(PAD),
    }


def _tokenizer_config(max_length: int) -> dict[str, Any]:
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": EOS,
        "pad_token": PAD,
        "additional_special_tokens": [TURN_START],
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
    }


def _random_weights(config: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Matrices from N(0, `initializer_range`), norms 1, biases 0.

    A range of 1/sqrt(hidden size), where large models take 0.02: so narrow a model learns in half the steps with it.
    """
    random = np.random.default_rng(seed)
    weights: dict[str, np.ndarray] = {}
    for name, shape in _weight_shapes(config).items():
        if name.endswith(".bias"):
            weights[name] = np.zeros(shape, np.float32)
        elif len(shape) == 1:
            weights[name] = np.ones(shape, np.float32)
        else:
            weights[name] = random.standard_normal(shape, np.float32) * np.float32(config["initializer_range"])
    return weights


def _weight_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, ffn, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (hidden, hidden),
        "self_attn.q_proj.bias": (hidden,),
        "self_attn.k_proj.weight": (kv, hidden),
        "self_attn.k_proj.bias": (kv,),
        "self_attn.v_proj.weight": (kv, hidden),
        "self_attn.v_proj.bias": (kv,),
        "self_attn.o_proj.weight": (hidden, hidden),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (ffn, hidden),
        "mlp.up_proj.weight": (ffn, hidden),
        "mlp.down_proj.weight": (hidden, ffn),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for index in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, hidden)
    return shapes


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
