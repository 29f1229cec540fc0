"""A Megatron-Core GPT model of a Hugging Face architecture, whose output is log-probs instead of logits."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from megatron.core.transformer.transformer_block import get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from converters.families import family_of
from converters.families.family import Family
from converters.hf_config import ModelShape, model_shape, read_config
from converters.model import ModelGroups
from megatron_rl.config.schema import FP8Config, FP8Recipe, PolicyConfig, Precision, RecomputeGranularity
from megatron_rl.device import DeviceSetup
from megatron_rl.parallel import Parallel
from megatron_rl.policy.layer_spec import layer_spec
from megatron_rl.policy.log_probs import token_log_probs, vocabulary_part

_EXTRA_STATE = "_extra_state"


@dataclass(frozen=True, slots=True)
class Architecture:
    """What a Hugging Face folder says about the model."""

    family: Family
    shape: ModelShape
    hf_config: dict[str, Any]

    @classmethod
    def of_folder(cls, folder: Path, config: PolicyConfig) -> "Architecture":
        """Read `folder/config.json`; ValueError on what Megatron cannot honour."""
        hf_config = read_config(folder)
        divisor = config.make_vocab_size_divisible_by * config.tensor_model_parallel_size
        return cls(family_of(hf_config), model_shape(hf_config, divisor), hf_config)


class PolicyModel(GPTModel):
    """GPTModel that answers, for packed tokens and their labels, with ([T] log-probs, [T] entropy) in float32.

    Without labels it answers with this tensor-parallel rank's part of the logits, [T, 1, V / TP].
    """

    def __init__(self, *args: Any, shape: ModelShape, temperature: float, chunk_tokens: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.temperature, self.chunk_tokens = temperature, chunk_tokens
        self.vocabulary = shape.vocab_size
        tp_group = parallel_state.get_tensor_model_parallel_group()
        self.part = vocabulary_part(shape.vocab_size, shape.padded_vocab_size, tp_group)

    def _postprocess(self, hidden_states: Tensor, labels: Tensor | None, **_: Any) -> Tensor | tuple[Tensor, Tensor]:
        if not self.post_process:
            return hidden_states
        if labels is None:
            tied_weight = self.shared_embedding_or_output_weight() if self.share_embeddings_and_output_weights else None
            logits: Tensor = self.output_layer(hidden_states, weight=tied_weight)[0]
            return logits
        if self.config.sequence_parallel:
            hidden_states = gather_from_sequence_parallel_region(hidden_states)
        else:
            hidden_states = copy_to_tensor_model_parallel_region(hidden_states)
        tied = self.share_embeddings_and_output_weights
        weight = self.shared_embedding_or_output_weight() if tied else self.output_layer.weight
        return token_log_probs(
            hidden_states.squeeze(1), weight, labels.squeeze(0), self.part, self.temperature, self.chunk_tokens
        )


def build_model(
    config: PolicyConfig, architecture: Architecture, parallel: Parallel, temperature: float
) -> list[PolicyModel]:
    """This rank's chunks of the model, weights not yet loaded: one, or as many as the pipeline interleaves."""
    settings = transformer_config(config, architecture, parallel.device)
    megatron = architecture.family.translate(architecture.hf_config)
    build = partial(
        PolicyModel,
        config=settings,
        vocab_size=architecture.shape.padded_vocab_size,
        max_sequence_length=megatron.max_position_embeddings,
        share_embeddings_and_output_weights=architecture.shape.tied,
        position_embedding_type="rope",
        rotary_base=megatron.rotary_base,
        rope_scaling=megatron.rope_scaling_factor is not None,
        rope_scaling_factor=megatron.rope_scaling_factor or 1.0,
        shape=architecture.shape,
        temperature=temperature,
        chunk_tokens=config.logprob_chunk_tokens,
    )
    chunks = []
    for chunk in range(parallel.vpp):
        layers = get_num_layers_to_build(settings, vp_stage=chunk)
        model = build(
            transformer_layer_spec=layer_spec(settings, parallel.device.transformer_engine, layers),
            pre_process=parallel.pp_rank == 0 and chunk == 0,
            post_process=parallel.is_last_stage and chunk == parallel.vpp - 1,
            vp_stage=chunk,
        )
        chunks.append(model.to(parallel.device.torch_device))
    return chunks


