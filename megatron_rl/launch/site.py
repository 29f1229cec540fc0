"""The facts of a cluster, from the shell file that the sbatch scripts read too."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from megatron_rl.errors import InputError

_PREFIX = "SBATCH_"
# Where sbatch's name of the variable is not that of the option.
_OPTIONS = {"timelimit": "time", "mem_per_node": "mem", "req_switch": "switches", "array_inx": "array"}
# bash's own.
_OF_BASH = {"_", "SHLVL", "PWD", "OLDPWD"}


@dataclass(frozen=True, kw_only=True)
class Site:
    """What the file sets, on top of this process's environment; an empty value counts as not set."""

    path: Path
    environment: dict[str, str]
    """Without sbatch's variables."""
    sbatch: dict[str, str]
    """Options by name, with underscores: account, partition, time, gpus_per_node ..."""

    def need(self, key: str, meaning: str) -> str:
        """The value of `key`.

        Raises:
            InputError: it is not set.
        """
        if key not in self.environment:
            raise InputError(f"{self.path}: {key} is not set; give it {meaning}")
        return self.environment[key]

    @property
    def overrides(self) -> list[str]:
        """Settings of every run."""
        return self.environment.get("OVERRIDES", "").split()

    @property
    def size(self) -> list[str]:
        """Settings that make a job as large as the site says; none where it does not.

        Raises:
            InputError: half of it is missing, or no whole number of nodes.
        """
        given = {key: self.sbatch[key] for key in ("gpus", "gpus_per_node") if key in self.sbatch}
        if not given:
            return []
        if len(given) == 1 or not all(value.isdecimal() for value in given.values()):
            raise InputError(
                f"{self.path}: SBATCH_GPUS and SBATCH_GPUS_PER_NODE are two numbers or none; it has {given}"
            )
        gpus, per_node = int(given["gpus"]), int(given["gpus_per_node"])
        if gpus == 0 or per_node == 0:
            raise InputError(f"{self.path}: {given}; a job has one GPU or more on each node")
        if gpus % per_node:
            raise InputError(f"{self.path}: SBATCH_GPUS={gpus} is no multiple of SBATCH_GPUS_PER_NODE={per_node}")
        return [f"cluster.num_nodes={gpus // per_node}", f"cluster.gpus_per_node={per_node}"]


def read_site(path: Path) -> Site:
    """Let bash read the file, so that it may hold whatever a shell understands.

    Raises:
        InputError: it is missing, or bash fails on it.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such site file; copy slurm/site.env, fill it in, and name it with --site")
    script = 'set -ae; source "$1" >&2; env -0'
    done = subprocess.run(["bash", "-c", script, "bash", path.resolve()], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.splitlines() or [f"a command in it ends with status {done.returncode}"]
        raise InputError(f"{path}: {lines[-1]}")
    pairs = (entry.partition("=") for entry in done.stdout.split("\0") if entry)
    values = {key: value for key, _, value in pairs if value and key not in _OF_BASH}
    sbatch = {key.removeprefix(_PREFIX).lower(): value for key, value in values.items() if key.startswith(_PREFIX)}
    return Site(
        path=path,
        environment={key: value for key, value in values.items() if not key.startswith(_PREFIX)},
        sbatch={_OPTIONS.get(key, key): value for key, value in sbatch.items()},
    )


@contextmanager
def environment_of(site: Site) -> Iterator[None]:
    """This process, and what it starts, as if it had been started after sourcing the site file.

    sbatch's variables are gone meanwhile: they would win over the options of a batch script.
    """
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(site.environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
