"""A model's accuracy on a benchmark: vLLM generates, the verifiers judge; on one process, or on a job's many."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from converters.errors import ConversionError
from converters.hf_config import read_config, size_of, weight_files
from megatron_rl.config.loader import parse_overrides, refusals
from megatron_rl.config.schema import (
    ClusterConfig,
    DataConfig,
    Domain,
    GenerationConfig,
    Precision,
    ServerConfig,
    VerifierConfig,
)
from megatron_rl.errors import InputError
from megatron_rl.evaluation.benchmarks import Benchmark
from megatron_rl.evaluation.figures import figures_of, problem_figures
from megatron_rl.evaluation.table import markdown_table
from megatron_rl.rollout.samples import Sampling
from megatron_rl.run_folder import RunFolder, write_json, write_lines, write_text

if TYPE_CHECKING:
    from megatron_rl.evaluation.journal import EvaluationJournal
    from megatron_rl.evaluation.served import ServedRollout
    from megatron_rl.experience import Experience, ExperienceMaker
    from megatron_rl.parallel import Parallel
    from megatron_rl.rollout.rollout import Rollout
    from megatron_rl.stage import PromptSet

_PROMPT_TOKENS = 2048


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Defaults are the paper's way to evaluate (arXiv 2505.16400, section 4.1)."""

    data: DataConfig = field(default_factory=DataConfig)
    generation: GenerationConfig = field(
        default_factory=lambda: GenerationConfig(temperature=0.6, top_p=0.95, max_new_tokens=32768)
    )
    num_generations_per_prompt: int | None = None
    """Default: each benchmark's own, which for those of the paper is the paper's; of a file one."""
    max_total_sequence_length: int | None = None
    """Prompt and response together, in tokens; default: 2,048 for the prompt."""
    precision: Precision = Precision.BF16
    seed: int = 1
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    verifier: VerifierConfig = field(default_factory=VerifierConfig)
    server: ServerConfig = field(default_factory=ServerConfig)

    @property
    def context(self) -> int:
        """`max_total_sequence_length` or its default."""
        return self.max_total_sequence_length or self.generation.max_new_tokens + _PROMPT_TOKENS


def load_evaluation(overrides: Sequence[str]) -> EvaluationConfig:
    """The configuration with `key=value` overrides.

    Raises:
        InputError: an unknown key or a wrong value.
    """
    with refusals(f"eval: {' '.join(overrides)}"):
        base = {"data": {"path": "none"}}  # each benchmark has its own
        merged = OmegaConf.merge(OmegaConf.structured(EvaluationConfig), base, parse_overrides(overrides))
        config = OmegaConf.to_object(merged)
    assert isinstance(config, EvaluationConfig)
    generation = config.generation
    for key, value, is_right in (
        ("num_generations_per_prompt", config.num_generations_per_prompt, (config.num_generations_per_prompt or 1) > 0),
        ("generation.max_new_tokens", generation.max_new_tokens, generation.max_new_tokens > 0),
        ("generation.temperature", generation.temperature, generation.temperature >= 0),
        ("generation.top_p", generation.top_p, 0 < generation.top_p <= 1),
    ):
        if not is_right:
            raise InputError(f"eval: {key}={value}: out of range")
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


