"""What an engine says of its requests: several tokens at once, none lost, the last at once."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from vllm.v1.engine import EngineCoreOutput, FinishReason
from vllm.v1.outputs import LogprobsLists

from megatron_rl.rollout.scheduler import TOKENS_PER_MESSAGE, HoldingScheduler


def one_token(request: str, token: int, last: bool) -> EngineCoreOutput:
    column = np.array([[token]])
    log_probs = LogprobsLists(column, -column.astype(np.float32), column[:, 0] + 1)
    return EngineCoreOutput(
        request, [token], new_logprobs=log_probs, finish_reason=FinishReason.LENGTH if last else None
    )


@given(st.lists(st.integers(1, 3 * TOKENS_PER_MESSAGE), min_size=1, max_size=5))
def test_every_token_is_told_once_in_order_with_its_log_prob(lengths: list[int]) -> None:
    scheduler = HoldingScheduler.__new__(HoldingScheduler)
    scheduler._held = {}
    told: dict[str, list[EngineCoreOutput]] = {str(request): [] for request in range(len(lengths))}
    for step in range(max(lengths)):
        for request, length in enumerate(lengths):
            if step < length:
                for output in scheduler._hold(one_token(str(request), step, step == length - 1)):
                    told[output.request_id].append(output)
    assert not scheduler._held
    for outputs, length in zip(told.values(), lengths, strict=True):
        assert [token for output in outputs for token in output.new_token_ids] == list(range(length))
        assert len(outputs) == -(-length // TOKENS_PER_MESSAGE)
        assert [output.finished for output in outputs] == [False] * (len(outputs) - 1) + [True]
        for output in outputs:
            assert output.new_logprobs is not None
            ids, log_probs, ranks, _ = output.new_logprobs
            assert ids[:, 0].tolist() == output.new_token_ids
            assert log_probs[:, 0].tolist() == [-token for token in output.new_token_ids]
            assert ranks.tolist() == [token + 1 for token in output.new_token_ids]
