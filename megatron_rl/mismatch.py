"""The mismatch between engine and policy: how much of it rounding explains, and where in a batch it is.

On-policy the engine's log-probs are the policy's but for rounding. Where they are not (stale weights, another
temperature, a broken kernel), the update would follow a gradient of something else: better none (`guards`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from megatron_rl.config.schema import TrainConfig
from megatron_rl.experience import ScoredSample

Record = dict[str, Any]

BOUNDS = {"fp32": 1.001, "bf16": 1.05, "fp8": 1.1}
"""The greatest mean of exp|policy - rollout log-prob| that rounding explains, by the lower precision of the two.

fp32: the two agree to some 1e-6 of a log-prob, also over hundreds of updates; weights that are wrong by 1% give 1.02.
bf16, fp8: the values above which NeMo-RL takes a run to be broken, in its documentation (1.05) and in its tests of FP8
from end to end (1.1). A tiny model in bf16 on the CPU is at 1.01, with weights wrong by 1% at 1.03, which is let pass.
None of the bounds sees weights that are behind by one update at a learning rate of 1e-6.
"""

_WORST_TOKENS = 3


def mismatch_bound(config: TrainConfig) -> float:
    """The greatest `token_mult_prob_error` with which a batch is trained on."""
    assert config.grpo is not None
    if config.grpo.max_token_mult_prob_error is not None:
        return config.grpo.max_token_mult_prob_error
    rounds_to_fp8 = config.policy.fp8 is not None or (config.generation is not None and config.generation.fp8)
    return BOUNDS["fp8" if rounds_to_fp8 else config.policy.precision.value]


def mismatch_records(
    records: Sequence[Mapping[str, Any]],
    samples: Sequence[ScoredSample],
    log_probs: Sequence[Sequence[float]],
    tokenizer: PreTrainedTokenizerFast,
) -> list[Record]:
    """The records of all samples, each with its own `token_mult_prob_error` and worst tokens, the worst sample first.

    Args:
        log_probs: the policy's, of every sample's tokens. Where one is NaN, the difference is infinite.
    """
    found = []
    for record, scored, policy in zip(records, samples, log_probs, strict=True):
        sample = scored.sample
        rollout_T, policy_T = (torch.tensor(values, dtype=torch.float64) for values in (sample.log_probs, policy))
        difference_T = (policy_T - rollout_T).abs().nan_to_num(nan=torch.inf, posinf=torch.inf)
        worst = difference_T.topk(min(_WORST_TOKENS, len(difference_T))).indices.tolist()
        error = {
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
        found.append({**record, **error})
    return sorted(found, key=lambda record: record["token_mult_prob_error"], reverse=True)


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
