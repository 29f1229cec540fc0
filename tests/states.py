"""In a program: all that training changes, to the bit."""

from collections.abc import Iterator
from typing import Any

import torch

from megatron_rl.policy.policy import Policy

Tensors = list[torch.Tensor]


def state_of(policy: Policy) -> Tensors:
    """Weights, main weights, moments and counters, the learning rate."""
    groups = policy.inner_optimizer.param_groups
    return [
        *(weight.data for chunk in policy.chunks for weight in chunk.parameters()),
        *(weight.data for group in groups for weight in group["params"]),
        *_tensors_in(policy.inner_optimizer.state.values()),
        torch.tensor([policy.num_updates, *(group["lr"] for group in groups)], dtype=torch.float64),
    ]


def copy_of(tensors: Tensors) -> Tensors:
    """As they are now."""
    return [tensor.clone() for tensor in tensors]


def same(a: Tensors, b: Tensors) -> bool:
    """Bit by bit."""
    return len(a) == len(b) and all(
        torch.equal(x.reshape(-1).view(torch.uint8), y.reshape(-1).view(torch.uint8)) for x, y in zip(a, b, strict=True)
    )


def _tensors_in(states: Any) -> Iterator[torch.Tensor]:
    for state in states:
        yield from (state[name] for name in sorted(state) if isinstance(state[name], torch.Tensor))
