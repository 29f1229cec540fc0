"""`megatron-rl eval`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A Hugging Face folder, or a run that exported one.")],
    benchmark: Annotated[
        list[str], typer.Option(help="Name (aime24, livecodebench_v5, ...) or JSONL; may be repeated.")
    ],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings as key=value.")] = None,
    data: Annotated[Path, typer.Option(help="Folder with the files of the named benchmarks.")] = Path("data"),
    out: Annotated[
        Path | None, typer.Option(help="Folder for samples and figures; a killed evaluation goes on there.")
    ] = None,
) -> None:
    """Accuracy on benchmarks, as one process or as a task of a job; prints a JSON summary.

    Settings are those of the schema's data (columns of a file), generation and verifier, num_generations_per_prompt and
    seed; server.url=URL asks a server with OpenAI's completions API, or with server.api=chat its chat API, and of the
    checkpoint uses the tokenizer. The defaults are the paper's: temperature 0.6, top-p 0.95, 32,768 tokens, avg@64 on
    AIME, avg@4 on MATH500, avg@8 on LiveCodeBench. docs/data.md lists the names, and the files that they need.
    """
    run_evaluation(checkpoint, benchmark, data, out, overrides or [])


def run_evaluation(
    checkpoint: Path, benchmarks: Sequence[str], data: Path, out: Path | None, overrides: Sequence[str]
) -> None:
    """As this process of a job; the main one prints the summary."""
    from megatron_rl.evaluation.benchmarks import find_benchmarks
    from megatron_rl.evaluation.evaluate import evaluate as run
    from megatron_rl.evaluation.evaluate import load_evaluation
    from megatron_rl.launcher import quiet, take_rank

    quiet()
    take_rank()
    config = load_evaluation(overrides)
    found = find_benchmarks(benchmarks, data, config.data, config.num_generations_per_prompt)
    summary = run(checkpoint, found, config, out)
    if summary is not None:
        print(json.dumps(summary))
