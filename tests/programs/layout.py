"""One parallel layout, on real ranks: log-probs, training, export and checkpoints of the tiny models.

Arguments: `tp`, `pp`, `sp`, `vpp`, `cp`, `recompute`, `offload` (before every step), `models` (name to folder), `seed`
(of the sequences of log-probs and of `VARIANTS`), `golden` (also ten
steps of each of these), `budgets` (micro-batch token budgets to compare), `resume` (a list of
[run folder, sequence_parallel, steps made]). Rank 0's result holds what `test_layouts.py` compares; tensors go to
safetensors files in the job's folder.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ranks import read_arguments, write_result
from safetensors.torch import save_file
from saving import save_checkpoint
from tiny import (
    TEMPERATURE,
    VARIANTS,
    random_sequences,
    step_sequences,
    train_config,
    variant_sequences,
)

from megatron_rl.algorithms.losses import policy_gradient_loss, sft_loss
from megatron_rl.checkpoint.reader import load_weights, resume
from megatron_rl.config.schema import TrainConfig
from megatron_rl.parallel import Parallel, setup_parallel
from megatron_rl.policy.model import Architecture
from megatron_rl.policy.policy import Policy
from megatron_rl.run_folder import RunFolder

STEPS, SAVED_STEP, AGAIN_SAVED_STEP = 10, 5, 7


class Layout:
    """The layout under test, and everything done with it."""

    def __init__(self, arguments: dict[str, Any], folder: Path) -> None:
        self.arguments, self.folder = arguments, folder
        self.parallel: Parallel = setup_parallel(self.config("untied"))

    def config(self, model: str, sp: bool | None = None, budget: int = 300) -> TrainConfig:
        return train_config(
            self.arguments["models"][model],
            cluster__gpus_per_node=self.arguments["ranks"],
            policy__tensor_model_parallel_size=self.arguments["tp"],
            policy__pipeline_model_parallel_size=self.arguments["pp"],
            policy__virtual_pipeline_model_parallel_size=self.arguments.get("vpp"),
            policy__context_parallel_size=self.arguments.get("cp", 1),
            policy__recompute_granularity=self.arguments.get("recompute"),
            policy__sequence_parallel=self.arguments["sp"] if sp is None else sp,
            policy__micro_batch_tokens=budget,
            policy__make_vocab_size_divisible_by=self.arguments.get("vocab_divisor", 16),
        )

    def policy(self, model: str, load: bool = True, **changes: Any) -> Policy:
        config = self.config(model, **changes).policy
        folder = Path(self.arguments["models"][model])
        policy = Policy(config, Architecture.of_folder(folder, config), self.parallel, TEMPERATURE)
        if load:
            policy.load_hf(folder)
        return policy

    def off_policy(self) -> dict[str, float]:
        """A batch's second update: against the log-probs of the policy before four others."""
        policy = self.policy("untied")
        sequences = step_sequences(4, sft=False)
        old = policy.log_probs(sequences)
        sequences = [replace(sequence, old_log_probs=o) for sequence, o in zip(sequences, old, strict=True)]
        for step in range(4):
            policy.train_step(step_sequences(step, sft=False), policy_gradient_loss)
        return policy.train_step(sequences, policy_gradient_loss)

    def variants(self) -> list[dict[str, float]]:
        """One step with each of `VARIANTS`."""
        policy = self.policy("untied")
        policy.keep_reference()
        return [variant_step(policy, self.arguments["seed"], variant) for variant in VARIANTS]

    def golden(self, variant: str) -> list[dict[str, float]]:
        """Ten steps with one of them, on batches that are always the same."""
        policy = self.policy("untied")
        policy.keep_reference()
        return [variant_step(policy, f"golden {step}", variant) for step in range(STEPS)]

    def exported(self, policy: Policy, name: str) -> None:
        """Write the policy's Hugging Face tensors to `name.safetensors`."""
        tensors = {key: tensor.clone() for key, tensor in policy.export()}
        if self.parallel.is_main:
            save_file(tensors, self.folder / f"{name}.safetensors")

    def trained(self, model: str, sft: bool) -> list[dict[str, float]]:
        """Ten steps; the policy of SFT is saved after five of them, and exported at the end."""
        policy = self.policy(model)
        run = RunFolder(self.folder / f"run_{model}")
        metrics = []
        for step in range(STEPS):
            if self.arguments.get("offload"):
                policy.offload()
                assert not any(buffer.grad_data.untyped_storage().size() for buffer in policy._wrapped[0].buffers)
            metrics.append(policy.train_step(step_sequences(step, sft), sft_loss if sft else policy_gradient_loss))
            if sft and step + 1 == SAVED_STEP:
                if self.arguments.get("offload"):
                    policy.offload()
                save_checkpoint(run, policy, self.parallel, SAVED_STEP, Path(self.arguments["models"][model]))
        if sft:
            self.exported(policy, f"{model}_trained")
        return metrics

    def resumed(self, model: str, run: str, sp: bool, name: str) -> dict[str, Any]:
        """The last five SFT steps from a checkpoint of another job and maybe layout, stopped and resumed once more."""
        policy = self.policy(model, load=False, sp=sp)
        step = resume(RunFolder(Path(run)), policy)
        metrics = [policy.train_step(step_sequences(i, sft=True), sft_loss) for i in range(step, AGAIN_SAVED_STEP)]
        own = RunFolder(self.folder / f"run_{model}_{name}")
        save_checkpoint(own, policy, self.parallel, AGAIN_SAVED_STEP, Path(self.arguments["models"][model]))
        policy = self.policy(model, load=False, sp=sp)
        again = resume(own, policy)
        metrics += [policy.train_step(step_sequences(i, sft=True), sft_loss) for i in range(again, STEPS)]
        self.exported(policy, f"{model}_{name}")
        return {"steps": [step, again], "metrics": metrics, "counters": step_counters(policy)}

    def weights_only(self, model: str, run: str, name: str) -> None:
        """Weights of a checkpoint without its optimizer."""
        policy = self.policy(model, load=False)
        load_weights(RunFolder(Path(run)).checkpoint(SAVED_STEP), policy)
        self.exported(policy, f"{model}_{name}")


