"""What a model family declares: its weights as a table, and what its config means for Megatron-Core.

Every weight of Megatron is made of whole rows of Hugging Face tensors, put below each other, in groups or not. So one
line of the table says it all: which tensors, how many rows each, in how many groups, and where tensor parallelism
cuts. Both directions of a conversion, in every layout, follow from it (`converters.blocks`).

Megatron's side goes by the keys and global shapes of its sharded checkpoints, which are the same in every parallel
layout and in both layer specs (Transformer Engine keeps a norm within the linear layer that it precedes; Megatron's
local spec does not, and maps its keys).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from converters.errors import ConversionError
from converters.hf_config import ModelShape, model_shape, number_of, size_of

LAYER = "decoder.layers."
_HF_LAYER = "model.layers.{layer}."


@dataclass(frozen=True, slots=True)
class Weight:
    """One line of a family's table. Sizes are names of `ModelShape`'s.

    Attributes:
        key: of Megatron's sharded checkpoint.
        hf: Hugging Face names; `{layer}` and `{expert}` stand for numbers in the whole model.
        rows: of each Hugging Face tensor.
        columns: of all of them; None for vectors.
        groups: Megatron interleaves the tensors in this number of equal groups; None: one below the other.
        cut: dimension that tensor parallelism cuts: 0 rows, 1 columns, None neither.
        padded: Megatron pads the rows to `padded_vocab_size`.
    """

    key: str
    hf: tuple[str, ...]
    rows: tuple[str, ...]
    columns: str | None = None
    groups: str | None = None
    cut: int | None = None
    padded: bool = False

    @property
    def per_layer(self) -> bool:
        """Every layer has one."""
        return self.key.startswith(LAYER)

    @property
    def per_expert(self) -> bool:
        """Every expert of every layer has one."""
        return "{expert}" in self.hf[0]

    def hf_names(self, layer: int = 0, expert: int = 0) -> list[str]:
        """The Hugging Face names in one layer and expert."""
        return [name.format(layer=layer, expert=expert) for name in self.hf]

    def hf_shapes(self, shape: ModelShape) -> list[tuple[int, ...]]:
        """Shapes of the Hugging Face tensors, in order."""
        columns = () if self.columns is None else (_size(shape, self.columns),)
        return [(_size(shape, rows), *columns) for rows in self.rows]

    def megatron_shape(self, shape: ModelShape) -> tuple[int, ...]:
        """Shape of Megatron's whole tensor in one layer and expert."""
        parts = self.hf_shapes(shape)
        rows = shape.padded_vocab_size if self.padded else sum(part[0] for part in parts)
        return (rows, *parts[0][1:])

    def num_groups(self, shape: ModelShape) -> int:
        """In how many groups the tensors are interleaved."""
        return 1 if self.groups is None else _size(shape, self.groups)


def _size(shape: ModelShape, name: str) -> int:
    value = getattr(shape, name)
    assert isinstance(value, int)
    return value


@dataclass(frozen=True, slots=True)
class MegatronConfig:
    """What the family's config means for Megatron-Core.

    Attributes:
        transformer: arguments of `TransformerConfig`.
        rotary_base: RoPE theta.
        rope_scaling_factor: of Llama 3's RoPE scaling; None without.
        max_position_embeddings: context of the model, in tokens.
    """

    transformer: dict[str, Any]
    rotary_base: float
    rope_scaling_factor: float | None
    max_position_embeddings: int


