"""Speed, memory and exactness of checkpoint conversion, against a plain copy of the same bytes.

    python benchmarks/convert.py [--model 7b|1.5b] [--folder DIR] [--repeats 3] [--peers [--environments DIR]]

Makes a folder of random bfloat16 weights with the true sizes of DeepSeek-R1-Distill-Qwen, then, in turns: copies it
(with fsync), converts it to Megatron at TP=4 x PP=2, and converts that back. `--peers` also runs mbridge and
Megatron-Bridge, each in an environment of its own, on the 1.5B sizes. The last line on standard output is JSON.
"""

import argparse
import filecmp
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from converters.families import family_of
from converters.hf_config import model_shape
from converters.hf_folder import HFReader, HFWriter

ROOT = Path(__file__).parents[1]
CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
}
SIZES = {
    "7b": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_attention_heads": 28,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
    },
    "1.5b": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_attention_heads": 12,
        "num_hidden_layers": 28,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
    },
}
LAYOUTS = {"7b": ("--tp", "4", "--pp", "2"), "1.5b": ("--tp", "2", "--pp", "2")}
MAX_RATIO, MAX_GIB = 1.5, 4.0
_SAMPLE_SECONDS = 0.01


def make_source(folder: Path, model: str) -> None:
    """A folder of random weights; the same for the same model."""
    folder.mkdir(parents=True)
    config = CONFIG | SIZES[model]
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    sizes = family_of(config).hf_tensors(model_shape(config, 1))
    writer = HFWriter(folder, {name: (torch.bfloat16, size) for name, size in sizes.items()})
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(1 << 22, generator=generator).mul_(0.02).bfloat16()
    for name, size in sizes.items():
        count = torch.Size(size).numel()
        start = int(torch.randint(0, len(noise), (), generator=generator))
        writer.write(name, noise.roll(start).repeat(-(-count // len(noise)))[:count].view(size))
    writer.finish()


def copy(source: Path, destination: Path) -> None:
    """A plain copy, brought to the disk."""
    shutil.copytree(source, destination)
    for path in destination.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Run:
    """A command that ran: seconds, the peak of its own memory in GiB (page cache does not count), and its output."""

    seconds: float
    gib: float
    output: str


def run(command: Sequence[str | Path], **environment: str) -> Run:
    """Run a command to its end, which must be a good one."""
    words = [str(part) for part in command]
    process = subprocess.Popen(words, env=os.environ | environment, stdout=subprocess.PIPE, text=True)
    peak = [0]
    begin = time.monotonic()
    watcher = threading.Thread(target=_watch, args=(process, peak))
    watcher.start()
    output = process.communicate()[0]
    seconds = time.monotonic() - begin
    watcher.join()
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(words)} ended with status {process.returncode}")
    return Run(seconds, peak[0] / (1 << 20), output)


def _watch(process: "subprocess.Popen[str]", peak: list[int]) -> None:
    while process.poll() is None:
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        except OSError:
            return
        sizes = [int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssShmem"))]
        peak[0] = max(peak[0], sum(sizes))
        time.sleep(_SAMPLE_SECONDS)


def timed(work: Callable[[], None]) -> float:
    begin = time.monotonic()
    work()
    return time.monotonic() - begin


def same_files(a: Path, b: Path) -> bool:
    """The same weight files, byte for byte."""
    names = sorted(path.name for path in a.glob("*.safetensors"))
    return names == sorted(path.name for path in b.glob("*.safetensors")) and all(
        filecmp.cmp(a / name, b / name, shallow=False) for name in names
    )


def conversion(model: str, folder: Path, repeats: int) -> dict[str, Any]:
    """Both directions against the copy, in turns."""
    source, megatron, back, plain = (folder / name for name in ("source", "megatron", "back", "plain"))
    make_source(source, model)
    convert = [sys.executable, "-m", "megatron_rl", "convert"]
    times: dict[str, list[float]] = {"copy": [], "hf_to_megatron": [], "megatron_to_hf": []}
    peaks = {"hf_to_megatron": 0.0, "megatron_to_hf": 0.0}
    exact = True
    for turn in range(repeats + 1):  # the first touch of a page is slow on some machines: the first turn warms up
        for path in (megatron, back):
            shutil.rmtree(path, ignore_errors=True)
        found = {"copy": timed(lambda: copy(source, plain))}
        shutil.rmtree(plain)
        there = run([*convert, "hf-to-megatron", source, megatron, *LAYOUTS[model]])
        again = run([*convert, "megatron-to-hf", megatron, back])
        found |= {"hf_to_megatron": there.seconds, "megatron_to_hf": again.seconds}
        peaks = {
            "hf_to_megatron": max(peaks["hf_to_megatron"], there.gib),
            "megatron_to_hf": max(peaks["megatron_to_hf"], again.gib),
        }
        exact &= same_files(source, back)
        print(f"turn {turn}: " + ", ".join(f"{key} {value:.2f} s" for key, value in found.items()), file=sys.stderr)
        if turn:
            for key, value in found.items():
                times[key].append(value)
    medians = {key: statistics.median(values) for key, values in times.items()}
    return {
        "model": model,
        "gigabytes": round(sum(path.stat().st_size for path in source.glob("*.safetensors")) / 1e9, 2),
        "seconds": {key: round(value, 2) for key, value in medians.items()},
        "ratio_to_copy": {key: round(medians[key] / medians["copy"], 3) for key in peaks},
        "peak_gib": {key: round(value, 2) for key, value in peaks.items()},
        "bitwise_equal": exact,
    }


PEERS = {
    "mbridge": [
        ["torch==2.13.0", "megatron-core==0.16.1", "transformers>=5.16.1,<5.20", "safetensors", "einops"],
        ["accelerate", "omegaconf", "typer"],
        ["--no-deps", "mbridge==0.15.1"],
    ],
    "megatron-bridge": [
        ["torch==2.13.0", "megatron-core==0.16.1", "transformers<5", "safetensors", "einops", "accelerate"],
        ["omegaconf", "typer", "hydra-core", "rich", "tqdm", "regex", "pyyaml", "six", "triton"],
        ["datasets", "transformers<5", "huggingface-hub<1.0"],  # datasets alone would bring a newer hub client
        ["--no-deps", "megatron-bridge==0.3.1"],
    ],
}
"""What pip installs for each, one call after another; Transformer Engine needs a GPU and is left out."""


def peers(folder: Path, environments: Path, repeats: int) -> dict[str, Any]:
    """Ours and the peers on the 1.5B sizes: a folder into a live model, and that to a folder, with fsync."""
    source = folder / "source"
    make_source(source, "1.5b")
    pythons = {"ours": Path(sys.executable)} | {name: peer_python(name, environments / name) for name in PEERS}
    times: dict[str, list[dict[str, float]]] = {name: [] for name in pythons}
    peaks = dict.fromkeys(pythons, 0.0)
    exact = dict.fromkeys(pythons, True)
    for turn in range(repeats + 1):
        for name, python in pythons.items():
            out = folder / name
            shutil.rmtree(out, ignore_errors=True)
            found = run([python, ROOT / "benchmarks/convert_live.py", name, source, out], PYTHONPATH=str(ROOT))
            seconds = json.loads(found.output.splitlines()[-1])
            print(f"turn {turn}: {name} {seconds}, peak {found.gib:.2f} GiB", file=sys.stderr)
            peaks[name] = max(peaks[name], found.gib)
            exact[name] &= same_tensors(source, out)
            if turn:
                times[name].append(seconds)
            shutil.rmtree(out)
    return {
        name: {
            "load_seconds": statistics.median(entry["load"] for entry in times[name]),
            "save_seconds": statistics.median(entry["save"] for entry in times[name]),
            "peak_gib": round(peaks[name], 2),
            "bitwise_equal": exact[name],
        }
        for name in pythons
    }


def peer_python(name: str, environment: Path) -> Path:
    """The interpreter of a peer's environment, which is made if it is not there."""
    python = environment / "bin" / "python"
    if not (environment / ".installed").is_file():
        subprocess.run(["python3.11", "-m", "venv", str(environment)], check=True)
        for packages in PEERS[name]:
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
        (environment / ".installed").touch()
    return python


def same_tensors(a: Path, b: Path) -> bool:
    """The same tensors, bit for bit, however they are spread over files."""
    first, second = HFReader(a), HFReader(b)
    return first.names == second.names and all(
        torch.equal(first[name].view(torch.uint8), second[name].view(torch.uint8)) for name in first.names
    )


def targets(result: dict[str, Any]) -> list[dict[str, Any]]:
    """What issue and README promise, against what was measured."""
    rows = []
    for direction, ratio in result["ratio_to_copy"].items():
        rows.append({"name": f"{direction}: time over copy", "target": f"<= {MAX_RATIO}", "measured": ratio})
        rows[-1]["met"] = ratio <= MAX_RATIO
        gib = result["peak_gib"][direction]
        rows.append({"name": f"{direction}: peak GiB", "target": f"< {MAX_GIB}", "measured": gib, "met": gib < MAX_GIB})
    exact = result["bitwise_equal"]
    rows.append({"name": "bitwise equal", "target": True, "measured": exact, "met": exact})
    return rows + (peer_targets(result) if "peers" in result else [])


def peer_targets(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Ours against the better peer in each figure; of memory, ours without a model against theirs with one."""
    others = dict(result["peers"])
    own = others.pop("ours")
    rows = []
    for part in ("load", "save"):
        ratio = round(own[f"{part}_seconds"] / min(peer[f"{part}_seconds"] for peer in others.values()), 3)
        rows.append({"name": f"{part}: time over the faster peer's", "target": "<= 1", "measured": ratio})
        rows[-1]["met"] = ratio <= 1
    ratio = round(max(result["peak_gib"].values()) / min(peer["peak_gib"] for peer in others.values()), 3)
    rows.append({"name": "peak memory over the smaller peer's", "target": "<= 0.333", "measured": ratio})
    rows[-1]["met"] = ratio <= 1 / 3
    exact = all(system["bitwise_equal"] for system in result["peers"].values())
    return [*rows, {"name": "all systems bitwise equal", "target": True, "measured": exact, "met": exact}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SIZES, default="7b")
    parser.add_argument("--folder", type=Path, help="where to work; default: a new folder for temporary files")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peers", action="store_true", help="also run mbridge and Megatron-Bridge, on the 1.5B sizes")
    parser.add_argument("--environments", type=Path, help="where the peers' environments are kept; default: nowhere")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        result = conversion(arguments.model, Path(folder), arguments.repeats)
        if arguments.peers:
            environments = arguments.environments or Path(folder) / "environments"
            result["peers"] = peers(Path(folder) / "peers", environments, arguments.repeats)
    rows = targets(result)
    versions = {package: version(package) for package in ("torch", "safetensors")}
    versions |= {name: packages[-1][-1] for name, packages in PEERS.items()} if arguments.peers else {}
    report = {"benchmark": "convert", "versions": versions, **result}
    print(json.dumps(report | {"targets": rows, "targets_met": all(row["met"] for row in rows)}))


if __name__ == "__main__":
    main()