def sharded_weights(
    chunks: Sequence[PolicyModel], metadata: dict[str, Any] | None = None, with_scaling: bool = False
) -> dict[str, Any]:
    """The sharded state of the weights, by chunk: what is stored under which name does not depend on chunks.

    Args:
        with_scaling: also what linear layers keep besides, which is the past that FP8's delayed scaling goes by.
    """
    states = [chunk.sharded_state_dict(metadata=metadata) for chunk in chunks]
    return {
        f"chunk{number}": {k: v for k, v in state.items() if with_scaling or not k.endswith(_EXTRA_STATE)}
        for number, state in enumerate(states)
    }


def load_weights(chunks: Sequence[PolicyModel], state: dict[str, Any]) -> None:
    """Take over a state that was loaded through `sharded_weights`."""
    for number, chunk in enumerate(chunks):
        missing, unexpected = chunk.load_state_dict(state[f"chunk{number}"], strict=False)
        lost = [key for key in missing if not key.endswith(_EXTRA_STATE)]
        assert not [*lost, *unexpected], f"the checkpoint lacks {lost} and has {unexpected}"


def transformer_config(config: PolicyConfig, architecture: Architecture, device: DeviceSetup) -> TransformerConfig:
    """Megatron's settings for a model; whether the device can make FP8 products is not asked."""
    dtype = torch_dtype(config.precision)
    interleaved = config.virtual_pipeline_model_parallel_size is not None
    return TransformerConfig(
        **_recomputation(config),
        **_fp8(config.fp8),
        **architecture.family.translate(architecture.hf_config).transformer,
        activation_func=torch.nn.functional.silu,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=config.tensor_model_parallel_size,
        pipeline_model_parallel_size=config.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=config.virtual_pipeline_model_parallel_size,
        # Interleaved stages send in both directions at once; where there are two, to the same rank. In one batch
        # Megatron takes gradients for activations, so they go one after the other.
        overlap_p2p_comm=interleaved,
        batch_p2p_comm=not interleaved,
        context_parallel_size=config.context_parallel_size,
        sequence_parallel=config.sequence_parallel,
        pipeline_dtype=dtype,
        params_dtype=dtype,
        bf16=config.precision is Precision.BF16,
        variable_seq_lengths=True,
        moe_token_dispatcher_type="alltoall",  # the default refuses variable lengths even without experts
        # The loss arrives divided by the step's global normaliser; Megatron must not rescale it per micro-batch.
        calculate_per_token_loss=True,
        use_cpu_initialization=device.type == "cpu",
        bias_activation_fusion=device.type == "cuda",
        masked_softmax_fusion=False,
        persist_layer_norm=device.type == "cuda",
        bias_dropout_fusion=device.type == "cuda",
        gradient_accumulation_fusion=False,
    )


def torch_dtype(precision: Precision) -> torch.dtype:
    """What torch calls it."""
    return torch.bfloat16 if precision is Precision.BF16 else torch.float32


def _recomputation(config: PolicyConfig) -> dict[str, Any]:
    match config.recompute_granularity:
        case None:
            return {}
        case RecomputeGranularity.SELECTIVE:
            # Not Megatron's choice, attention's core: fused attention keeps nothing that is worth it.
            return {"recompute_granularity": "selective", "recompute_modules": ["mlp", "moe"]}
        case RecomputeGranularity.FULL:
            return {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}


def _fp8(config: FP8Config | None) -> dict[str, Any]:
    if config is None:
        return {}
    # Transformer Engine's own defaults: gradients in E5M2 where a factor is for a whole tensor, and a past of 1024.
    for_tensors = config.recipe in (FP8Recipe.DELAYED, FP8Recipe.TENSORWISE)
    start, end = config.num_layers_at_start_in_bf16, config.num_layers_at_end_in_bf16
    return {
        "fp8": "hybrid" if for_tensors else "e4m3",
        "fp8_recipe": config.recipe.value,
        "fp8_amax_history_len": 1024,
        "fp8_amax_compute_algo": "max",
        "first_last_layers_bf16": start + end > 0,
        "num_layers_at_start_in_bf16": start,
        "num_layers_at_end_in_bf16": end,
    }


def model_groups() -> ModelGroups:
    """The groups over which the converters gather."""
    return ModelGroups(
        tp=parallel_state.get_tensor_model_parallel_group(), pp=parallel_state.get_pipeline_model_parallel_group()
    )
