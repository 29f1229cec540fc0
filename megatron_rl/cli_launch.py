"""`megatron-rl launch`: a recipe's jobs by NeMo-Run."""

import sys
from pathlib import Path
from typing import Annotated

import typer


def launch(
    recipe: Annotated[Path, typer.Argument(help="Recipe of a stage or of a pipeline.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings as key=value, as of train or pipeline.")
    ] = None,
    executor: Annotated[
        str, typer.Option(help="slurm (from a login node), ssh-slurm (from elsewhere) or local (this machine).")
    ] = "slurm",
    stage: Annotated[
        str | None, typer.Option(help="Only this one of a pipeline; the settings are then its own.")
    ] = None,
    site: Annotated[Path, typer.Option(envvar="SITE", help="The cluster's facts.")] = Path("slurm/site.env"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the batch scripts and submit nothing.")] = False,
) -> None:
    """Submit the jobs of a recipe with NeMo-Run, or run it here; a pipeline's stages wait for one another."""
    from megatron_rl.launch import batch_scripts
    from megatron_rl.launch import launch as launch_jobs

    settings = overrides or []
    if dry_run:
        for name, script in batch_scripts(recipe, settings, executor=executor, stage=stage, site=site).items():
            print(f"# {name}\n{script}")
        return
    experiment = launch_jobs(recipe, settings, executor=executor, stage=stage, site=site)
    for job in experiment.jobs:
        folder = job.executor.job_dir if executor == "local" else job.executor.job_details.folder
        print(f"{job.id}: {job.handle}, output in {folder}")
    bad = [f"{job.id} {job.state.name.lower()}" for job in experiment.jobs if job.state.name in ("FAILED", "CANCELLED")]
    if bad:
        print(f"megatron-rl: {', '.join(bad)}; see above", file=sys.stderr)
        raise SystemExit(1)
