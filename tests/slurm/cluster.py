"""A real Slurm on this machine: munged, slurmctld and two slurmd, each a node that claims to have two GPUs.

Sixteen more nodes of eight GPUs exist on paper only: what `sbatch --test-only` says of a whole cluster is Slurm's own
answer. Everything lives in a temporary folder and on ports of its own; at the end nothing of it is left.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from getpass import getuser
from pathlib import Path

from megatron_rl.launcher import free_port
from megatron_rl.processes import die_with_parent

NODES = ("127.0.0.1", "127.0.0.2")
PAPER_PARTITION = "paper"
ENDED = {"COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL"}
_DAEMONS = ("munged", "slurmctld", "slurmd")
_SHOWN_CHARACTERS = 4000
_START_SECONDS, _STOP_SECONDS, _COMMAND_SECONDS, _POLL_SECONDS = 30.0, 30.0, 60.0, 0.3

# A requeued job starts again after `cred_expire` and a second, two minutes unless told otherwise. Nodes in the state
# CLOUD count as idle, though nothing answers there. Timeouts suit a busy machine, and so does OverTimeLimit (minutes):
# however late a job is told of its time limit, it can still save. Nodes are named by address, which resolves anywhere.
_SLURM_CONF = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool_%n
SlurmctldPidFile={folder}/slurmctld.pid
FirstJobId={ports[0]}
SlurmdPidFile={folder}/slurmd_%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1
GresTypes=gpu
MailProg=/bin/true
ReturnToService=2
KillWait=5
OverTimeLimit=10
MinJobAge=3600
MessageTimeout=60
BatchStartTimeout=60
SlurmdTimeout=0
SlurmdParameters=config_overrides
ResumeProgram=/bin/true
SuspendProgram=/bin/true
NodeName={nodes[0]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 Gres=gpu:2 Weight=1
NodeName={nodes[1]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 Gres=gpu:2 Weight=2
NodeName=paper[1-16] CPUs=96 RealMemory=2000000 Gres=gpu:8 State=CLOUD
PartitionName=here Nodes={nodes[0]},{nodes[1]} Default=YES
PartitionName={paper} Nodes=paper[1-16]
"""
_GRES_CONF = "NodeName={nodes} Name=gpu File=/dev/null,/dev/zero\n"


def missing_daemons() -> list[str]:
    """What is not installed of Debian's slurm-wlm and munge."""
    return [name for name in _DAEMONS if shutil.which(name, path=_search_path()) is None]


def _search_path() -> str:
    return f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin"


