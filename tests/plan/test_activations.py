"""Estimated activation memory against what the real model takes on the CPU."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peak_memory import PeakMemory
from planned import B14, config, shape
from ranks import run_job
from tiny import make_model_folder, train_config

from converters.hf_config import model_shape, read_config
from megatron_rl.config.schema import FP8Config, PolicyConfig, Precision
from megatron_rl.plan.activations import Activations, Spec, activations, log_prob_bytes
from megatron_rl.policy.log_probs import VocabularyPart, token_log_probs

TOKENS = 1024
MODEL = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 4,
    "max_position_embeddings": 4096,
}
CASES: dict[str, dict[str, Any]] = {
    "kept": {},
    "selective": {"policy__recompute_granularity": "selective"},
    "recomputed": {"policy__recompute_granularity": "full"},
    "logits": {"policy__recompute_granularity": "full", "policy__logprob_chunk_tokens": 512},
}


@pytest.mark.long
@pytest.mark.rare
@pytest.mark.parametrize("tp", [1, 2])
def test_the_estimate_is_what_the_real_model_takes(tp: int, tmp_path: Path) -> None:
    model = tmp_path / "model"
    make_model_folder(model, tied=False, vocab_size=8000, **MODEL)
    cases = {name: changes | {"policy__sequence_parallel": tp > 1} for name, changes in CASES.items()}
    arguments = {"model": str(model), "tokens": TOKENS, "tp": tp, "cases": cases}
    measured = run_job("activations.py", arguments, tp, tmp_path / "job")
    sizes = model_shape(read_config(model), 16 * tp)
    for name, changes in cases.items():
        keys = {"cluster__gpus_per_node": tp, "policy__tensor_model_parallel_size": tp} | changes
        policy = train_config(model, **keys).policy
        estimate = activations(policy, sizes, Spec.LOCAL, stage=0, layers=4, tokens=TOKENS)
        assert estimate.peak == pytest.approx(measured[name], rel=0.05), (name, estimate, measured)


@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize(("tokens", "chunk", "vocabulary", "hidden"), [
    (1024, 256, 2048, 256),
    (2048, 256, 1024, 512),
    (1024, 4096, 2048, 64),
])  # fmt: skip
def test_log_probs_take_what_is_estimated(
    precision: Precision, tokens: int, chunk: int, vocabulary: int, hidden: int
) -> None:
    dtype = torch.float32 if precision is Precision.FP32 else torch.bfloat16
    states = torch.randn(tokens, hidden, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocabulary, hidden, dtype=dtype, requires_grad=True)
    labels = torch.randint(vocabulary, (tokens,))
    with PeakMemory() as memory:
        part = VocabularyPart(0, vocabulary - 10, None)
        token_log_probs(states, weight, labels, part, 0.7, chunk)[0].sum().backward()
    policy = PolicyConfig(
        model_name="unused", max_total_sequence_length=tokens, logprob_chunk_tokens=chunk, precision=precision
    )
    sizes = model_shape(B14 | {"hidden_size": hidden, "vocab_size": vocabulary - 10}, vocabulary)
    estimate = log_prob_bytes(policy, sizes, tokens)
    assert estimate == pytest.approx(memory.peak, rel=0.03)


def of_14b(stage: int = 0, layers: int = 48, **changes: Any) -> Activations:
    policy = config(**{f"policy__{key}": value for key, value in changes.items()}).policy
    return activations(policy, shape(B14, 8), Spec.TRANSFORMER_ENGINE, stage, layers, 32768)


def test_transformer_engine_by_hand() -> None:
    """14B at TP=8 with sequence parallelism, bytes per token of one layer."""
    norms = 2 * 2 * (5120 / 8) * 2  # inputs and outputs of two norms, cut over TP
    attention = (2 * 5120 + 2 * 1024) / 8 * 2  # queries, keys, values, output
    mlp = 3 * 13824 / 8 * 2  # both halves before SwiGLU, one after
    rope = 4 * 128 * 2  # cosine and sine for queries and keys
    statistics = 40 / 8 * 4 + 2 * 4 / 8
    layer = 32768 * (norms + attention + mlp + rope + statistics)
    hidden = 32768 * 5120 / 8 * 2
    assert of_14b(recompute_granularity=None).kept == pytest.approx(48 * layer + hidden)
    recomputed = of_14b(recompute_granularity="full")
    assert recomputed.kept == 49 * hidden
    assert recomputed.layer_work > layer
    selective = of_14b(recompute_granularity="selective")
    again = 32768 * (mlp + 5120 / 8 * 2 + 4 / 8)  # with the output of its norm
    assert selective.kept == pytest.approx(48 * (layer - again) + hidden)
    assert selective.layer_work == pytest.approx(of_14b(recompute_granularity=None).layer_work + again)


def test_context_parallelism_divides_the_tokens() -> None:
    assert of_14b(context_parallel_size=2).kept == of_14b().kept / 2


def test_early_pipeline_stages_hold_more_micro_batches_and_only_the_last_has_log_probs() -> None:
    first, last = (of_14b(stage, 12, pipeline_model_parallel_size=4) for stage in (0, 3))
    assert first.kept == 4 * last.kept
    assert (first.log_prob_work, last.log_prob_work > 0) == (0.0, True)


def test_an_interleaved_pipeline_holds_what_megatron_starts_before_its_first_backward_pass() -> None:
    plain = of_14b(3, 12, pipeline_model_parallel_size=4, recompute_granularity="full")
    changes = {"pipeline_model_parallel_size": 4, "virtual_pipeline_model_parallel_size": 3}
    first, last = (of_14b(stage, 12, recompute_granularity="full", **changes) for stage in (0, 3))
    chunk = plain.kept / 13 * 5  # inputs of 4 layers, and an output
    assert (first.kept, last.kept) == pytest.approx((15 * chunk, 9 * chunk))


def test_fp8_halves_what_linear_layers_keep() -> None:
    plain = of_14b(recompute_granularity=None)
    fp8 = of_14b(recompute_granularity=None, fp8=FP8Config())
    assert 0.7 * plain.kept < fp8.kept < 0.95 * plain.kept
    spared = FP8Config(num_layers_at_start_in_bf16=4, num_layers_at_end_in_bf16=8)
    assert of_14b(recompute_granularity=None, fp8=spared).kept == pytest.approx(
        fp8.kept + 12 / 48 * (plain.kept - fp8.kept)
    )
    stage = {"pipeline_model_parallel_size": 2, "recompute_granularity": None}
    last = of_14b(1, 24, fp8=spared, **stage), of_14b(1, 24, fp8=FP8Config(), **stage), of_14b(1, 24, **stage)
    assert last[0].kept == pytest.approx(last[1].kept + 8 / 24 * (last[2].kept - last[1].kept))
