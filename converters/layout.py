"""Parallel layouts, without any process: which rank of a job holds which blocks of a model."""

from collections.abc import Iterator
from dataclasses import dataclass

from converters.blocks import Block, cut_blocks
from converters.errors import ConversionError
from converters.families.family import Family
from converters.hf_config import ModelShape


@dataclass(frozen=True, slots=True)
class Layout:
    """Sizes of tensor, pipeline, expert and virtual pipeline parallelism.

    Attributes:
        vpp: model chunks per pipeline stage; 1 without interleaving.
        first_stage_layers, last_stage_layers: where those stages differ from an even share; None: even.
    """

    tp: int = 1
    pp: int = 1
    ep: int = 1
    vpp: int = 1
    first_stage_layers: int | None = None
    last_stage_layers: int | None = None

    @property
    def ranks(self) -> int:
        """Ranks that hold one copy of the model."""
        return self.tp * self.pp * self.ep

    def check(self, shape: ModelShape) -> None:
        """Refuse a layout that does not divide the model.

        Raises:
            ConversionError: with both numbers.
        """
        experts = shape.num_experts or 1
        for option, size, name, number in (
            ("--tp", self.tp, "attention heads", shape.num_attention_heads),
            ("--tp", self.tp, "key-value heads", shape.num_key_value_heads),
            ("--tp", self.tp, "feed-forward units", shape.ffn_hidden_size),
            ("--ep", self.ep, "experts", experts),
        ):
            if number % size:
                raise ConversionError(f"{option} {size} does not divide the model's {number} {name}; use a divisor")
        self.stages(shape.num_layers)

    def stages(self, num_layers: int) -> list[list[int]]:
        """The layers of each pipeline stage, as Megatron deals them out.

        Raises:
            ConversionError: they cannot be dealt out evenly.
        """
        if self.first_stage_layers is None and self.last_stage_layers is None:
            chunks = self.pp * self.vpp
            if num_layers % chunks:
                raise ConversionError(
                    f"--pp {self.pp} x --vpp {self.vpp} does not divide the model's {num_layers} layers; use a "
                    "divisor, or set --first-stage-layers and --last-stage-layers"
                )
            share = num_layers // chunks
            return [
                [(chunk * self.pp + stage) * share + i for chunk in range(self.vpp) for i in range(share)]
                for stage in range(self.pp)
            ]
        if self.vpp > 1:
            raise ConversionError("--first-stage-layers and --last-stage-layers go without --vpp")
        sizes = self._uneven(num_layers)
        return [list(range(sum(sizes[:stage]), sum(sizes[: stage + 1]))) for stage in range(self.pp)]

    def _uneven(self, num_layers: int) -> list[int]:
        first, last = self.first_stage_layers, self.last_stage_layers
        given = [size for size in (first, last) if size is not None]
        middle, rest = self.pp - len(given), num_layers - sum(given)
        if middle < 0 or rest < 0 or (rest % middle if middle else rest) or min(given) < 1:
            raise ConversionError(
                f"the model's {num_layers} layers without the {given} of the stages that were given cannot be shared "
                f"evenly by the other {middle} of --pp {self.pp}"
            )
        sizes = [rest // middle] * middle if middle else []
        return [*([first] if first is not None else []), *sizes, *([last] if last is not None else [])]

    def blocks(self, family: Family, shape: ModelShape) -> Iterator[tuple[int, Block]]:
        """Every block of the model once, with the rank that writes it."""
        stage_of = {layer: stage for stage, layers in enumerate(self.stages(shape.num_layers)) for layer in layers}
        after_layers = False
        for weight, layer, expert in family.walk(shape):
            after_layers |= weight.per_layer
            stage = stage_of[layer] if weight.per_layer else (self.pp - 1) * after_layers
            holder = expert * self.ep // shape.num_experts if weight.per_expert else 0
            for tp_rank in range(self.tp if weight.cut is not None else 1):
                rank = (stage * self.ep + holder) * self.tp + tp_rank
                for block in cut_blocks(weight, layer, expert, shape, self.tp, tp_rank):
                    yield rank, block
