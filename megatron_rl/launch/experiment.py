"""Jobs as a NeMo-Run experiment: submitted to Slurm, run here, or only shown."""

import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from shlex import join, quote
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from megatron_rl.errors import InputError
from megatron_rl.launch.executors import ExecutorName, local_executor, nemo_run, slurm_executor
from megatron_rl.launch.site import Site, environment_of, read_site
from megatron_rl.launch.tasks import Task, check_files, local_task, slurm_tasks

if TYPE_CHECKING:
    from nemo_run import Experiment

SITE = Path("slurm/site.env")


def launch(
    recipe: str | Path,
    overrides: Sequence[str] = (),
    *,
    executor: str = "slurm",
    stage: str | None = None,
    site: str | Path = SITE,
    wait: bool = False,
) -> "Experiment":
    """Submit the jobs of a recipe, or run it here. In a notebook at the root of the checkout:

        from megatron_rl.launch import launch

        experiment = launch("recipes/14b/pipeline.yaml", ["seed=2"])
        experiment.status()
        experiment.logs("math_8k")

    NeMo-Run keeps its files, the jobs' logs among them, in `$NEMORUN_HOME/experiments` (`~/.nemo_run/experiments`);
    with `ssh-slurm` also in `REMOTE_DIR/runs/experiments` on the cluster.

    Args:
        executor: `slurm` (from a login node), `ssh-slurm` (from elsewhere), or `local` (this machine; always waits).
        stage: only this one of a pipeline; else its unfinished ones, each after the one before has succeeded.
        wait: until the jobs have ended, which on Slurm takes a cluster with accounting (sacct).

    Raises:
        InputError: what the recipe's command would refuse, an incomplete site file, a job that Slurm refuses.
    """
    facts, kind = read_site(Path(site)), _kind(executor)
    with environment_of(facts):
        if kind is not ExecutorName.SSH_SLURM:  # what the recipe names lies on the cluster
            check_files(Path(recipe), overrides, stage, facts)
        if kind is ExecutorName.SLURM and shutil.which("sbatch") is None:
            raise InputError("sbatch: not found; launch from a login node, or with the ssh-slurm executor")
        with _experiment(Path(recipe), overrides, kind, stage, facts) as experiment, _refusals(facts):
            experiment.run(detach=not wait and kind is not ExecutorName.LOCAL)
    return experiment


def batch_scripts(
    recipe: str | Path,
    overrides: Sequence[str] = (),
    *,
    executor: str = "slurm",
    stage: str | None = None,
    site: str | Path = SITE,
) -> dict[str, str]:
    """What `launch` would run, by job name, with nothing submitted; arguments as of `launch`.

    Raises:
        InputError: a bad recipe or an incomplete site file; the files that the recipe names are not looked at.
    """
    facts, kind = read_site(Path(site)), _kind(executor)
    with environment_of(facts):
        if kind is ExecutorName.LOCAL:
            _, task = local_task(Path(recipe), overrides, stage, facts)
            path = local_executor(facts).env_vars["PATH"].partition(":")[0]
            return {task.name: f"PATH={quote(path)}:$PATH {join(task.command)}\n"}
        with (
            TemporaryDirectory() as folder,
            _experiment(Path(recipe), overrides, kind, stage, facts, base_dir=folder) as experiment,
        ):
            experiment.dryrun(log=False, delete_exp_dir=False)
            files = {job.id: Path(job.executor.experiment_dir) / f"{job.id}_sbatch.sh" for job in experiment.jobs}
            return {name: file.read_text(encoding="utf-8") for name, file in files.items()}


@contextmanager
def _experiment(
    recipe: Path,
    overrides: Sequence[str],
    kind: ExecutorName,
    stage: str | None,
    site: Site,
    base_dir: str | None = None,
) -> Iterator["Experiment"]:
    """An open experiment that holds the jobs. With `base_dir` it says nothing and keeps its files there."""
    name, jobs = _jobs(recipe, overrides, kind, stage, site)
    local, quiet = kind is ExecutorName.LOCAL, base_dir is not None
    experiment = nemo_run().Experiment(
        name,
        base_dir=base_dir,
        log_level="WARNING",
        clean_mode=quiet,
        skip_status_at_exit=True,
        enable_goodbye_message=not local and not quiet,
    )
    with _cancelled_by_signals(experiment) if local else nullcontext(), experiment:
        before: list[str] = []
        for task, executor in jobs:
            script = _as_script(task.command, task=not local)
            before = [experiment.add(script, executor, name=task.name, dependencies=before, tail_logs=local)]
        yield experiment


@contextmanager
def _cancelled_by_signals(experiment: "Experiment") -> Iterator[None]:
    """Ctrl-C and SIGTERM stop jobs of this machine, which save first; NeMo-Run would wait for them, or leave them."""

    def cancel(number: int, frame: object) -> None:
        for job in experiment.jobs:
            experiment.cancel(job.id)

    before = {number: signal.signal(number, cancel) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _jobs(
    recipe: Path, overrides: Sequence[str], kind: ExecutorName, stage: str | None, site: Site
) -> tuple[str, list[tuple[Task, Any]]]:
    """Name of the experiment, and each job with its executor."""
    if kind is ExecutorName.LOCAL:
        name, task = local_task(recipe, overrides, stage, site)
        return name, [(task, local_executor(site))]
    ssh = kind is ExecutorName.SSH_SLURM
    name, tasks = slurm_tasks(recipe, overrides, stage, site)
    return name, [(task, slurm_executor(site, task.cluster, name, ssh=ssh)) for task in tasks]


def _as_script(command: Sequence[str], *, task: bool) -> Any:
    """NeMo-Run's form of a command; as a Slurm task it is read by a shell, and runs under slurm/task.sh.

    NeMo-Run puts values in place of `$name`; `$$` stands for the dollar sign.
    """
    words = [word.replace("$", "$$") for word in command]
    if task:
        words = ["env", "--block-signal=USR1", "bash", "slurm/task.sh", '"$$first"', *map(quote, words)]
    return nemo_run().Script(entrypoint=words[0], path=words[1], args=words[2:])


def _kind(executor: str) -> ExecutorName:
    try:
        return ExecutorName(executor)
    except ValueError:
        known = ", ".join(ExecutorName)
        raise InputError(f"executor {executor!r} is none of {known}") from None


@contextmanager
def _refusals(site: Site) -> Iterator[None]:
    """What the cluster answers to a submission, as bad input."""
    from invoke.exceptions import UnexpectedExit

    try:
        yield
    except UnexpectedExit as error:
        lines = error.result.stderr.strip().splitlines() or [f"{error.result.command}: no answer"]
        raise InputError(f"{lines[-1]} (see {site.path})") from error
    except OSError as error:
        raise InputError(f"{site.environment.get('SSH_HOST', 'the cluster')}: {error}; see {site.path}") from error
