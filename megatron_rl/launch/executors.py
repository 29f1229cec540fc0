"""NeMo-Run's executors, filled in from the site file."""

import os
import re
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from shlex import quote
from typing import Any

from megatron_rl.config.schema import ClusterConfig, Device
from megatron_rl.errors import InputError
from megatron_rl.launch.site import Site

# As in the sbatch scripts; a stage whose predecessor failed leaves the queue.
OPTIONS = {
    "exclusive": True,
    "mem": "0",
    "time": "04:00:00",
    "signal": "USR1@600",
    "requeue": True,
    "kill_on_invalid_dep": "yes",
}


class ExecutorName(StrEnum):
    SLURM = "slurm"
    LOCAL = "local"
    SSH_SLURM = "ssh-slurm"


def nemo_run() -> Any:
    """The module, imported on first use: it brings half a hundred others.

    Raises:
        InputError: it is not installed.
    """
    if find_spec("nemo_run") is None:
        raise InputError(
            "nemo_run is not installed here: pip install 'megatron-rl[launch]' in an environment of its own "
            "(it clashes with vLLM), and launch from there"
        )
    import nemo_run

    return nemo_run


def local_executor(site: Site) -> Any:
    """A `LocalExecutor` with the site's environment first in PATH, and the checkout first in Python's.

    Raises:
        InputError: there is no such environment.
    """
    environment = Path(site.need("ENVIRONMENT", "the folder of the Python environment with torch and vLLM"))
    if not (environment / "bin" / "megatron-rl").is_file():
        raise InputError(
            f"{site.path}: ENVIRONMENT={environment} has no bin/megatron-rl; see the README on how to make it"
        )
    path = f"{environment.resolve() / 'bin'}:{os.environ['PATH']}"
    return nemo_run().LocalExecutor(env_vars={"PATH": path, "PYTHONPATH": str(Path.cwd())})


def slurm_executor(site: Site, cluster: ClusterConfig, experiment: str, *, ssh: bool) -> Any:
    """A `SlurmExecutor` for one job, with the options of the sbatch scripts.

    Raises:
        InputError: the site file lacks what reaching the cluster takes; the working directory is no checkout; a name
            that NeMo-Run would garble.
    """
    checkout = Path(site.need("REMOTE_DIR", "the checkout's folder on the cluster")) if ssh else Path.cwd()
    if not ssh and not (checkout / "slurm" / "job.sh").is_file():
        raise InputError(f"{checkout}: has no slurm/job.sh; launch at the root of the checkout")
    on_cluster = checkout / os.path.relpath(site.path) if ssh else site.path.resolve()
    for name in (experiment, str(checkout), str(on_cluster)):
        # NeMo-Run quotes no names, and writes a path of its own in place of this one.
        if not re.fullmatch(r"[\w./+-]+", name) or "/nemo_run" in name:
            raise InputError(f"{name!r}: NeMo-Run takes letters, digits and ._+- only, and not /nemo_run; rename it")
    run = nemo_run()
    container = site.environment.get("CONTAINER_IMAGE")
    options = OPTIONS | {key: value for key, value in site.sbatch.items() if not key.startswith("gpus")}
    return run.SlurmExecutor(
        account=site.sbatch.get("account"),
        job_name_prefix=f"{experiment}.",
        nodes=cluster.num_nodes,
        ntasks_per_node=cluster.gpus_per_node,
        gpus_per_node=None if cluster.device is Device.CPU else cluster.gpus_per_node,
        additional_parameters=options,
        # NeMo-Run's own 60 seconds would kill a rank that still exports when the others are done.
        srun_args=["--wait=0", "--cpu-bind=none"],
        container_image=container,
        container_mounts=_mounts(site, checkout) if container else [],
        setup_lines=_setup_lines(checkout, on_cluster),
        # Nothing is packed: a link to the checkout is where the job starts.
        packager=run.GitArchivePackager(symlink_from_remote_dir=str(checkout)),
        tunnel=_ssh_tunnel(site, checkout) if ssh else run.LocalTunnel(job_dir=""),
        poll_estimated_start_time=False,
    )


def _ssh_tunnel(site: Site, checkout: Path) -> Any:
    return nemo_run().SSHTunnel(
        host=site.need("SSH_HOST", "the login node's name"),
        user=site.need("SSH_USER", "your name there"),
        identity=site.environment.get("SSH_IDENTITY"),
        job_dir=str(checkout / "runs" / "experiments"),
    )


def _mounts(site: Site, checkout: Path) -> list[str]:
    own = site.environment.get("CONTAINER_MOUNTS")
    return [f"{checkout}:{checkout}", *(own.split(",") if own else [])]


def _setup_lines(checkout: Path, site: Path) -> str:
    """What the batch script does before srun: silence its own trace, then as slurm/stage.sh, also after srun."""
    lines = [
        "set +vx",
        f"export SLURM_SUBMIT_DIR={quote(str(checkout))} SITE={quote(str(site))}",
        'source "$SLURM_SUBMIT_DIR/slurm/job.sh"',
        "trap 'conclude $?' EXIT",
    ]
    return "\n".join(lines)