def variant_step(policy: Policy, seed: int | str, variant: str) -> dict[str, float]:
    settings, sequences = VARIANTS[variant][2], variant_sequences(seed, variant)
    if settings.kl_penalty > 0:
        found = policy.reference_log_probs(sequences)
        sequences = [replace(s, reference_log_probs=x) for s, x in zip(sequences, found, strict=True)]
    return policy.train_step(sequences, partial(policy_gradient_loss, settings=settings))


def step_counters(policy: Policy) -> list[float]:
    """The optimizer's step counters, each value once."""
    (inner,) = getattr(policy.optimizer, "chained_optimizers", [policy.optimizer])
    return sorted({float(state["step"]) for state in inner.optimizer.state.values()})


def exercise(layout: Layout) -> dict[str, Any]:
    arguments = layout.arguments
    result: dict[str, Any] = {"log_probs": {}, "sft": {}, "resumed": {}}
    for model in arguments["models"]:
        policy = layout.policy(model)
        layout.exported(policy, f"{model}_loaded")
        result["log_probs"][model] = policy.log_probs(random_sequences(arguments["seed"], 9, sft=False))
        result["sft"][model] = layout.trained(model, sft=True)
        for number, (job, sp) in enumerate(arguments.get("resume", [])):
            run = f"{job}/run_{model}"
            result["resumed"][f"{model}_{number}"] = layout.resumed(model, run, sp, f"resumed_{number}")
            layout.weights_only(model, run, f"weights_{number}")
    result["grpo"] = layout.trained("untied", sft=False)
    result["off_policy"] = layout.off_policy()
    result["variants"] = layout.variants()
    result["golden"] = {variant: layout.golden(variant) for variant in VARIANTS if arguments.get("golden")}
    result["budgets"] = {
        budget: layout.policy("untied", budget=budget).train_step(step_sequences(0, sft=False), policy_gradient_loss)
        for budget in arguments.get("budgets", [])
    }
    return result


def main() -> None:
    arguments, folder = read_arguments()
    torch.use_deterministic_algorithms(True)
    layout = Layout(arguments, folder)
    result = exercise(layout)
    if layout.parallel.is_main:
        write_result(folder, result)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
