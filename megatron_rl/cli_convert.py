"""`megatron-rl convert`: Hugging Face folders to Megatron checkpoints, back, and whether two hold the same."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Convert checkpoints, and compare them.", no_args_is_help=True)

Source = Annotated[Path, typer.Argument(help="What to convert.")]
Destination = Annotated[Path, typer.Argument(help="Folder to make.")]
Workers = Annotated[int, typer.Option(min=1, help="Threads.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace DESTINATION once the new one is whole.")]
Like = Annotated[
    Path | None, typer.Option(help="Folder with config and tokenizer, for a Megatron checkpoint that holds none.")
]
_WORKERS = min(8, len(os.sched_getaffinity(0)))


class Dtype(StrEnum):
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


@app.command()
def hf_to_megatron(
    source: Source,
    destination: Destination,
    tp: Annotated[int, typer.Option(min=1, help="Tensor parallel size.")] = 1,
    pp: Annotated[int, typer.Option(min=1, help="Pipeline parallel size.")] = 1,
    ep: Annotated[int, typer.Option(min=1, help="Expert parallel size.")] = 1,
    vpp: Annotated[int, typer.Option(min=1, help="Model chunks per pipeline stage (interleaved schedule).")] = 1,
    first_stage_layers: Annotated[int | None, typer.Option(min=1, help="Layers of the first pipeline stage.")] = None,
    last_stage_layers: Annotated[int | None, typer.Option(min=1, help="Layers of the last pipeline stage.")] = None,
    make_vocab_size_divisible_by: Annotated[
        int, typer.Option(min=1, help="The vocabulary is padded to a multiple of this times TP.")
    ] = 128,
    workers: Workers = _WORKERS,
    overwrite: Overwrite = False,
) -> None:
    """Make a Megatron checkpoint (torch_dist) of a Hugging Face folder.

    Any layout can load it; the one named here reads the fewest bytes per rank.
    """
    from converters.convert import hf_to_megatron
    from converters.layout import Layout

    layout = Layout(tp, pp, ep, vpp, first_stage_layers, last_stage_layers)
    with _bytes_bar(source.name) as progress:
        hf_to_megatron(source, destination, layout, make_vocab_size_divisible_by, workers, overwrite, progress)
    print(destination)


@app.command()
def megatron_to_hf(
    source: Annotated[Path, typer.Argument(help="Checkpoint, or a run folder: its newest one.")],
    destination: Destination,
    like: Like = None,
    dtype: Annotated[Dtype | None, typer.Option(help="Of the weights; default: as they are stored.")] = None,
    fp8: Annotated[bool, typer.Option("--fp8", help="Linear layers in FP8 with block scales, for vLLM.")] = False,
    max_shard_size_gb: Annotated[float, typer.Option(min=0.001, help="Size of a weight file, in GB.")] = 5.0,
    workers: Workers = _WORKERS,
    overwrite: Overwrite = False,
) -> None:
    """Make a Hugging Face folder of a Megatron checkpoint."""
    import torch

    from converters.convert import megatron_to_hf

    with _bytes_bar(source.name) as progress:
        megatron_to_hf(
            _checkpoint(source),
            destination,
            like=like,
            dtype=None if dtype is None else getattr(torch, dtype.value),
            fp8=fp8,
            shard_bytes=int(max_shard_size_gb * 1e9),
            workers=workers,
            overwrite=overwrite,
            progress=progress,
        )
    print(destination)


@app.command()
def check(
    first: Annotated[Path, typer.Argument(help="Hugging Face folder, Megatron checkpoint or run folder.")],
    second: Annotated[Path, typer.Argument(help="Another one, of the same or the other kind.")],
    logits: Annotated[bool, typer.Option("--logits", help="Also compare the logits of random tokens.")] = False,
    like: Like = None,
    workers: Workers = _WORKERS,
) -> None:
    """Compare two checkpoints tensor by tensor, bit by bit. Exit status 1 if they differ.

    Ends with a one-line JSON summary on standard output.
    """
    from converters.compare import compare, open_checkpoint
    from converters.errors import os_errors
    from megatron_rl.progress import console

    a, b = _checkpoint(first), _checkpoint(second)
    differences = 0
    with os_errors(), _bytes_bar("comparing", unit="tensors") as progress:
        in_a, in_b = open_checkpoint(a, like), open_checkpoint(b, like)
        for difference in compare(in_a, in_b, workers, progress):
            differences += 1
            console.print(f"{difference.name}: {difference.what}", soft_wrap=True, markup=False)
    summary: dict[str, object] = {"tensors": len(in_a.describe()), "differences": differences}
    if logits:
        from megatron_rl.forward import compare_logits

        summary["logits_max_difference"] = compare_logits(a, b, like)
    print(json.dumps(summary))
    raise SystemExit(1 if differences else 0)


def _checkpoint(path: Path) -> Path:
    """`path`, or the newest checkpoint of the run folder `path`."""
    from megatron_rl.run_folder import RunFolder

    return next(reversed(RunFolder(path).checkpoints()), path)


@contextmanager
def _bytes_bar(title: str, unit: str = "bytes") -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error with amount, speed and time left."""
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    from megatron_rl.progress import console

    amount = (DownloadColumn(), TransferSpeedColumn()) if unit == "bytes" else (MofNCompleteColumn(),)
    columns = (TextColumn("{task.description}"), BarColumn(), *amount, TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
