"""Records that cross the border between generation, verification and training."""

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """One response to generate.

    Attributes:
        prompt_index: position of the prompt in the step's list.
        sample_index: position in the prompt's group.
        prompt_tokens: ids.
        seed: of this sample alone, whatever engine takes it.
    """

    prompt_index: int
    sample_index: int
    prompt_tokens: tuple[int, ...]
    seed: int

    def moved(self, by: int) -> "SampleRequest":
        """The same request, its prompt `by` places further on in a longer list."""
        return replace(self, prompt_index=self.prompt_index + by)


@dataclass(frozen=True, slots=True)
class Sample:
    """One generated response.

    Attributes:
        request: what was asked for.
        length: of the response in tokens.
        tokens: ids, the end-of-sequence token included; none where only the text counts.
        log_probs: of `tokens`, as the engine sampled them; the same length.
        text: `tokens` decoded, special tokens of the chat format left out.
        truncated: generation stopped at its token limit.
        policy_version: optimizer steps that the engine's weights had seen.
    """

    request: SampleRequest
    length: int
    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    text: str
    truncated: bool
    policy_version: int

    def without_tokens(self) -> "Sample":
        """The same but for tokens and log-probs, which take 72 bytes a token."""
        return replace(self, tokens=(), log_probs=())


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample; temperature 0 is greedy."""

    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int


def requests_for(
    prompts: Sequence[Sequence[int]], samples_per_prompt: int, seed: str, done: Collection[tuple[int, int]] = ()
) -> list[SampleRequest]:
    """Every sample of a round, but those whose prompt and place in the group are `done`; their seeds come of `seed`,
    prompt and place."""
    return [
        SampleRequest(prompt, place, tuple(tokens), random.Random(f"{seed}/{prompt}/{place}").getrandbits(31))
        for prompt, tokens in enumerate(prompts)
        for place in range(samples_per_prompt)
        if (prompt, place) not in done
    ]