class Cluster:
    """Commands to a running cluster."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        own = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SBATCH", "SRUN"))}
        self.env = own | {"SLURM_CONF": str(folder / "slurm.conf")}

    def run(
        self, *command: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, whatever its status; both outputs are in `stdout`."""
        return subprocess.run(
            [str(word) for word in command],
            cwd=cwd or self.folder,
            env=self.env | dict(env or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_COMMAND_SECONDS,
        )

    def check(self, *command: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
        """Output of a command that must end well."""
        done = self.run(*command, cwd=cwd, env=env)
        assert done.returncode == 0, f"{command}: status {done.returncode}\n{done.stdout}"
        return done.stdout.strip()

    def submit(self, *words: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> str:
        """`sbatch WORDS`; the job's id."""
        return self.check("sbatch", "--parsable", *words, cwd=cwd, env=env).split(";")[0]

    def show(self, job: str) -> dict[str, str]:
        """What `scontrol show job` knows: JobState, Restarts, ExitCode, NodeList, StdOut, Dependency and so on."""
        fields = self.check("scontrol", "--oneliner", "show", "job", job).split()
        return dict(field.partition("=")[::2] for field in fields)

    def wait(self, job: str, states: Sequence[str], seconds: float, restarts: int = 0) -> dict[str, str]:
        """Until the job is in one of `states`, having started again at least so often; fails after `seconds`, or when
        the job has ended otherwise."""
        limit = time.monotonic() + seconds
        while True:
            found = self.show(job)
            if found["JobState"] in states and int(found["Restarts"]) >= restarts:
                return found
            late = time.monotonic() > limit
            if late or found["JobState"] in ENDED:
                asked = f"job {job}: {found['JobState']}, not {'/'.join(states)} with {restarts} restarts"
                raise AssertionError(f"{asked} (waited up to {seconds} s)\n{self.output(job)}")
            time.sleep(_POLL_SECONDS)

    def output(self, job: str) -> str:
        """The end of what the job has written."""
        path = Path(self.show(job)["StdOut"])
        return path.read_text(errors="replace")[-_SHOWN_CHARACTERS:] if path.is_file() else f"no {path}"

    def cancel_all(self) -> None:
        """Cancel whatever runs or waits, and wait until it is gone."""
        with suppress(subprocess.TimeoutExpired):
            self.run("scancel", "--user", getuser())
        limit = time.monotonic() + _STOP_SECONDS
        while self.run("squeue", "--noheader").stdout.strip() and time.monotonic() < limit:
            time.sleep(_POLL_SECONDS)


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    """A cluster of this user's own, who need not be root."""
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        keeper = subprocess.Popen([sys.executable, __file__, folder], stdin=subprocess.PIPE, start_new_session=True)
        stack.callback(keeper.communicate)
        folder.chmod(0o755)  # munged insists
        _write_configuration(folder)
        cluster = Cluster(folder)
        key, socket_path = folder / "munge.key", folder / "munge.socket"
        munge_files = [f"--{name}-file={folder}/munge.{name}" for name in ("pid", "log", "seed")]
        daemon = partial(_daemon, stack, cluster)
        daemon("munged", "--foreground", f"--key-file={key}", f"--socket={socket_path}", *munge_files)
        daemon("slurmctld", "-D")
        for node in NODES:
            daemon("slurmd", "-D", "-N", node)
        _wait_for_nodes(cluster)
        stack.callback(cluster.cancel_all)
        yield cluster


def _write_configuration(folder: Path) -> None:
    ports = [free_port() for _ in range(3)]
    host = socket.gethostname().partition(".")[0]
    conf = _SLURM_CONF.format(folder=folder, host=host, user=getuser(), ports=ports, nodes=NODES, paper=PAPER_PARTITION)
    (folder / "slurm.conf").write_text(conf)
    (folder / "gres.conf").write_text(_GRES_CONF.format(nodes=",".join(NODES)))
    (folder / "state").mkdir()
    for node in NODES:
        (folder / f"spool_{node}").mkdir()
    key = folder / "munge.key"
    key.touch(0o600)
    key.write_bytes(os.urandom(128))


def _daemon(stack: ExitStack, cluster: Cluster, name: str, *arguments: str) -> None:
    program = shutil.which(name, path=_search_path())
    assert program is not None
    with open(cluster.folder / f"{name}.log", "ab") as log:
        process = subprocess.Popen(
            [program, *arguments], env=cluster.env, stdout=log, stderr=subprocess.STDOUT, preexec_fn=die_with_parent
        )

    def stop() -> None:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    stack.callback(stop)


def _wait_for_nodes(cluster: Cluster) -> None:
    limit = time.monotonic() + _START_SECONDS
    while True:
        states = cluster.run("sinfo", "--noheader", "--partition=here", "--format=%t %D").stdout.strip()
        if states == f"idle {len(NODES)}":
            return
        if time.monotonic() > limit:
            logs = "\n".join((cluster.folder / f"{name}.log").read_text()[-_SHOWN_CHARACTERS:] for name in _DAEMONS)
            raise AssertionError(f"Slurm did not start in {_START_SECONDS} s: {states}\n{logs}")
        time.sleep(_POLL_SECONDS)


def _keep(folder: Path) -> None:
    """Wait until the tests are done with the cluster, or have been killed; then end and remove what is left of it."""
    sys.stdin.read()
    mark = f"SLURM_CONF={folder}/slurm.conf\0".encode()
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if mark in environment.read_bytes():
                os.kill(int(environment.parent.name), signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    _keep(Path(sys.argv[1]))
