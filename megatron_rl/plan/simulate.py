"""The same step on other numbers of GPUs: where it stops to get faster, and who waits then."""

from collections.abc import Sequence
from dataclasses import replace

from converters.hf_config import ModelShape
from megatron_rl.config.schema import TrainConfig
from megatron_rl.errors import InputError
from megatron_rl.plan.assumptions import ASSUMPTIONS, Assumptions
from megatron_rl.plan.hardware import GPU, H100
from megatron_rl.plan.speed import StepEstimate, estimate_step

GPU_COUNTS = (8, 16, 32, 64, 128, 256, 512, 1024)


def simulate_scales(
    config: TrainConfig,
    shape: ModelShape,
    gpu: GPU = H100,
    assumptions: Assumptions = ASSUMPTIONS,
    kv_cache_tokens: int | None = None,
    gpu_counts: Sequence[int] = GPU_COUNTS,
) -> list[StepEstimate]:
    """The step of a GRPO recipe (same batch, layout and lengths) on each number of GPUs that its layout divides;
    `generation.num_engines` is left to its default.

    Raises:
        InputError: the recipe generates nothing; else as `estimate_step`.
    """
    if config.grpo is None or config.generation is None:
        raise InputError(f"algorithm={config.algorithm.value}: scale is simulated for grpo, which generates; plan that")
    policy, generation = config.policy, replace(config.generation, num_engines=None)
    replica = policy.tensor_model_parallel_size * policy.pipeline_model_parallel_size * policy.context_parallel_size
    steps = []
    for count in gpu_counts:
        gpus_per_node = min(count, config.cluster.gpus_per_node)
        if any(count % part for part in (replica, generation.tensor_parallel_size, gpus_per_node)):
            continue
        cluster = replace(config.cluster, num_nodes=count // gpus_per_node, gpus_per_node=gpus_per_node)
        scaled = replace(config, cluster=cluster, generation=generation)
        steps.append(estimate_step(scaled, shape, gpu, assumptions, kv_cache_tokens))
    return steps
