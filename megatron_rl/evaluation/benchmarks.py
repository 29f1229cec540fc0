"""The benchmarks by name, and any file of problems as one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from megatron_rl.config.schema import DataConfig, Domain
from megatron_rl.curation.recipe import SourceConfig
from megatron_rl.curation.sources import Adapt, Unreadable, as_it_is, read_source
from megatron_rl.data.problems import Problem, load_problems
from megatron_rl.errors import InputError
from megatron_rl.evaluation.code_rows import humaneval, livecodebench, mbpp, mbpp_plus


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A set of problems and how often each is asked.

    Attributes:
        title: as tables have it.
        samples: per problem. As the paper has it where it says so (arXiv 2505.16400, section 4.1), else by size.
        columns: of the rows; with the path of a file of problems, and without for what is known by name.
        files: of what is known by name, below the folder of the benchmarks.
        adapt: gives the published rows these columns.
    """

    name: str
    title: str
    samples: int
    columns: SourceConfig | DataConfig
    files: tuple[str, ...] = ()
    domain: Domain = Domain.MATH
    adapt: Adapt = as_it_is

    def problems(self) -> list[Problem]:
        """All of them.

        Raises:
            InputError: a file cannot be read, or a row is no problem, or none is of this benchmark.
        """
        if isinstance(self.columns, DataConfig):
            return load_problems(self.columns)
        found: dict[str, Problem] = {}
        for file in self.files:
            for row in read_source(self.name, replace(self.columns, path=file), self.domain, self.adapt):
                if isinstance(row, Unreadable):
                    raise InputError(f"{file}: {row.id}: {row.reason}")
                if row.problem.id in found:
                    raise InputError(f"{file}: {row.problem.id} is also in another file")
                found[row.problem.id] = row.problem
        if not found:
            raise InputError(f"{', '.join(self.files)}: holds no problem of {self.name}")
        return list(found.values())


_NEMO_SKILLS = SourceConfig(prompt_key="problem", answer_key="expected_answer")
_PROBLEM_AND_ANSWER = SourceConfig(prompt_key="problem")
_BOXED = SourceConfig(prompt_key="problem", answer_key="solution", answer_is_boxed=True)
_GSM8K = SourceConfig(prompt_key="question", answer_marker="####")
_LIVECODEBENCH = SourceConfig(
    prompt_key="question_content",
    tests_keys=("public_test_cases", "private_test_cases"),
    fn_name_key="metadata.func_name",
)
_LCB_V5 = tuple(f"code_generation_lite/test{part}.jsonl" for part in (3, 4, 5))  # 1 and 2 are older
_LCB_V6 = ("code_generation_lite/test6.jsonl",)
_ADAPTED = SourceConfig()

BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark("aime24", "AIME24", 64, _NEMO_SKILLS, ("aime24.jsonl",)),
        Benchmark("aime25", "AIME25", 64, _NEMO_SKILLS, ("aime25.jsonl",)),
        Benchmark("hmmt25", "HMMT February 2025", 64, _PROBLEM_AND_ANSWER, ("hmmt_feb_2025.jsonl",)),
        Benchmark("brumo25", "BRUMO 2025", 64, _PROBLEM_AND_ANSWER, ("brumo_2025.jsonl",)),
        Benchmark("amc23", "AMC23", 16, _PROBLEM_AND_ANSWER, ("amc23_test.jsonl",)),
        Benchmark("math500", "MATH500", 4, _PROBLEM_AND_ANSWER, ("math500_test.jsonl",)),
        Benchmark("math", "MATH", 1, _BOXED, ("math_test5000_raw.jsonl",)),
        Benchmark("gsm8k", "GSM8K", 1, _GSM8K, ("gsm8k_test.jsonl",)),
        Benchmark(
            *("livecodebench_v5", "LiveCodeBench v5", 8, _LIVECODEBENCH, _LCB_V5, Domain.CODE),
            partial(livecodebench, first="2024-08-01", before="2025-02-01"),
        ),
        # The paper says from February on, and counts 175 problems: those of the whole file, which begins in January.
        Benchmark(
            *("livecodebench_v6", "LiveCodeBench v6", 8, _LIVECODEBENCH, _LCB_V6, Domain.CODE),
            partial(livecodebench, first="2025-01-01", before="2025-05-01"),
        ),
        Benchmark("humaneval", "HumanEval", 4, _ADAPTED, ("humaneval.jsonl",), Domain.CODE, humaneval),
        Benchmark("humaneval_plus", "HumanEval+", 4, _ADAPTED, ("humanevalplus.jsonl",), Domain.CODE, humaneval),
        Benchmark("mbpp", "MBPP", 4, _ADAPTED, ("mbpp.jsonl",), Domain.CODE, mbpp),
        Benchmark("mbpp_plus", "MBPP+", 4, _ADAPTED, ("mbppplus.jsonl",), Domain.CODE, mbpp_plus),
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
            one = replace(known, files=tuple(str(folder / file) for file in known.files))
        elif path.suffix:
            one = Benchmark(path.stem, path.stem, 1, replace(columns, path=name))
        else:
            raise InputError(f"{name}: no such benchmark; there are {', '.join(BENCHMARKS)}, and any JSONL file")
        found.append(one if samples is None else replace(one, samples=samples))
    twice = {one.name for one in found if sum(other.name == one.name for other in found) > 1}
    if twice:
        raise InputError(
            f"--benchmark: two of the name {', '.join(sorted(twice))}; give each once, files by other names"
        )
    return found
