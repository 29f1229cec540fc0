"""The benchmarks by name, and any file of problems as one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from megatron_rl.config.schema import DataConfig, Domain
from megatron_rl.curation.recipe import SourceConfig
from megatron_rl.curation.sources import Unreadable, read_source
from megatron_rl.data.problems import Problem, load_problems
from megatron_rl.errors import InputError


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A set of problems and how often each is asked.

    Attributes:
        title: as tables have it.
        source: where the problems are; of a known benchmark a path below the folder of the benchmarks.
        samples: per problem. As the paper has it where it says so (arXiv 2505.16400, section 4.1), else by size.
    """

    name: str
    title: str
    source: SourceConfig | DataConfig
    samples: int

    def problems(self) -> list[Problem]:
        """All of them.

        Raises:
            InputError: the file cannot be read, or a row is no problem.
        """
        if isinstance(self.source, DataConfig):
            return load_problems(self.source)
        found = []
        for row in read_source(self.name, self.source, Domain.MATH):
            if isinstance(row, Unreadable):
                raise InputError(f"{self.source.path}: {row.id}: {row.reason}")
            found.append(row.problem)
        if not found:
            raise InputError(f"{self.source.path}: holds no problem")
        return found


BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            "aime24",
            "AIME24",
            SourceConfig(path="aime24.jsonl", prompt_key="problem", answer_key="expected_answer"),
            64,
        ),
        Benchmark(
            "aime25",
            "AIME25",
            SourceConfig(path="aime25.jsonl", prompt_key="problem", answer_key="expected_answer"),
            64,
        ),
        Benchmark("amc23", "AMC23", SourceConfig(path="amc23_test.jsonl", prompt_key="problem"), 16),
        Benchmark(
            "math500",
            "MATH500",
            SourceConfig(path="math500_test.jsonl", prompt_key="problem"),
            4,
        ),
        Benchmark(
            "math",
            "MATH",
            SourceConfig(
                path="math_test5000_raw.jsonl", prompt_key="problem", answer_key="solution", answer_is_boxed=True
            ),
            1,
        ),
        Benchmark(
            "gsm8k", "GSM8K", SourceConfig(path="gsm8k_test.jsonl", prompt_key="question", answer_marker="####"), 1
        ),
    )
}
"""With the columns of the files that their authors publish."""


def find_benchmarks(names: Sequence[str], folder: Path, columns: DataConfig, samples: int | None) -> list[Benchmark]:
    """The benchmarks that were asked for.

    Args:
        names: of `BENCHMARKS`, or files of problems.
        folder: where the files of the named ones lie.
        columns: of the files that were given.
        samples: per problem; None: each benchmark's own, and one of a file's.

    Raises:
        InputError: there is no such benchmark or file, or one twice.
    """
    found = []
    for name in names:
        path = Path(name)
        if name in BENCHMARKS:
            known = BENCHMARKS[name]
            assert isinstance(known.source, SourceConfig)
            one = replace(known, source=replace(known.source, path=str(folder / str(known.source.path))))
        elif path.suffix:
            one = Benchmark(path.stem, path.stem, replace(columns, path=name), 1)
        else:
            raise InputError(f"{name}: no such benchmark; there are {', '.join(BENCHMARKS)}, and any JSONL file")
        found.append(one if samples is None else replace(one, samples=samples))
    twice = {one.name for one in found if sum(other.name == one.name for other in found) > 1}
    if twice:
        raise InputError(
            f"--benchmark: two of the name {', '.join(sorted(twice))}; give each once, files by other names"
        )
    return found
