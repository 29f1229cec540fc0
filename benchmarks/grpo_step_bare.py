"""The trainer's step against a bare Megatron-Core loop on the same packed micro-batches.

    RANK=0 WORLD_SIZE=1 ... python benchmarks/grpo_step_bare.py MODEL_FOLDER equal|long_tailed [--profile FILE]

Bare is forward, backward and optimizer step: Megatron's GPTModel with its own output layer and cross-entropy, its
DistributedDataParallel, pipeline schedule and optimizer, on micro-batches that are ready. The trainer's step packs them
first, and makes the policy-gradient loss, the entropy, the comparison with the engine's log-probs and the metrics. The
last line on standard output is JSON.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpo_step
import torch
import torch.distributed as dist
from markov_model import sample_length
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.pipeline_parallel import get_forward_backward_func

from megatron_rl.algorithms.losses import PolicyGradient, policy_gradient_loss
from megatron_rl.config.loader import to_config
from megatron_rl.config.schema import PolicyConfig
from megatron_rl.parallel import Parallel, setup_parallel
from megatron_rl.policy.batch import MicroBatch, TrainSequence
from megatron_rl.policy.layer_spec import layer_spec
from megatron_rl.policy.model import Architecture, transformer_config
from megatron_rl.policy.policy import Policy

PROMPT_LENGTH, REPEATS = 13, 10


class BareLoop:
    """Megatron-Core as its own examples use it."""

    def __init__(self, config: PolicyConfig, architecture: Architecture, parallel: Parallel) -> None:
        settings = transformer_config(config, architecture, parallel.device)
        self.model = DistributedDataParallel(
            settings,
            DistributedDataParallelConfig(use_distributed_optimizer=True, grad_reduce_in_fp32=True),
            GPTModel(
                config=settings,
                transformer_layer_spec=layer_spec(settings, False, settings.num_layers),
                vocab_size=architecture.shape.padded_vocab_size,
                max_sequence_length=config.max_total_sequence_length,
                share_embeddings_and_output_weights=False,
                position_embedding_type="rope",
            ),
        )
        settings.finalize_model_grads_func = lambda model, tokens=None, **kwargs: finalize_model_grads(
            model, None, **kwargs
        )
        optimizer = OptimizerConfig(optimizer="adam", lr=1e-6, clip_grad=1.0, use_distributed_optimizer=True)
        self.optimizer = get_megatron_optimizer(optimizer, [self.model])
        self.tokens = config.micro_batch_tokens

    def step(self, batches: list[MicroBatch]) -> None:
        self.model.zero_grad_buffer()
        self.optimizer.zero_grad()
        get_forward_backward_func()(
            forward_step_func=self._forward,
            data_iterator=iter(batches),
            model=self.model,
            num_microbatches=len(batches),
            seq_length=self.tokens,
            micro_batch_size=1,
            forward_only=False,
        )
        self.optimizer.step()

    @staticmethod
    def _forward(batches: Iterator[MicroBatch], model: torch.nn.Module) -> Any:
        batch = next(batches)
        ends, longest = batch.cu_seqlens, batch.longest
        packing = PackedSeqParams(
            qkv_format="thd",
            cu_seqlens_q=ends,
            cu_seqlens_kv=ends,
            max_seqlen_q=longest,
            max_seqlen_kv=longest,
        )
        losses = model(batch.tokens[None], None, None, labels=batch.labels[None], packed_seq_params=packing)

        def loss(losses: torch.Tensor) -> Any:
            value = (losses.squeeze(0) * batch.weights * batch.advantages).sum()
            return value, torch.ones((), dtype=torch.int32), {}

        return losses, loss


def sequences(workload: str) -> list[TrainSequence]:
    """As many as a step of `grpo_step.py` has, of its lengths, with random tokens and advantages."""
    rng = random.Random(1)
    lengths = [sample_length(grpo_step.CHAINS[workload], grpo_step.LIMITS[workload], rng) for _ in range(256)]
    weight = 1 / sum(lengths)
    return [
        TrainSequence(
            [rng.randrange(grpo_step.markov_model.VOCABULARY) for _ in range(PROMPT_LENGTH + length)],
            PROMPT_LENGTH,
            weight,
            rng.choice([-1.0, 1.0]),
            [-1.0] * length,
        )
        for length in lengths
    ]


def seconds(action: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def profile(action: Callable[[], Any], path: Path) -> None:
    """Where the step's CPU time goes, by torch's operators."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        action()
    path.write_text(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=25))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("workload", choices=[*grpo_step.CHAINS])
    parser.add_argument("--profile", type=Path, help="file for a table of the step's time by operator")
    arguments = parser.parse_args()
    settings = grpo_step.settings(arguments.folder.parent, grpo_step.LIMITS[arguments.workload])
    config = to_config(settings, source="benchmark")
    parallel = setup_parallel(config)
    architecture = Architecture.of_folder(arguments.folder, config.policy)
    policy = Policy(config.policy, architecture, parallel)
    policy.load_hf(arguments.folder)
    bare = BareLoop(config.policy, architecture, parallel)
    batch = sequences(arguments.workload)
    packed = policy._micro_batches(batch)
    loss = partial(policy_gradient_loss, settings=PolicyGradient())
    ways = {"trainer": lambda: policy.train_step(batch, loss), "bare": lambda: bare.step(packed)}
    found: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(REPEATS + 2):
        for name, way in ways.items():
            took = seconds(way)
            if repeat >= 2:  # the first ones warm up
                found[name].append(took)
    if arguments.profile is not None:
        profile(ways["trainer"], arguments.profile)
    medians = {f"{name}_seconds": round(statistics.median(values), 3) for name, values in found.items()}
    pairs = zip(found["bare"], found["trainer"], strict=True)
    ratio = round(statistics.median(bare / trainer for bare, trainer in pairs), 3)
    print(json.dumps(medians | {"of_bare": ratio, "micro_batches": len(packed)}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