@dataclass(frozen=True, slots=True)
class Family:
    """A model family.

    Attributes:
        model_type: of `config.json`.
        weights: the table, from input to output; those of the layers stand together.
        transformer: `config.json` to the arguments of `TransformerConfig` that differ between families.
        honoured: keys of `config.json` that change the model, each with the only value that Megatron's honours; a key
            that is not there counts as this value.
        required: keys that must be there: their defaults are not what they are here.
        rope_types: kinds of RoPE scaling that it honours.
    """

    model_type: str
    weights: tuple[Weight, ...]
    transformer: Callable[[dict[str, Any]], dict[str, Any]]
    honoured: dict[str, Any]
    required: tuple[str, ...] = ()
    rope_types: tuple[str, ...] = ("default",)

    def table(self, shape: ModelShape) -> list[Weight]:
        """The lines that a model has: a tied output layer is not a weight of its own."""
        return [weight for weight in self.weights if weight is not OUTPUT or not shape.tied]

    def walk(self, shape: ModelShape) -> Iterator[tuple[Weight, int, int]]:
        """Every weight with its layer and expert (0 where it has none), from input to output."""
        table = self.table(shape)
        layered = [weight for weight in table if weight.per_layer]
        yield from ((weight, 0, 0) for weight in table[: table.index(layered[0])])
        for layer in range(shape.num_layers):
            for weight in layered:
                experts = shape.num_experts if weight.per_expert else 1
                yield from ((weight, layer, expert) for expert in range(experts))
        yield from ((weight, 0, 0) for weight in table[table.index(layered[-1]) + 1 :])

    def hf_tensors(self, shape: ModelShape) -> dict[str, tuple[int, ...]]:
        """Name and shape of every Hugging Face tensor, in the order in which transformers writes them."""
        return {
            name: size
            for weight, layer, expert in self.walk(shape)
            for name, size in zip(weight.hf_names(layer, expert), weight.hf_shapes(shape), strict=True)
        }

    def translate(self, hf_config: dict[str, Any]) -> MegatronConfig:
        """What `config.json` means for Megatron-Core.

        Raises:
            ConversionError: a setting is missing, or Megatron's model would not honour it.
        """
        shape = model_shape(hf_config, vocab_divisor=1)
        for key in self.required:
            if hf_config.get(key) is None:
                raise ConversionError(f"config.json: {key!r} is missing; restore the whole file")
        for key, supported in (_HONOURED | self.honoured).items():
            value = hf_config.get(key)
            if value is not None and value != supported:
                self._refuse(f"{key}={value!r:.80}", repr(supported))
        layer_types = hf_config.get("layer_types") or []
        if not isinstance(layer_types, list) or any(kind != "full_attention" for kind in layer_types):
            self._refuse(f"layer_types={layer_types!r:.80}", "full_attention")
        rope = self._rope(hf_config)
        transformer = {
            "num_layers": shape.num_layers,
            "hidden_size": shape.hidden_size,
            "ffn_hidden_size": shape.ffn_hidden_size,
            "num_attention_heads": shape.num_attention_heads,
            "num_query_groups": shape.num_key_value_heads,
            "kv_channels": shape.head_dim,
            "normalization": "RMSNorm",
            "layernorm_epsilon": number_of(hf_config, "rms_norm_eps", 1e-6),
            "gated_linear_unit": True,
            "add_bias_linear": False,
        }
        return MegatronConfig(
            transformer=transformer | self.transformer(hf_config),
            rotary_base=number_of(rope, "rope_theta", number_of(hf_config, "rope_theta", 10000.0)),
            rope_scaling_factor=self._scaling_factor(rope),
            max_position_embeddings=size_of(hf_config, "max_position_embeddings"),
        )

    def _rope(self, hf_config: dict[str, Any]) -> dict[str, Any]:
        """The settings of RoPE, under either of the names that they have had."""
        given = [hf_config[key] for key in ("rope_parameters", "rope_scaling") if hf_config.get(key) is not None]
        for rope in given:
            if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
                self._refuse(f"RoPE settings {rope!r:.80}", "one set of them for all layers")
            if rope.get("partial_rotary_factor", 1.0) != 1.0:
                self._refuse(f"partial_rotary_factor={rope['partial_rotary_factor']!r}", "1.0")
        if len(given) == 2 and given[0] != given[1]:
            raise ConversionError("config.json: rope_parameters and rope_scaling say different things; remove one")
        return given[0] if given else {}

    def _scaling_factor(self, rope: dict[str, Any]) -> float | None:
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind not in self.rope_types:
            self._refuse(f"rope type={kind!r}", " or ".join(map(repr, self.rope_types)))
        if kind != "llama3":
            return None
        # Megatron-Core fixes these three.
        fixed = {"low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 8192}
        for key, supported in fixed.items():
            if rope.get(key, supported) != supported:
                self._refuse(f"rope {key}={rope[key]!r}", repr(supported))
        return float(number_of(rope, "factor"))

    def _refuse(self, setting: str, supported: str) -> None:
        raise ConversionError(f"config.json: {setting} is not supported for {self.model_type}; only {supported} is")


_HONOURED = {
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
}
"""What every family honours."""

# Lines that families share --------------------------------------------------------------------------------------

EMBEDDING = Weight(
    "embedding.word_embeddings.weight",
    ("model.embed_tokens.weight",),
    ("vocab_size",),
    "hidden_size",
    cut=0,
    padded=True,
)
OUTPUT = Weight("output_layer.weight", ("lm_head.weight",), ("vocab_size",), "hidden_size", cut=0, padded=True)
FINAL_NORM = Weight("decoder.final_layernorm.weight", ("model.norm.weight",), ("hidden_size",))


def in_layer(key: str, hf: Sequence[str], rows: Sequence[str], *args: Any, **kwargs: Any) -> Weight:
    """A line for a weight of every layer, its names given without the layer's prefix."""
    return Weight(LAYER + key, tuple(_HF_LAYER + name for name in hf), tuple(rows), *args, **kwargs)


_QKV = [f"self_attn.{part}_proj" for part in "qkv"]
_QKV_ROWS = ("query_size", "key_value_size", "key_value_size")
_BY_HEAD = {"groups": "num_key_value_heads", "cut": 0}
QKV = in_layer(
    "self_attention.linear_qkv.weight", [f"{name}.weight" for name in _QKV], _QKV_ROWS, "hidden_size", **_BY_HEAD
)
QKV_BIAS = in_layer("self_attention.linear_qkv.bias", [f"{name}.bias" for name in _QKV], _QKV_ROWS, **_BY_HEAD)
QUERY_NORM, KEY_NORM = (
    in_layer(f"self_attention.{part}_layernorm.weight", [f"self_attn.{part}_norm.weight"], ["head_dim"])
    for part in "qk"
)
PROJECTION = in_layer(
    "self_attention.linear_proj.weight", ["self_attn.o_proj.weight"], ["hidden_size"], "query_size", cut=1
)
ATTENTION_NORM = in_layer("self_attention.linear_qkv.layer_norm_weight", ["input_layernorm.weight"], ["hidden_size"])
MLP_NORM = in_layer("mlp.linear_fc1.layer_norm_weight", ["post_attention_layernorm.weight"], ["hidden_size"])
GATE_UP = in_layer(
    "mlp.linear_fc1.weight",
    ["mlp.gate_proj.weight", "mlp.up_proj.weight"],
    ["ffn_hidden_size", "ffn_hidden_size"],
    "hidden_size",
    cut=0,
)
DOWN = in_layer("mlp.linear_fc2.weight", ["mlp.down_proj.weight"], ["hidden_size"], "ffn_hidden_size", cut=1)
