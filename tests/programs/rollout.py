"""Megatron and a real vLLM engine: three rounds of sync, generate, score and train.

Arguments: `model` (a folder), `tp`, `pp`, `engines`, `fault` in one more sync (`bit`: one bit of the weights changes on
its way; `kill`: the last engine's processes are killed), `hang` (stay after the result, to be killed). Rank 0's result
holds what `test_rollout.py` compares; the weights of the last sync go to `exported/`.
"""

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
from ranks import read_arguments, write_result
from safetensors.torch import save_file
from tiny import TEMPERATURE, random_sequences, train_config
from torch import Tensor

from converters.fp8 import quantise
from converters.hf_folder import copy_other_files
from megatron_rl.algorithms.losses import policy_gradient_loss
from megatron_rl.parallel import Parallel, any_rank, setup_parallel
from megatron_rl.policy.batch import TrainSequence
from megatron_rl.policy.model import Architecture
from megatron_rl.policy.policy import Policy
from megatron_rl.rollout import weight_sync
from megatron_rl.rollout.rollout import Rollout
from megatron_rl.rollout.samples import Sample, Sampling
from megatron_rl.rollout.weight_sync import QuantisedSource

ROUNDS, SAMPLES, MAX_NEW_TOKENS = 3, 4, 64
BUCKET_BYTES = 50_000  # below most tensors: every layer, and every fused parameter, comes in several buckets
PROMPTS = [list(sequence.tokens[:30]) for sequence in random_sequences("prompts", 12, sft=True)]


def generated(
    rollout: Rollout, parallel: Parallel, seed: str, temperature: float, samples: int, lengths: Sequence[float] = ()
) -> list[Sample]:
    """All engines' samples, in order, on every rank."""
    mine: list[Sample] = []
    sampling = Sampling(temperature, 1.0, -1, MAX_NEW_TOKENS)
    rollout.generate(PROMPTS, samples, sampling, seed, mine.append, expected_lengths=lengths)
    everyone: list[list[Sample]] = [[]] * parallel.world_size
    dist.all_gather_object(everyone, mine)
    return sorted(
        (sample for part in everyone for sample in part),
        key=lambda sample: (sample.request.prompt_index, sample.request.sample_index),
    )


def to_sequence(sample: Sample, position: int) -> TrainSequence:
    """To be trained on with large advantages of both signs, so that every update moves the policy visibly."""
    prompt = sample.request.prompt_tokens
    advantage = 1.0 if position % 2 else -0.5
    return TrainSequence(prompt + sample.tokens, len(prompt), 0.01, advantage, sample.log_probs)


def one_round(policy: Policy, rollout: Rollout, parallel: Parallel, version: int) -> dict[str, Any]:
    rollout.sync(version)
    samples = generated(rollout, parallel, f"1/{version}", TEMPERATURE, SAMPLES)
    last_first = range(len(PROMPTS))  # what is generated side by side is not the same
    again = generated(rollout, parallel, f"1/{version}", TEMPERATURE, SAMPLES, last_first)
    other = generated(rollout, parallel, f"2/{version}", TEMPERATURE, SAMPLES)
    sequences = [to_sequence(sample, i) for i, sample in enumerate(samples)]
    before = policy.log_probs(sequences)
    metrics = policy.train_step(sequences, policy_gradient_loss)
    after = policy.log_probs(sequences)
    return {
        "requests": [(s.request.prompt_index, s.request.sample_index, s.request.prompt_tokens) for s in samples],
        "versions": sorted({s.policy_version for s in samples + again + other}),
        "tokens": [s.tokens for s in samples],
        "tokens_again": [s.tokens for s in again],
        "tokens_of_another_seed": [s.tokens for s in other],
        "texts": [s.text for s in samples],
        "truncated": [s.truncated for s in samples],
        "rollout_log_probs": [s.log_probs for s in samples],
        "rollout_log_probs_again": [s.log_probs for s in again],
        "policy_log_probs": before,
        "moved": max(abs(a - b) for x, y in zip(before, after, strict=True) for a, b in zip(x, y, strict=True)),
        "metrics": metrics,
    }


