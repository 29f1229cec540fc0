"""How many parameters each kind of rank holds, told from the family's table: what `count` counts, without torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from converters.families.family import EMBEDDING, Family
from converters.hf_config import ModelShape
from converters.layout import Layout


@dataclass(frozen=True, slots=True)
class Shard:
    """What one kind of rank holds: every tensor-parallel rank of a pipeline stage holds as much.

    Attributes:
        stage: of the pipeline, from 0.
        layers: decoder layers.
        sharded: parameters of which each tensor-parallel rank has a part.
        replicated: parameters that each of them has whole.
        tied_copy: of the sharded ones, those of a tied output layer that is not on the embedding's stage.
        weight_bytes: of all its parameters, in the policy's precision.
    """

    stage: int
    layers: int
    sharded: int
    replicated: int
    tied_copy: int
    weight_bytes: int

    @property
    def parameters(self) -> int:
        """All that the rank holds."""
        return self.sharded + self.replicated


def shards(family: Family, shape: ModelShape, tp: int, pp: int, bytes_per_parameter: int) -> list[Shard]:
    """One shard per pipeline stage; `shape`'s vocabulary is padded for `tp`."""
    table = family.table(shape)
    stages = Layout(tp, pp).stages(shape.num_layers)
    embedding = prod(EMBEDDING.megatron_shape(shape)) // tp
    found = []
    for stage, layers in enumerate(stages):
        sharded = replicated = 0
        for weight in table:
            first = weight is EMBEDDING
            times = len(layers) if weight.per_layer else int(stage == (0 if first else pp - 1))
            size = prod(weight.megatron_shape(shape)) * (shape.num_experts if weight.per_expert else 1) * times
            if weight.cut is None:
                replicated += size
            else:
                sharded += size // tp
        tied_copy = embedding if shape.tied and stage == pp - 1 > 0 else 0
        total = sharded + tied_copy + replicated
        found.append(Shard(stage, len(layers), sharded + tied_copy, replicated, tied_copy, total * bytes_per_parameter))
    return found


def whole_model(parts: Sequence[Shard], shape: ModelShape, tp: int) -> int:
    """Parameters of the model that `parts` make up, each once, without the padding of its vocabulary."""
    held = sum((part.sharded - part.tied_copy) * tp + part.replicated for part in parts)
    matrices = 1 if shape.tied else 2
    return held - matrices * (shape.padded_vocab_size - shape.vocab_size) * shape.hidden_size
