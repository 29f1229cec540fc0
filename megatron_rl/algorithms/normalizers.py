"""What a token of each response counts in the step's loss, over all ranks and micro-batches."""

from collections import Counter
from collections.abc import Sequence

from megatron_rl.config.schema import LossNormalizer


def token_weights(
    lengths: Sequence[int], groups: Sequence[int], normalizer: LossNormalizer, max_length: int
) -> list[float]:
    """Of every response; with L_i its tokens, of N responses in all:

    - tokens: 1 / sum L, the mean over all tokens of the batch;
    - group_tokens: 1 / (groups x sum L of the group), each prompt's mean first (arXiv 2505.16400, eq. 1);
    - sequences: 1 / (N L_i), each response's mean first (arXiv 2402.03300, eq. 3);
    - constant: 1 / (N max_length), whatever was generated (Dr. GRPO, arXiv 2503.20783).

    Args:
        lengths: in tokens.
        groups: the prompt that each response answers.
        max_length: of a response.
    """
    if normalizer is LossNormalizer.TOKENS:
        return [1 / sum(lengths)] * len(lengths)
    if normalizer is LossNormalizer.SEQUENCES:
        return [1 / (len(lengths) * length) for length in lengths]
    if normalizer is LossNormalizer.CONSTANT:
        return [1 / (len(lengths) * max_length)] * len(lengths)
    tokens: Counter[int] = Counter()
    for group, length in zip(groups, lengths, strict=True):
        tokens[group] += length
    return [1 / (len(tokens) * tokens[group]) for group in groups]
