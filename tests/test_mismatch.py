"""The mismatch between engine and policy: its bounds, and what is said of a batch that has too much of it."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from tiny import train_config

from megatron_rl.experience import ScoredSample
from megatron_rl.logger import MetricsLogger
from megatron_rl.mismatch import mismatch_bound, mismatch_records, worst_tokens
from megatron_rl.rollout.samples import Sample, SampleRequest
from verifiers.verdict import Result, Verdict


class Letters:
    """A tokenizer of which token N is the Nth letter."""

    def decode(self, tokens: list[int]) -> str:
        return "".join(chr(ord("a") + token) if token else "\n" for token in tokens)


def scored(prompt: int, sample: int, log_probs: list[float]) -> ScoredSample:
    request = SampleRequest(prompt_index=prompt, sample_index=sample, prompt_tokens=(7, 8), seed=1)
    tokens = tuple(range(len(log_probs)))
    made = Sample(request, len(tokens), tokens, tuple(log_probs), "text", truncated=False, policy_version=5)
    return ScoredSample(made, Result(Verdict.WRONG, None, 0.1, "detail"))


def records(samples: list[ScoredSample], log_probs: list[list[float]]) -> list[dict[str, Any]]:
    known = [{"id": f"p{s.prompt_index}", "sample": s.sample.request.sample_index, "step": 8} for s in samples]
    return mismatch_records(known, samples, log_probs, Letters())  # type: ignore[arg-type]


PRECISIONS: list[tuple[dict[str, Any], float]] = [
    ({"precision": "fp32"}, 1.001),
    ({"precision": "bf16"}, 1.05),
    ({"precision": "bf16", "fp8": {"recipe": "blockwise"}}, 1.1),
]


@pytest.mark.parametrize(("policy", "bound"), PRECISIONS)
def test_the_bound_goes_by_the_policys_precision(policy: dict[str, Any], bound: float) -> None:
    changes = {f"policy__{key}": value for key, value in policy.items()}
    assert mismatch_bound(train_config("model", **changes)) == bound
    assert mismatch_bound(train_config("model", grpo__max_token_mult_prob_error=1.2, **changes)) == 1.2


def test_the_worst_sample_comes_first_with_its_worst_tokens() -> None:
    samples = [scored(0, 0, [-1.0, -1.0]), scored(1, 3, [-1.0, -2.0, -3.0, -4.0])]
    worst, other = records(samples, [[-1.0, -1.5], [-1.5, -2.0, -1.0, -4.25]])
    assert other["token_mult_prob_error"] == pytest.approx((1 + math.exp(0.5)) / 2)
    errors = [0.5, 0.0, 2.0, 0.25]
    assert worst["token_mult_prob_error"] == pytest.approx(sum(map(math.exp, errors)) / 4)
    assert [worst[field] for field in ("step", "id", "sample")] == [8, "p1", 3]
    assert [token["position"] for token in worst["worst_tokens"]] == [2, 0, 3]
    assert worst["worst_tokens"][0] == {
        "position": 2,
        "token": 2,
        "text": "c",
        "rollout_log_prob": -3.0,
        "policy_log_prob": -1.0,
        "difference": 2.0,
    }


def test_people_read_of_the_worst_tokens_of_all_samples_on_one_line() -> None:
    samples = [scored(0, 0, [-1.0, -1.0]), scored(1, 3, [-1.0, -2.0, -3.0, -4.0])]
    line = worst_tokens(records(samples, [[-1.75, -1.0], [-1.5, -2.0, -1.0, -4.25]]))
    assert line == (
        "problem 'p1' sample 3 token 2 (id 2, 'c'): rollout -3, policy -1; "
        "problem 'p0' sample 0 token 0 (id 0, '\\n'): rollout -1, policy -1.75; "
        "problem 'p1' sample 3 token 0 (id 0, '\\n'): rollout -1, policy -1.5"
    )


@pytest.mark.parametrize("broken", [math.nan, -math.inf, -2000.0])
def test_what_is_no_number_is_worst_and_can_be_written(broken: float, tmp_path: Path) -> None:
    samples = [scored(0, 0, [-1.0, -1.0]), scored(1, 3, [-1.0, -2.0])]
    found = records(samples, [[-5.0, -1.0], [-1.0, broken]])
    assert found[0]["id"] == "p1"
    assert found[0]["token_mult_prob_error"] == math.inf
    assert worst_tokens(found).startswith("problem 'p1' sample 3 token 1")
    with MetricsLogger(train_config("model"), tmp_path, 0) as logger:
        logger.log_samples("mismatch_step_8", found)
    lines = (tmp_path / "samples/mismatch_step_8.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    assert first["token_mult_prob_error"] is None
    assert first["worst_tokens"][0]["position"] == 1
    assert first["worst_tokens"][0]["policy_log_prob"] == (broken if math.isfinite(broken) else None)
