"""What decontamination costs, beside reading a file of problems and splitting them into words.

    python benchmarks/decontaminate.py [--rows 1000000] [--ngram 9] [--benchmark FILE:COLUMN ...]

Problems of words drawn by Zipf's law, 20 to 120 of them, some with a run of words of a benchmark's problem in their
midst, go by in turns of 50,000: once they are only read and split, once they are looked up as well. Without files the
benchmarks are drawn, too. What is found is compared with a look-up of every n-gram. The last line on standard output is
JSON.
"""

import argparse
import json
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

from rich.console import Console

from megatron_rl.curation.decontamination import NgramIndex
from megatron_rl.curation.text import words
from megatron_rl.data.problems import read_jsonl

TURN, CHECKED = 50_000, 20_000
PLANTED = 0.01
VOCABULARY, DRAWN_PROBLEMS = 20_000, 3_000
MAX_RATIO = 1.5


class Writer:
    """Draws texts."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        letters = "abcdefghijklmnopqrstuvwxyz"
        self._words = ["".join(self._rng.choices(letters, k=self._rng.randint(1, 9))) for _ in range(VOCABULARY)]
        self._weights = list(accumulate(1 / rank for rank in range(1, VOCABULARY + 1)))

    def text(self) -> list[str]:
        return self._rng.choices(self._words, cum_weights=self._weights, k=self._rng.randint(20, 120))

    def row(self, benchmark: list[str], ngram: int) -> str:
        found = self.text()
        if self._rng.random() < PLANTED:
            source = words(self._rng.choice(benchmark))
            begin = self._rng.randrange(max(1, len(source) - ngram))
            run = source[begin : begin + self._rng.randint(ngram - 2, ngram + 2)]
            place = self._rng.randrange(len(found))
            found[place:place] = run
        return " ".join(found).capitalize() + "."


def problems_of(files: list[str], writer: Writer) -> list[str]:
    """The benchmarks' statements."""
    if not files:
        return [" ".join(writer.text()) for _ in range(DRAWN_PROBLEMS)]
    pairs = [file.rpartition(":")[::2] for file in files]
    return [row[column] for path, column in pairs for _, row in read_jsonl(Path(path))]


def turns(path: Path) -> Iterator[list[tuple[float, str]]]:
    """The statements in turns, each with the seconds that reading it took."""
    rows = read_jsonl(path)
    while True:
        turn = []
        for _ in range(TURN):
            begin = time.perf_counter()
            row = next(rows, None)
            if row is None:
                break
            turn.append((time.perf_counter() - begin, row[1]["prompt"]))
        if not turn:
            return
        yield turn


def naively(texts: list[str], benchmark: list[str], ngram: int) -> int:
    """How many of the texts have an n-gram of a benchmark, looked up one by one."""
    grams = {tuple(w[i : i + ngram]) for w in map(words, benchmark) for i in range(len(w) - ngram + 1)}
    count = 0
    for text in texts:
        w = words(text)
        count += any(tuple(w[i : i + ngram]) in grams for i in range(len(w) - ngram + 1))
    return count


def measure(path: Path, rows: int, ngram: int, files: list[str], console: Console) -> dict[str, Any]:
    writer = Writer(seed=1)
    benchmark = problems_of(files, writer)
    with path.open("w") as file, console.status("writing"):
        for number in range(rows):
            file.write(json.dumps({"id": str(number), "prompt": writer.row(benchmark, ngram)}) + "\n")
    index = NgramIndex(ngram)
    for number, text in enumerate(benchmark):
        index.add("benchmark", str(number), text)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ratios, seconds, found, checked = [], [0.0, 0.0], 0, []
    with console.status("looking up") as status:
        for turn in turns(path):
            texts = [text for _, text in turn]
            begin = time.perf_counter()
            for text in texts:
                words(text)
            middle = time.perf_counter()
            matches = [index.match(text) is not None for text in texts]
            end = time.perf_counter()
            reading = sum(taken for taken, _ in turn)
            plain, whole = reading + middle - begin, reading + end - middle
            ratios.append(whole / plain)
            seconds = [seconds[0] + plain, seconds[1] + whole]
            found += sum(matches)
            if not checked:
                checked = [sum(matches[:CHECKED]), naively(texts[:CHECKED], benchmark, ngram)]
            status.update(f"{len(ratios) * TURN:,} rows")
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert checked[0] == checked[1], f"{checked[0]} found, {checked[1]} by looking up every n-gram"
    return {
        "rows": rows,
        "megabytes": round(path.stat().st_size / 1e6),
        "benchmark_problems": len(benchmark),
        "contaminated": found,
        "rows_per_second": {"read_and_split": round(rows / seconds[0]), "decontaminated": round(rows / seconds[1])},
        "time_of_read_and_split": round(statistics.median(ratios), 3),
        "memory_growth_mb": round((after - before) / 1024),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--ngram", type=int, default=9)
    parser.add_argument("--benchmark", action="append", default=[], metavar="FILE:COLUMN")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "problems.jsonl"
        result = measure(path, arguments.rows, arguments.ngram, arguments.benchmark, Console(stderr=True))
    measured = result["time_of_read_and_split"]
    target = {"name": "time / that of reading and splitting", "target": MAX_RATIO, "measured": measured}
    print(
        json.dumps({"benchmark": "decontaminate", **result, "targets": [target], "targets_met": measured < MAX_RATIO})
    )


if __name__ == "__main__":
    main()
