"""The gate between engine and policy: a batch that the policy would not have sampled like this is not trained on.

    forward, backward -> means over the batch -> gate -> optimizer step
                                                  |
                                              Mismatch -> one more forward names the worst tokens -> stop, or skip

On-policy the engine's log-probs are the policy's but for rounding. Where they are not (stale weights, another
temperature, a broken kernel), the update would follow a gradient of something else: better none.
"""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from megatron_rl.config.schema import OnMismatch, TrainConfig
from megatron_rl.data.problems import Problem
from megatron_rl.data.prompts import load_tokenizer
from megatron_rl.errors import RunStopped
from megatron_rl.experience import ScoredSample
from megatron_rl.parallel import broadcast_object
from megatron_rl.policy.batch import TrainSequence
from megatron_rl.run_folder import MISMATCH_PREFIX
from megatron_rl.stage import Stage

Record = dict[str, Any]
"""One line of `samples/mismatch_step_N.jsonl`."""

BOUNDS = {"fp32": 1.001, "bf16": 1.05, "fp8": 1.1}
"""The greatest mean of exp|policy - rollout log-prob| that rounding explains, by the lower precision of the two.

fp32: the two agree to some 1e-6 of a log-prob, also over hundreds of updates; weights that are wrong by 1% give 1.02.
bf16, fp8: the values above which NeMo-RL takes a run to be broken, in its documentation (1.05) and in its tests of FP8
from end to end (1.1). A tiny model in bf16 on the CPU is at 1.01, with weights wrong by 1% at 1.03, which is let pass.
None of the bounds sees weights that are behind by one update at a learning rate of 1e-6.
"""

SKIPPED = "skipped_update"
_WORST_TOKENS = 3


class Mismatch(Exception):
    """The gate refuses a batch; `metrics` are its means."""

    def __init__(self, metrics: Mapping[str, float]) -> None:
        super().__init__(f"token_mult_prob_error={metrics['token_mult_prob_error']}")
        self.metrics = dict(metrics)


def mismatch_bound(config: TrainConfig) -> float:
    """The greatest `token_mult_prob_error` with which a batch is trained on."""
    assert config.grpo is not None
    if config.grpo.max_token_mult_prob_error is not None:
        return config.grpo.max_token_mult_prob_error
    rounds_to_fp8 = config.policy.fp8 is not None or (config.generation is not None and config.generation.fp8)
    return BOUNDS["fp8" if rounds_to_fp8 else config.policy.precision.value]


def check_mismatch(metrics: Mapping[str, float], bound: float) -> None:
    """Pass a batch on to the optimizer; a batch's later updates, which have no such metric, always.

    Raises:
        Mismatch: the error is above the bound, or NaN.
    """
    if not metrics.get("token_mult_prob_error", 1.0) <= bound:
        raise Mismatch(metrics)


def refuse_batch(
    stage: Stage, step: int, samples: Sequence[ScoredSample], problems: Sequence[Problem], mismatch: Mismatch
) -> dict[str, float]:
    """Say which tokens were worst, in `samples/mismatch_step_N.jsonl` too; called by all ranks together.

    Returns:
        The metrics of a skipped update.

    Raises:
        RunStopped: a refused batch is to stop the run, or too many in a row were skipped.
    """
    config = stage.config.grpo
    assert config is not None
    log_probs = stage.policy.log_probs([_sequence(sample) for sample in samples])
    records = mismatch_records(samples, log_probs, problems, load_tokenizer(stage.folder), step + 1)
    name = f"{MISMATCH_PREFIX}{step + 1}"
    stage.log_samples(name, records)
    versions = ", ".join(map(str, sorted({record["policy_version"] for record in records})))
    what = (
        f"step {step + 1}: train/token_mult_prob_error={mismatch.metrics['token_mult_prob_error']:.6g} is not within "
        f"grpo.max_token_mult_prob_error={mismatch_bound(stage.config)}: the engine, whose samples say policy version "
        f"{versions}, does not sample the policy that is trained, version {step} (stale weights, another temperature, "
        "or too low a precision)"
    )
    where = f"worst: {worst_tokens(records)}; all samples: {stage.run.samples(name)}"
    skipped = _skipped_in_a_row(stage)
    if config.on_mismatch is OnMismatch.STOP or skipped >= config.max_consecutive_skips:
        before = f" after {skipped} skipped in a row" if skipped else ""
        raise RunStopped(
            f"{what}; {where}. The batch was not trained on{before}; mend the cause and start the same command again"
        )
    stage.warn(f"{what}; batch skipped ({skipped + 1} in a row, at most {config.max_consecutive_skips}); {where}")
    # The learning rate goes by batch: a resumed run, which knows only the step, has the same.
    stage.policy.skip_updates(config.updates_per_batch)
    return mismatch.metrics | {SKIPPED: 1.0}


def mismatch_records(
    samples: Sequence[ScoredSample],
    log_probs: Sequence[Sequence[float]],
    problems: Sequence[Problem],
    tokenizer: PreTrainedTokenizerFast,
    step: int,
) -> list[Record]:
    """Every sample's own `token_mult_prob_error` and worst tokens, the worst sample first.

    Args:
        log_probs: the policy's, of every sample's tokens. Where one is NaN, the difference is infinite.
    """
    records = []
    for scored, policy in zip(samples, log_probs, strict=True):
        sample = scored.sample
        rollout_T, policy_T = (torch.tensor(values, dtype=torch.float64) for values in (sample.log_probs, policy))
        difference_T = (policy_T - rollout_T).abs().nan_to_num(nan=torch.inf, posinf=torch.inf)
        worst = difference_T.topk(min(_WORST_TOKENS, len(difference_T))).indices.tolist()
        records.append(
            {
                "step": step,
                "id": problems[scored.prompt_index].id,
                "sample": sample.request.sample_index,
                "policy_version": sample.policy_version,
                "response_tokens": len(sample.tokens),
                "token_mult_prob_error": float(difference_T.exp().mean()),
                "worst_tokens": [
                    {
                        "position": position,
                        "token": sample.tokens[position],
                        "text": tokenizer.decode([sample.tokens[position]]),
                        "rollout_log_prob": sample.log_probs[position],
                        "policy_log_prob": policy[position],
                        "difference": float(difference_T[position]),
                    }
                    for position in worst
                ],
            }
        )
    return sorted(records, key=lambda record: record["token_mult_prob_error"], reverse=True)


def worst_tokens(records: Sequence[Record]) -> str:
    """The worst tokens of all samples, for people, on one line."""
    tokens = [(record, token) for record in records for token in record["worst_tokens"]]
    tokens.sort(key=lambda item: item[1]["difference"], reverse=True)
    return "; ".join(
        f"problem {record['id']!r} sample {record['sample']} token {token['position']} "
        f"(id {token['token']}, {token['text']!r}): rollout {token['rollout_log_prob']:.6g}, "
        f"policy {token['policy_log_prob']:.6g}"
        for record, token in tokens[:_WORST_TOKENS]
    )


def _sequence(scored: ScoredSample) -> TrainSequence:
    prompt = scored.sample.request.prompt_tokens
    return TrainSequence(prompt + scored.sample.tokens, len(prompt), weight=0.0)


def _skipped_in_a_row(stage: Stage) -> int:
    """Steps skipped up to now, counted in the run's metrics, which a resumed run has too."""
    if not stage.parallel.is_main:
        return broadcast_object(None)
    lines = reversed(stage.run.metric_lines())
    return broadcast_object(sum(1 for _ in takewhile(lambda line: line.get(f"train/{SKIPPED}"), lines)))
