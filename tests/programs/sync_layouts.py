"""Engines that outlive their trainers: one Megatron layout after the other syncs with the same vLLM engines.

Arguments: `model` (a folder), `engines`, `engine_tp`, `layouts` (of tp, pp, vpp by name). Four ranks. In each layout
the policy starts anew from the folder; after each of three updates and syncs, rank 0's result says how far the engines'
greedy tokens and log-probs are from the logits that Megatron itself computes.
"""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from ranks import read_arguments, write_result
from tiny import random_sequences, train_config

from megatron_rl.algorithms.losses import policy_gradient_loss
from megatron_rl.config.schema import TrainConfig
from megatron_rl.parallel import Parallel, setup_parallel
from megatron_rl.policy.forward import forward_logits
from megatron_rl.policy.model import Architecture
from megatron_rl.policy.policy import Policy
from megatron_rl.rollout.rollout import Rollout
from megatron_rl.rollout.samples import Sample, Sampling

UPDATES, MAX_NEW_TOKENS, CONTEXT = 3, 12, 128
PROMPTS = [list(sequence.tokens[:20]) for sequence in random_sequences("prompts", 4, sft=True)]


def config_of(arguments: dict[str, Any], layout: dict[str, Any]) -> TrainConfig:
    return train_config(
        arguments["model"],
        cluster__gpus_per_node=4,
        policy__tensor_model_parallel_size=layout["tp"],
        policy__pipeline_model_parallel_size=layout["pp"],
        policy__virtual_pipeline_model_parallel_size=layout.get("vpp"),
        policy__make_vocab_size_divisible_by=24,  # 500 tokens: 504 rows at TP=1, 528 at TP=2
        policy__optimizer={"lr": 3e-3, "lr_warmup_steps": 0},
        generation__num_engines=arguments["engines"],
        generation__tensor_parallel_size=arguments["engine_tp"],
        generation__verify_sync=1,
    )


def greedy(rollout: Rollout) -> list[Sample]:
    """Every prompt's greedy response, on every rank."""
    mine: list[Sample] = []
    rollout.generate(PROMPTS, 1, Sampling(0.0, 1.0, -1, MAX_NEW_TOKENS), "greedy", mine.append)
    everyone: list[list[Sample]] = [[]] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return sorted((s for part in everyone for s in part), key=lambda sample: sample.request.prompt_index)


def distances(policy: Policy, parallel: Parallel, samples: list[Sample]) -> tuple[float, float]:
    """How far log-probs are from Megatron's, and how much likelier its own greedy tokens are; the worst of all."""
    worst = (0.0, 0.0)
    for sample in samples:
        prompt = sample.request.prompt_tokens
        logits = forward_logits(policy.chunks, prompt + sample.tokens, parallel)
        if logits is not None:
            log_probs = logits[len(prompt) - 1 : -1].log_softmax(-1)
            chosen = log_probs.gather(1, torch.tensor(sample.tokens)[:, None])[:, 0]
            error = (chosen - torch.tensor(sample.log_probs)).abs().max()
            better = (log_probs.max(-1).values - chosen).max()
            worst = max(worst[0], float(error)), max(worst[1], float(better))
    everyone = [worst] * dist.get_world_size()
    dist.all_gather_object(everyone, worst)
    return max(error for error, _ in everyone), max(better for _, better in everyone)


def updates(policy: Policy, parallel: Parallel, rollout: Rollout, version: int) -> list[dict[str, Any]]:
    found = []
    samples: list[Sample] = []
    for number in range(UPDATES):
        policy.train_step(random_sequences(f"update {number}", 9, sft=False), policy_gradient_loss)
        moved = distances(policy, parallel, samples)[0]  # what the engines still have
        rollout.sync(version + number)
        samples = greedy(rollout)
        log_probs, tokens = distances(policy, parallel, samples)
        versions = sorted({sample.policy_version - version for sample in samples})
        found.append({"log_probs": log_probs, "tokens": tokens, "moved": moved, "versions": versions})
    return found


def main() -> None:
    arguments, folder = read_arguments()
    model = Path(arguments["model"])
    rollout: Rollout | None = None
    result = {}
    for number, (name, layout) in enumerate(arguments["layouts"].items()):
        config = config_of(arguments, layout)
        parallel = setup_parallel(config)
        policy = Policy(config.policy, Architecture.of_folder(model, config.policy), parallel)
        policy.load_hf(model)
        if rollout is None:
            assert config.generation is not None
            rollout = Rollout(model, config.generation, config.policy.precision, parallel, policy.export(), CONTEXT)
        else:
            rollout._parallel, rollout._export = parallel, policy.export()
            rollout._connect()
        result[name] = updates(policy, parallel, rollout, version=number * UPDATES)
        if parallel.is_main and number == len(arguments["layouts"]) - 1:
            write_result(folder, result)
        dist.barrier()
        parallel_state.destroy_model_parallel()
        dist.init_process_group = lambda *_, **__: None  # the job stays, only its groups are made anew
    assert rollout is not None
    rollout.close()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