def main() -> None:
    arguments, folder = read_arguments()
    config = train_config(
        arguments["model"],
        cluster__gpus_per_node=2,
        generation__num_engines=arguments["engines"],
        policy__tensor_model_parallel_size=arguments["tp"],
        policy__pipeline_model_parallel_size=arguments["pp"],
        policy__optimizer={"lr": 3e-3, "lr_warmup_steps": 0},
    )
    parallel = setup_parallel(config)
    model = Path(arguments["model"])
    policy = Policy(config.policy, Architecture.of_folder(model, config.policy), parallel, TEMPERATURE)
    policy.load_hf(model)
    sent: list[int] = []
    weight_sync.connect = partial(_connect_with_small_buckets, connect=weight_sync.connect, sent=sent)  # type: ignore[assignment]
    assert config.generation is not None
    generation = replace(config.generation, max_num_seqs=16, verify_sync=1)
    rollout = Rollout(model, generation, config.policy.precision, parallel, policy.export(), 128)
    rounds = [one_round(policy, rollout, parallel, version) for version in range(ROUNDS)]
    rollout.sync(ROUNDS)
    greedy = generated(rollout, parallel, "greedy", 0.0, 1)
    export = policy.export()
    whole = {name: tensor.clone() for name, tensor in export}
    if parallel.is_main:
        (folder / "exported").mkdir()
        copy_other_files(model, folder / "exported")
        save_file(whole, folder / "exported" / "model.safetensors", metadata={"format": "pt"})
    fp8 = fp8_differences(QuantisedSource(export), whole)
    damage = damaged_sync(rollout) if arguments["fault"] == "bit" else ""
    healing = sync_with_a_death(rollout, parallel) if arguments["fault"] == "kill" else {}
    children: list[list[int]] = [[]] * parallel.world_size
    dist.all_gather_object(children, [child.pid for child in psutil.Process().children(recursive=True)])
    listening: list[list[str]] = [[]] * parallel.world_size
    dist.all_gather_object(listening, listening_addresses())
    files: list[list[str]] = [[]] * parallel.world_size
    dist.all_gather_object(files, socket_files())
    if parallel.is_main:
        write_result(
            folder,
            {
                "listening": listening,
                "socket_files": files,
                "rounds": rounds,
                "greedy": [sample.tokens for sample in greedy],
                "greedy_version": sorted({sample.policy_version for sample in greedy}),
                "prompts": PROMPTS,
                "processes": children,
                "buckets": sent,
                "fp8": fp8,
                "damage": damage,
                "healing": healing,
            },
        )
    while arguments["hang"]:
        time.sleep(1)
    rollout.close()
    dist.barrier()
    dist.destroy_process_group()


def listening_addresses() -> list[str]:
    """Where this process and all that it started listen for TCP connections."""
    here = psutil.Process()
    connections = [
        found for process in [here, *here.children(recursive=True)] for found in process.net_connections("tcp")
    ]
    return [found.laddr.ip for found in connections if found.status == psutil.CONN_LISTEN]


def socket_files() -> list[str]:
    """What this process's own Unix sockets have in a file system."""
    return sorted({found.laddr for found in psutil.Process().net_connections("unix") if Path(found.laddr).is_socket()})


def fp8_differences(source: QuantisedSource, whole: dict[str, Tensor]) -> list[str]:
    """Names of tensors that are streamed otherwise than promised, or with other bits than the whole weights give."""
    wanted = [pair for name, tensor in whole.items() for pair in quantise(name, tensor)]
    found = [(name, tensor.clone()) for name, tensor in source]
    assert len(found) > len(whole)
    return [
        f"{name} for {other} ({meta.name})"
        for (name, tensor), (other, expected), meta in zip(found, wanted, source.metadata(), strict=True)
        if (name, tensor.dtype, tensor.shape) != (meta.name, meta.dtype, meta.shape)
        or name != other
        or not torch.equal(tensor.view(torch.uint8), expected.view(torch.uint8))
    ]


def damaged_sync(rollout: Rollout) -> str:
    """A sync in which one bit of the last tensor changes on its way; what the engine says of it."""
    engine, sender = rollout._engine, rollout._sender
    if engine is not None:
        send = engine.update_weights

        def send_damaged(update: dict[str, Any]) -> None:
            if update["bucket"] == len(sender._buckets) - 1:
                _, _, _, offset = sender._buckets[-1].entries[-1]
                sender._buffer[offset + 5] ^= 4
            send(update)

        engine.update_weights = send_damaged  # type: ignore[assignment, method-assign]
    try:
        rollout.sync(ROUNDS + 1)
    except Exception as error:
        any_rank(False)  # which the other ranks wait for; in a run this one would end, and the launcher them
        return str(error)
    return ""


def sync_with_a_death(rollout: Rollout, parallel: Parallel) -> dict[str, Any]:
    """The last sync again, in the middle of which the last engine is killed; what all engines then generate."""
    engine, sender = rollout._engine, rollout._sender
    if engine is not None and parallel.rank == parallel.world_size - 1:
        send, processes = engine.update_weights, psutil.Process().children(recursive=True)

        def send_and_kill(update: dict[str, Any]) -> None:
            if update["bucket"] == len(sender._buckets) // 2:
                engine.update_weights = send  # type: ignore[method-assign]
                for process in processes:
                    if process.name().startswith("VLLM"):
                        os.kill(process.pid, signal.SIGKILL)
            send(update)

        engine.update_weights = send_and_kill  # type: ignore[assignment, method-assign]
    rollout.sync(ROUNDS + 1)
    greedy = generated(rollout, parallel, "greedy", 0.0, 1)
    restarts: list[int] = [0] * parallel.world_size
    dist.all_gather_object(restarts, rollout.take_recoveries()[0])
    return {
        "restarts": restarts,
        "greedy": [sample.tokens for sample in greedy],
        "version": sorted({sample.policy_version for sample in greedy}),
    }


def _connect_with_small_buckets(*args: Any, connect: Any, sent: list[int]) -> Any:
    sender = connect(*args[:-2], BUCKET_BYTES)
    sent.append(len(sender._buckets))
    return sender


if __name__ == "__main__":
    main()
