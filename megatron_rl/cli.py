"""The command line. torch, vLLM and Megatron are imported only by the commands that need them."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from converters.errors import ConversionError
from megatron_rl.cli_convert import app as convert_app
from megatron_rl.cli_data import app as data_app
from megatron_rl.cli_eval import evaluate
from megatron_rl.cli_launch import launch
from megatron_rl.cli_plan import plan
from megatron_rl.cli_verify import app as verify_app
from megatron_rl.errors import (
    INTERRUPTED_EXIT_CODE,
    PREEMPTED_EXIT_CODE,
    STOPPED_EXIT_CODE,
    InputError,
    Preempted,
    RunInterrupted,
    RunStopped,
)

if TYPE_CHECKING:
    from megatron_rl.config.schema import TrainConfig

app = typer.Typer(
    help="Strictly on-policy reinforcement learning on Megatron-Core and vLLM.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(verify_app, name="verify")
app.add_typer(data_app, name="data")
app.add_typer(convert_app, name="convert")
app.command()(plan)
app.command()(launch)
app.command("eval")(evaluate)

Recipe = Annotated[Path, typer.Argument(help="YAML recipe; see recipes/.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Settings as key=value, for example grpo.max_num_steps=5.")]


def main() -> None:
    """Entry point: a user's mistake ends with one line and status 2, a run that a guard stopped with 3."""
    try:
        app()
    except (InputError, ConversionError) as error:
        print(f"megatron-rl: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except RunStopped as error:
        print(f"megatron-rl: stopped: {error}", file=sys.stderr)
        raise SystemExit(STOPPED_EXIT_CODE) from None
    except RunInterrupted as error:
        print(f"megatron-rl: interrupted: {error}", file=sys.stderr)
        raise SystemExit(INTERRUPTED_EXIT_CODE) from None
    except Preempted as error:
        if os.environ.get("RANK") == "0":
            print(f"megatron-rl: {error}", file=sys.stderr)
        raise SystemExit(PREEMPTED_EXIT_CODE) from None


@app.command()
def train(recipe: Recipe, overrides: Overrides = None) -> None:
    """Run one stage (SFT or GRPO), from its newest checkpoint if it has one."""
    from megatron_rl.config.loader import load_config

    _train(load_config(recipe, overrides or []), ["train", str(recipe), *(overrides or [])])


@app.command()
def pipeline(
    recipe: Recipe,
    overrides: Overrides = None,
    stage: Annotated[str | None, typer.Option(help="Run only this one; the settings are then its own.")] = None,
) -> None:
    """Run several stages, each from the last one's checkpoint; finished ones are skipped."""
    from megatron_rl.pipeline import load_pipeline, load_stage, run_pipeline

    if stage is None:
        pipeline_config, stages = load_pipeline(recipe, overrides or [])
        raise SystemExit(run_pipeline(pipeline_config, stages))
    config = load_stage(recipe, stage, overrides or [])
    _train(config, ["pipeline", str(recipe), "--stage", stage, *(overrides or [])])


@app.command()
def command(
    recipe: Recipe,
    overrides: Overrides = None,
    stage: Annotated[str | None, typer.Option(help="A stage of the pipeline.")] = None,
    domain: Annotated[str | None, typer.Option(help="Its first unfinished stage of this domain: math or code.")] = None,
) -> None:
    """Check a recipe and its files, and print the command that every task of a job has to run."""
    import shlex

    from megatron_rl.command import check_command, first_unfinished, training_command

    if domain is not None:
        stage = first_unfinished(recipe, overrides or [], domain)
    argv = training_command(recipe, overrides or [], stage)
    check_command(recipe, overrides or [], stage)
    print(shlex.join(argv))


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="Folders of runs, of pipelines, or that eval --out wrote.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="The file; by default report.html in the folder, for several folders in the current one."),
    ] = None,
) -> None:
    """Write curves, benchmarks and samples as one self-contained HTML file; several folders are compared in it."""
    from megatron_rl.report import write_report

    print(write_report(*runs, out=out))


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Tell what is installed and in use, and what each missing part costs."""
    from megatron_rl.doctor import collect, show

    raise SystemExit(show(collect(), as_json=as_json))


def _train(config: "TrainConfig", arguments: list[str]) -> None:
    """Run a stage: as the rank that this process is, or by starting the ranks with `arguments`."""
    from megatron_rl.launcher import run_ranks, take_rank
    from megatron_rl.preemption import listen
    from megatron_rl.preflight import preflight

    is_rank = take_rank()
    if is_rank:
        listen()  # before anything starts a thread
    preflight(config)
    if not is_rank:
        raise SystemExit(run_ranks(config, arguments))
    from megatron_rl.train import train as train_rank

    train_rank(config)
