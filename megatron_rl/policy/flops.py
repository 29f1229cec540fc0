"""Arithmetic of a model by its sizes: what one sequence costs. No torch."""

from dataclasses import dataclass

from converters.hf_config import ModelShape


def matmul_parameters(shape: ModelShape) -> int:
    """Parameters that multiply every token: all but the embedding table and the norms."""
    attention = shape.hidden_size * (2 * shape.query_size + 2 * shape.key_value_size)
    mlp = 3 * shape.hidden_size * shape.ffn_hidden_size
    return shape.num_layers * (attention + mlp) + shape.vocab_size * shape.hidden_size


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceCost:
    """What a sequence costs by its length, in integers, which add up to the same in any order."""

    per_token: int
    per_squared_token: int

    def of(self, length: int) -> int:
        """Cost of a sequence of `length` tokens."""
        return length * (self.per_token + self.per_squared_token * length)


TOKENS = SequenceCost(per_token=1, per_squared_token=0)
"""By tokens alone."""


def forward_flops(shape: ModelShape) -> SequenceCost:
    """Of a forward pass: two operations per parameter and token, and causal attention, half of two such products."""
    return SequenceCost(
        per_token=2 * matmul_parameters(shape), per_squared_token=2 * shape.num_layers * shape.query_size
    )
