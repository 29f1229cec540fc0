"""What a model family declares: its parameters, and what its config means for Megatron-Core."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from converters.hf_config import ModelShape
from converters.ops import Op


@dataclass(frozen=True, slots=True)
class Entry:
    """One Megatron parameter and the Hugging Face tensors it holds; `{i}` stands for the global layer number.

    Attributes:
        megatron: its names: in Megatron's local layer spec, then where Transformer Engine fuses it elsewhere.
        hf: the Hugging Face names, in the op's order.
        op: the layout.
    """

    megatron: tuple[str, ...]
    hf: tuple[str, ...]
    op: Op

    def at_layer(self, layer: int) -> "Entry":
        """This entry of layer `layer`."""
        return Entry(
            tuple(name.format(i=layer) for name in self.megatron),
            tuple(name.format(i=layer) for name in self.hf),
            self.op,
        )


@dataclass(frozen=True, slots=True)
class MegatronConfig:
    """What the family's config means for Megatron-Core.

    Attributes:
        transformer: arguments of `TransformerConfig`.
        rotary_base: RoPE theta.
        max_position_embeddings: context of the model, in tokens.
    """

    transformer: dict[str, Any]
    rotary_base: float
    max_position_embeddings: int


@dataclass(frozen=True, slots=True)
class Family:
    """A model family as a table.

    Attributes:
        model_type: of `config.json`.
        first: entries before the layers.
        layer: entries of every layer.
        last: entries after the layers.
        output: the output layer, absent where it is tied to the embedding.
        translate: `config.json` to Megatron's arguments; raises ValueError on what Megatron would not honour.
    """

    model_type: str
    first: tuple[Entry, ...]
    layer: tuple[Entry, ...]
    last: tuple[Entry, ...]
    output: Entry
    translate: Callable[[dict[str, Any]], MegatronConfig]

    def entries(self, shape: ModelShape) -> Iterator[Entry]:
        """All entries of a model, from input to output."""
        yield from self.first
        for layer in range(shape.num_layers):
            yield from (entry.at_layer(layer) for entry in self.layer)
        yield from self.last
        if not shape.tied:
            yield self.output