def evaluate(
    checkpoint: Path, benchmarks: Sequence[Benchmark], config: EvaluationConfig, out: Path | None
) -> dict[str, Any] | None:
    """Generate and judge; called by every process of a job.

    With `out` every sample is kept there the moment it has its verdict: the same command, given again after the job was
    killed, generates those that are missing. A process that freezes or gets stuck is named, and the job ends with 76.

    Returns:
        The main process's summary, of each benchmark by its name: `accuracy` is the mean over all samples (avg@k). With
        `out` samples and summary are also written to this folder. None on the other processes.

    Raises:
        InputError: a file is missing or broken, or a prompt too long.
    """
    from megatron_rl.data.prompts import check_prompt_lengths, encode_prompt, load_tokenizer
    from megatron_rl.evaluation.journal import EvaluationJournal
    from megatron_rl.preflight import check_verifier

    folder = checkpoint
    if config.server.url is None:
        folder = model_folder(checkpoint)
        _check_context(folder, config)
    problems = {benchmark.name: benchmark.problems() for benchmark in benchmarks}
    runs_code = any(problem.domain is Domain.CODE for found in problems.values() for problem in found)
    check_verifier(config.verifier, runs_code=runs_code)
    tokenizer = load_tokenizer(folder)
    prompts = {name: [encode_prompt(tokenizer, problem) for problem in found] for name, found in problems.items()}
    for name, found in problems.items():
        lengths = config.context, config.generation.max_new_tokens
        check_prompt_lengths(name, found, prompts[name], *lengths, "max_total_sequence_length")
    from megatron_rl.stage import PromptSet  # with it comes Megatron-Core

    if out is not None:
        _check_writable(out)
    sets = {name: PromptSet(found, prompts[name]) for name, found in problems.items()}
    figures, journals = {}, []
    with _maker(folder, config, sets, out) as (parallel, maker):
        for benchmark in benchmarks:
            prompt_set = sets[benchmark.name]
            if out is not None:
                asked = _asked(folder, benchmark, config, prompt_set)
                journals.append(EvaluationJournal(out / benchmark.name / "journal", asked, parallel.rank))
            journal = journals[-1] if journals else None
            experience = _collect(benchmark, config, prompt_set, journal, parallel.is_main, maker)
            if parallel.is_main:
                figures[benchmark.name] = figures_of(experience, prompt_set.problems)
                if out is not None:
                    _write(out / benchmark.name, experience, prompt_set, figures[benchmark.name])
    if not parallel.is_main:
        return None
    summary = {"checkpoint": str(checkpoint), "benchmarks": figures}
    if out is not None:
        write_json(out / "summary.json", summary)
        write_text(out / "table.md", markdown_table(checkpoint.name, figures))
    for journal in journals:  # until now a restart needs all of them
        journal.remove()
    return summary


def _check_context(folder: Path, config: EvaluationConfig) -> None:
    context = size_of(read_config(folder), "max_position_embeddings", config.context)
    if config.context > context:
        raise InputError(
            f"{folder}: max_position_embeddings={context}, and {config.context} tokens are asked for; lower "
            "max_total_sequence_length, or without it generation.max_new_tokens"
        )


def _check_writable(out: Path) -> None:
    """Before an hour of generation and not after it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written: {error}") from error


@contextmanager
def _maker(
    folder: Path, config: EvaluationConfig, sets: Mapping[str, "PromptSet"], out: Path | None
) -> Iterator[tuple["Parallel", "ExperienceMaker"]]:
    """With engines of our own, or with a server."""
    import torch.distributed as dist

    from megatron_rl.experience import ExperienceMaker
    from megatron_rl.watchdog import watch

    parallel = _join(config)
    with ExitStack() as stack:
        stack.callback(dist.destroy_process_group)
        if config.server.url is None:  # a server's answers have a deadline of their own
            run = RunFolder(out or Path(stack.enter_context(tempfile.TemporaryDirectory())))
            stack.enter_context(watch(parallel, run, config.cluster))
        rollout = _rollout(folder, config, parallel, sets)
        stack.callback(rollout.close)
        maker = ExperienceMaker(rollout, config.verifier)
        stack.callback(maker.close)
        yield parallel, maker


def _rollout(
    folder: Path, config: EvaluationConfig, parallel: "Parallel", sets: Mapping[str, "PromptSet"]
) -> "Rollout | ServedRollout":
    if config.server.url is not None:
        from megatron_rl.data.prompts import user_message
        from megatron_rl.evaluation.served import ServedRollout

        pairs = [pair for one in sets.values() for pair in zip(one.prompts, one.problems, strict=True)]
        messages = {tuple(prompt): user_message(problem) for prompt, problem in pairs}
        return ServedRollout(config.server, folder, config.generation.max_num_seqs, parallel.is_main, messages)
    from megatron_rl.rollout.rollout import Rollout

    return Rollout(folder, config.generation, config.precision, parallel, None, config.context)


def _asked(folder: Path, benchmark: Benchmark, config: EvaluationConfig, prompt_set: "PromptSet") -> list[Any]:
    """All that the samples of a benchmark depend on."""
    if config.server.url is None:
        stats = [(path.name, path.stat()) for path in sorted(set(weight_files(folder).values()))]
        weights = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
    else:
        weights = [["served", config.server.model, config.server.api]]
    return [
        *(str(folder.resolve()), weights, prompt_set.prompts, benchmark.samples, config.seed),
        *(asdict(_sampling(config.generation)), config.generation.fp8, config.precision, config.context),
        # Verdicts are kept, too.
        [[p.answer, _digest(p.tests), p.fn_name, p.starter_code] for p in prompt_set.problems],
        *(config.verifier.code_timeout_seconds, config.verifier.code_budget_seconds),
    ]


def _digest(tests: Any) -> str:
    """Of a benchmark's tests, which together are gigabytes."""
    return hashlib.sha256(json.dumps(tests).encode()).hexdigest()


