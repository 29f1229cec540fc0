"""`megatron-rl data`: datasets, made and checked."""

import json
from pathlib import Path
from typing import Annotated

import typer

from megatron_rl.errors import InputError

app = typer.Typer(help="Make and check datasets.", no_args_is_help=True)

_ATTEMPTS = 16
"""Of which the paper's stages count the right ones (arXiv 2505.16400, section 3.1)."""

Overrides = Annotated[list[str] | None, typer.Argument(help="Settings as key=value.")]


@app.command("tiny")
def data_tiny(
    folder: Annotated[Path, typer.Argument(help="Where the files go.")],
    seed: Annotated[int, typer.Option(help="Of the generated problems.")] = 1,
) -> None:
    """Write the tiny world: arithmetic and very short programs, disjoint for training and held out."""
    from megatron_rl.data.tiny import write_tiny_world

    write_tiny_world(folder, seed)
    print(f"wrote the tiny world to {folder}")


@app.command("check")
def data_check(
    file: Annotated[Path, typer.Argument(help="JSONL of problems.")],
    overrides: Overrides = None,
) -> None:
    """Tell whether a file loads, and list the reference answers that only the same text can meet.

    Settings are those of the schema's data section, such as answer_key=solution domain=code.
    """
    from megatron_rl.data.check import load_checked

    problems, unreadable = load_checked(file, overrides or [])
    for problem, reason in unreadable:
        print(f"{problem.id}: {problem.answer!r:.80}: {reason}")
    if unreadable:
        raise InputError(
            f"{file}: {len(unreadable)} of {len(problems)} references cannot be read; correct or drop them"
        )
    print(f"{file}: {len(problems)} problems, every reference can be read")


@app.command("score")
def data_score(
    file: Annotated[Path, typer.Argument(help="JSONL of problems, as `data build` writes it.")],
    checkpoint: Annotated[Path, typer.Argument(help="A Hugging Face folder, or a run that exported one.")],
    out: Annotated[Path, typer.Option(help="Folder for samples and scores; killed, it goes on there.")],
    overrides: Overrides = None,
) -> None:
    """Tell how hard each problem is for a model: OUT/NAME/problems.jsonl, for a dataset's step `difficulty`.

    It is asked 16 times. Settings are those of `megatron-rl eval`, a server's (server.url=URL) among them, and
    prompt_key is `problem`.
    """
    from megatron_rl.cli_eval import run_evaluation

    defaults = [f"num_generations_per_prompt={_ATTEMPTS}", "data.prompt_key=problem"]
    run_evaluation(checkpoint, [str(file)], file.parent, out, [*defaults, *(overrides or [])])


@app.command("build")
def data_build(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe of a dataset; see recipes/data/.")],
    overrides: Overrides = None,
) -> None:
    """Make a dataset: read its sources, leave out what its steps say, write what is left and why the rest is not.

    Prints what became of the problems as JSON; NAME_left_out/ beside the dataset has every one and the reason.
    """
    from megatron_rl.curation.build import build, table_of
    from megatron_rl.curation.recipe import load_recipe
    from megatron_rl.progress import console

    made = load_recipe(recipe, overrides or [])
    with console.status("reading") as status:
        report = build(made, lambda source, rows: status.update(f"{source}: {rows:,} rows read"))
    console.print(table_of(report))
    console.print(f"wrote {made.dataset}", soft_wrap=True)
    print(json.dumps(report))
