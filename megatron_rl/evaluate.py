"""A model's accuracy on a benchmark: vLLM generates, the verifiers judge; on one process, or on a job's many."""

import json
import os
import statistics
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from converters.errors import ConversionError
from converters.hf_config import weight_files
from megatron_rl.config.loader import parse_overrides, refusals
from megatron_rl.config.schema import ClusterConfig, DataConfig, Domain, GenerationConfig, Precision, VerifierConfig
from megatron_rl.errors import InputError
from megatron_rl.run_folder import RunFolder, write_json, write_text

if TYPE_CHECKING:
    from megatron_rl.experience import Experience, OnProgress
    from megatron_rl.parallel import Parallel
    from megatron_rl.stage import PromptSet


_PROMPT_TOKENS = 2048


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Defaults are the paper's way to evaluate (arXiv 2505.16400, section 4.1)."""

    data: DataConfig = field(default_factory=DataConfig)
    generation: GenerationConfig = field(
        default_factory=lambda: GenerationConfig(temperature=0.6, top_p=0.95, max_new_tokens=32768)
    )
    num_generations_per_prompt: int = 1
    max_total_sequence_length: int | None = None
    """Prompt and response together, in tokens; default: 2,048 for the prompt."""
    precision: Precision = Precision.BF16
    seed: int = 1
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    verifier: VerifierConfig = field(default_factory=VerifierConfig)

    @property
    def context(self) -> int:
        """`max_total_sequence_length` or its default."""
        return self.max_total_sequence_length or self.generation.max_new_tokens + _PROMPT_TOKENS


def load_evaluation(benchmark: Path, overrides: Sequence[str]) -> EvaluationConfig:
    """The configuration with `key=value` overrides.

    Raises:
        InputError: an unknown key or a wrong value.
    """
    with refusals(f"eval: {' '.join(overrides)}"):
        merged = OmegaConf.merge(
            OmegaConf.structured(EvaluationConfig), {"data": {"path": str(benchmark)}}, parse_overrides(overrides)
        )
        config = OmegaConf.to_object(merged)
    assert isinstance(config, EvaluationConfig)
    return config


def model_folder(checkpoint: Path) -> Path:
    """The Hugging Face folder of a model: `checkpoint` itself, or what a run or one of its checkpoints exported.

    Raises:
        InputError: there is none.
    """
    for folder in (checkpoint, RunFolder(checkpoint).hf):
        try:
            weight_files(folder)
        except ConversionError:
            continue
        return folder
    raise InputError(
        f"{checkpoint}: no weights of a Hugging Face model there or in its hf/; "
        f"megatron-rl convert megatron-to-hf {checkpoint} FOLDER makes them"
    )


def evaluate(checkpoint: Path, config: EvaluationConfig, out: Path | None) -> dict[str, Any] | None:
    """Generate and judge; called by every process of a job.

    Returns:
        The main process's summary: `accuracy` is the mean over all samples (avg@k), `pass_k` the share of prompts with
        a right one. With `out` samples and summary are also written to this folder. None on the other processes.

    Raises:
        InputError: a file is missing or broken, or a prompt too long.
    """
    from megatron_rl.data.problems import load_problems
    from megatron_rl.data.prompts import check_prompt_lengths, encode_prompt, load_tokenizer
    from megatron_rl.preflight import check_verifier

    folder, problems = model_folder(checkpoint), load_problems(config.data)
    check_verifier(config.verifier, runs_code=config.data.domain is Domain.CODE)
    tokenizer = load_tokenizer(folder)
    prompts = [encode_prompt(tokenizer, problem) for problem in problems]
    check_prompt_lengths(config.data.path, problems, prompts, config.context, config.generation.max_new_tokens)
    from megatron_rl.stage import PromptSet  # with it comes Megatron-Core

    prompt_set = PromptSet(problems, prompts)
    experience = _collect(folder, config, prompt_set)
    if experience is None:
        return None
    summary = {"checkpoint": str(checkpoint), "benchmark": config.data.path} | _figures(experience, len(problems))
    if out is not None:
        _write(out, experience, prompt_set, summary)
    return summary


def _collect(folder: Path, config: EvaluationConfig, prompt_set: "PromptSet") -> "Experience | None":
    """All samples, on the main process."""
    import torch.distributed as dist

    from megatron_rl.experience import ExperienceMaker
    from megatron_rl.progress import Progress
    from megatron_rl.rollout.rollout import Rollout
    from megatron_rl.rollout.samples import Sampling

    generation = config.generation
    parallel = _join(config)
    with ExitStack() as stack:
        stack.callback(dist.destroy_process_group)
        rollout = Rollout(folder, generation, config.precision, parallel, None, config.context)
        stack.callback(rollout.close)
        maker = ExperienceMaker(rollout, config.verifier)
        stack.callback(maker.close)
        show: OnProgress = lambda *_: None  # noqa: E731
        if parallel.is_main:
            show = stack.enter_context(Progress(Path(config.data.path).name, 1)).phase
        experience = maker.collect(
            prompt_set.problems,
            prompt_set.prompts,
            config.num_generations_per_prompt,
            Sampling(generation.temperature, generation.top_p, generation.top_k, generation.max_new_tokens),
            f"{config.seed}/evaluation",
            show,
        )
    return experience if parallel.is_main else None


def _join(config: EvaluationConfig) -> "Parallel":
    """This process's place in the job, or alone; Megatron has no part in it."""
    import torch.distributed as dist

    from megatron_rl.device import bind_stores, setup_device
    from megatron_rl.parallel import Parallel

    rank, world, local = (int(os.environ.get(key, default)) for key, default in _PLACE)
    device = setup_device(config.cluster.device, local)
    timeout = timedelta(minutes=config.cluster.timeout_minutes)
    store = dist.HashStore() if world == 1 else None
    bind_stores()
    dist.init_process_group("gloo", timeout=timeout, rank=rank, world_size=world, store=store)
    return Parallel(rank, world, tp=1, tp_rank=0, pp=1, pp_rank=0, dp=world, dp_rank=rank, device=device)


_PLACE = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))


def _figures(experience: "Experience", prompts: int) -> dict[str, Any]:
    from megatron_rl.validate import accuracies

    samples = experience.samples
    verdicts = Counter(sample.result.verdict.value for sample in samples)
    return {
        "prompts": prompts,
        "samples_per_prompt": len(samples) // prompts,
        **accuracies(experience),
        "verdicts": dict(verdicts),
        "length_mean": statistics.fmean(len(sample.sample.tokens) for sample in samples),
        "truncated_fraction": sum(sample.sample.truncated for sample in samples) / len(samples),
        "seconds": round(experience.generation_seconds + experience.verification_wait_seconds, 1),
    }


def _write(out: Path, experience: "Experience", prompt_set: "PromptSet", summary: dict[str, Any]) -> None:
    from megatron_rl.validate import sample_record

    out.mkdir(parents=True, exist_ok=True)
    records = (sample_record(sample, prompt_set, 0, "evaluation") for sample in experience.samples)
    write_text(out / "samples.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    write_json(out / "summary.json", summary)
