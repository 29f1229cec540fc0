"""TRL's side of `grpo_step.py`: its GRPOTrainer, step by step, in an environment of its own.

ENVIRONMENT/bin/python benchmarks/grpo_step_trl.py CONFIG.json < one line per step
"""

import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.generation import vllm_generation
from turns import serve


class TimedTrainer(GRPOTrainer):  # type: ignore[misc]
    """Notes what a step generated, and how long that took."""

    generation = 0.0
    lengths: tuple[int, ...] = ()

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        begin = time.perf_counter()
        output = super()._generate_and_score_completions(inputs)
        self.generation = time.perf_counter() - begin
        self.lengths = tuple(output["completion_mask"].sum(1).tolist())
        return output


def reload_weights(generation: Any) -> None:
    """In place of TRL's own sync, which hands tensors to a model whose weights vLLM has packed for the CPU."""
    runner = generation.llm.llm_engine.model_executor.driver_worker.model_runner
    runner.reload_weights(weights_iterator=generation._iter_named_params())
    generation.llm.reset_prefix_cache()


class Turns(TrainerCallback):  # type: ignore[misc]
    """Between two steps the trainer waits for its turn."""

    def __init__(self) -> None:
        self.next_turn = serve()
        self.trainer: TimedTrainer | None = None
        self.found: dict[str, float] | None = None
        self.begin = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.next_turn(self.found):
            sys.exit(0)
        self.begin = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.trainer is not None
        seconds = time.perf_counter() - self.begin
        self.found = {
            "seconds": seconds,
            "training": seconds - self.trainer.generation,
            "tokens": sum(self.trainer.lengths),
            "longest": max(self.trainer.lengths),
            "reward": self.trainer._metrics["train"]["reward"][-1],
        }


def main() -> None:
    turns = Turns()
    config = json.loads(Path(sys.argv[1]).read_text())
    right = config["right"]

    def reward(completions: list[str], **_: Any) -> list[float]:
        return [float(completion.endswith(right)) for completion in completions]

    if config["enforce_eager"]:
        vllm_generation.LLM = partial(vllm_generation.LLM, enforce_eager=True)
    trainer = TimedTrainer(
        model=config["model"],
        processing_class=AutoTokenizer.from_pretrained(config["model"]),
        reward_funcs=reward,
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in config["prompts"]]),
        args=GRPOConfig(**config["arguments"]),
        callbacks=[turns],
    )
    turns.trainer = trainer
    if trainer.use_vllm:
        trainer.vllm_generation.sync_weights = partial(reload_weights, trainer.vllm_generation)
    trainer.train()


if __name__ == "__main__":
    main()