def _sampling(generation: GenerationConfig) -> Sampling:
    return Sampling(generation.temperature, generation.top_p, generation.top_k, generation.max_new_tokens)


def _collect(
    benchmark: Benchmark,
    config: EvaluationConfig,
    prompt_set: "PromptSet",
    journal: "EvaluationJournal | None",
    is_main: bool,
    maker: "ExperienceMaker",
) -> "Experience":
    """All samples of a benchmark, those of earlier starts among them, on the main rank."""
    import torch.distributed as dist

    from megatron_rl.progress import Progress
    from megatron_rl.pulse import tick

    known = journal.read(prompt_set.prompts) if journal is not None and is_main else []
    dist.barrier()  # before another rank begins a file of its own
    with ExitStack() as stack:
        progress = stack.enter_context(Progress(benchmark.title, 1)) if is_main else None
        if progress is not None and known:
            progress.note(f"{benchmark.name}: {len(known)} samples are there from an earlier start")

        def show(phase: str, done: int, total: int) -> None:
            tick(phase)
            if progress is not None:
                progress.phase(phase, done, total)

        experience = maker.collect(
            prompt_set.problems,
            prompt_set.prompts,
            benchmark.samples,
            _sampling(config.generation),
            f"{config.seed}/evaluation",
            show,
            known=known,
            keep=(lambda sample: None) if journal is None else journal.keep,
            only_text=True,
        )
    if journal is not None:
        journal.close()
        dist.barrier()
    return experience


def _join(config: EvaluationConfig) -> "Parallel":
    """This process's place in the job, or alone; Megatron has no part in it."""
    import torch.distributed as dist

    from megatron_rl.device import bind_stores, setup_device
    from megatron_rl.parallel import LONGEST_WAIT_MINUTES, Parallel
    from megatron_rl.processes import deadline

    rank, world, local = (int(os.environ.get(key, default)) for key, default in _PLACE)
    device = setup_device(config.cluster.device, local)
    timeout = timedelta(minutes=LONGEST_WAIT_MINUTES)  # for the others' last samples, say
    store = dist.HashStore() if world == 1 else None
    bind_stores()
    with deadline(config.cluster.timeout_minutes * 60, "the other processes, at the start"):
        dist.init_process_group("gloo", timeout=timeout, rank=rank, world_size=world, store=store)
    return Parallel(rank, world, tp=1, tp_rank=0, pp=1, pp_rank=0, dp=world, dp_rank=rank, device=device)


_PLACE = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))


def _write(out: Path, experience: "Experience", prompt_set: "PromptSet", figures: dict[str, Any]) -> None:
    from megatron_rl.validate import sample_record

    out.mkdir(parents=True, exist_ok=True)
    records = (sample_record(sample, prompt_set, 0, "evaluation") for sample in experience.samples)
    write_lines(out / "samples.jsonl", (json.dumps(record) for record in records))
    scores = problem_figures(experience, prompt_set.problems)
    write_lines(out / "problems.jsonl", (json.dumps(score) for score in scores))
    write_json(out / "summary.json", figures)
