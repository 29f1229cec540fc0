"""`megatron-rl verify`: judge files of responses, or serve a pool that does it for others."""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megatron_rl.errors import InputError
from verifiers.isolation import IsolationLevel

if TYPE_CHECKING:
    from verifiers.pool import Pool
    from verifiers.records import ReadTask

app = typer.Typer(help="Judge responses in a JSONL file.", no_args_is_help=True)

JsonlFile = Annotated[Path, typer.Argument(help="JSONL file to judge.")]
OutFile = Annotated[Path | None, typer.Option("--out", help="Where the judged lines go; default: standard output.")]
Workers = Annotated[int, typer.Option(min=1, help="Worker processes.")]
Address = Annotated[
    str | None, typer.Option(help="Verifier server to use instead of workers here: unix:/PATH or tcp:HOST:PORT.")
]
SecretFile = Annotated[Path | None, typer.Option(help="The server's secret.")]
MinIsolation = Annotated[IsolationLevel, typer.Option(help="Refuse to run programs with less than this.")]


class Extract(StrEnum):
    STRICT = "strict"
    ANYWHERE = "anywhere"


@app.command("math")
def verify_math(
    file: JsonlFile,
    out: OutFile = None,
    workers: Workers = 4,
    extract: Annotated[
        Extract, typer.Option(help="strict: the last box after </think>; anywhere: evaluation's rule.")
    ] = Extract.STRICT,
    address: Address = None,
    secret_file: SecretFile = None,
) -> None:
    """Judge lines of {id, response, answer}."""
    from verifiers.records import math_reader
    from verifiers.remote import open_pool

    with _bad_input():
        read = math_reader(extract.value)
        with open_pool(workers, address, secret_file, IsolationLevel.LIMITS) as pool:
            _judge(file, read, pool, out)


@app.command("code")
def verify_code(
    file: JsonlFile,
    out: OutFile = None,
    workers: Workers = 4,
    timeout: Annotated[float, typer.Option(help="Seconds that one test may take.")] = 6.0,
    budget: Annotated[float, typer.Option(help="Seconds that all tests of a program may take together.")] = 300.0,
    longest_first: Annotated[bool, typer.Option(help="Run the tests with the longest inputs first.")] = False,
    min_isolation: MinIsolation = IsolationLevel.LANDLOCK,
    address: Address = None,
    secret_file: SecretFile = None,
) -> None:
    """Judge lines of {id, response, tests, fn_name?, starter_code?}."""
    from megatron_rl.preflight import check_isolation
    from verifiers.records import code_reader
    from verifiers.remote import open_pool

    with _bad_input():
        read = code_reader(timeout, budget, longest_first, min_isolation)
        if address is None:
            check_isolation(min_isolation, "--min-isolation")
        with open_pool(workers, address, secret_file, min_isolation) as pool:
            _judge(file, read, pool, out)


@app.command("serve")
def serve(
    address: Annotated[str, typer.Option(help="Where to listen: unix:/PATH or tcp:HOST:PORT (0: any free one).")],
    secret_file: Annotated[
        Path | None, typer.Option(help="What clients have to know; made if missing. Optional at a local socket.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Worker processes; default: one per processor.")] = None,
    min_isolation: MinIsolation = IsolationLevel.LANDLOCK,
    report_seconds: Annotated[float, typer.Option(min=0.1, help="Print the pool's metrics this often.")] = 60.0,
) -> None:
    """Judge for trainers on other nodes, which set verifier.address and verifier.secret_file.

    Ends at SIGTERM or SIGINT. Prints its metrics as JSON lines on standard output.
    """
    from megatron_rl.preflight import check_isolation
    from verifiers.connection import make_secret, read_secret
    from verifiers.serve import VerifierServer

    with _bad_input():
        check_isolation(min_isolation, "--min-isolation")
        if secret_file is not None:
            make_secret(secret_file)
        secret = b"" if secret_file is None else read_secret(secret_file)
        server = VerifierServer(address, secret, workers or len(os.sched_getaffinity(0)), _log)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    threading.Thread(target=server.run, name="verifier-server", daemon=True).start()
    _log(f"{server.workers} workers at {server.address}, programs isolated by {server.isolation}")
    while not ended.wait(report_seconds):
        metrics = server.metrics()
        if any(metrics.verdicts.values()):
            print(json.dumps({"clients": server.clients(), **metrics.as_dict()}), flush=True)
    server.close()


def _judge(file: Path, read: "ReadTask", pool: "Pool", out: Path | None) -> None:
    from verifiers.jsonl import verify_file

    with _counting(file) as progress:
        summary = verify_file(file, read, pool, out, progress)
    print(json.dumps(summary))


@contextmanager
def _bad_input() -> Iterator[None]:
    """What is wrong with files, addresses and secrets is bad input."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise InputError(str(error)) from error


@contextmanager
def _counting(file: Path) -> Iterator[Callable[[int], None]]:
    """A count of judged lines on standard error."""
    from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from megatron_rl.progress import console

    columns = (SpinnerColumn(), TextColumn(f"judging {file.name}"), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("judging", total=None)
        yield lambda done: bar.update(task, completed=done)


def _log(line: str) -> None:
    print(f"megatron-rl verify serve: {line}", file=sys.stderr, flush=True)
