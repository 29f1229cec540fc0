"""One verification as data: what a worker process gets, runs and answers with a `Result`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from verifiers.isolation import IsolationLevel
from verifiers.math import Extract, verify_math
from verifiers.verdict import Result

MATH_SECONDS = 5.0
MATH_BYTES = 1 << 30
CODE_BUDGET_SECONDS = 300.0
_CODE_GRACE_SECONDS = 30.0  # for a sandbox to start, and to be given up


@dataclass(frozen=True, slots=True)
class MathTask:
    """Compare the answer in a response with the reference; see `verify_math`."""

    response: str
    answer: str
    extract: Extract = "strict"

    @property
    def deadline_seconds(self) -> float:
        """Wall-clock seconds after which the task is given up."""
        return MATH_SECONDS

    @property
    def expected_seconds(self) -> float:
        """A guess at the time it takes, by which tasks are ordered."""
        return 0.002

    @property
    def memory_bytes(self) -> int | None:
        """Address space that the task may add to its worker's."""
        return MATH_BYTES

    def run(self) -> Result:
        """The verdict, in this process."""
        return verify_math(self.response, self.answer, self.extract)


@dataclass(frozen=True, slots=True)
class CodeTask:
    """Run the program in a response on tests; the fields are the arguments of `verify_code`."""

    response: str
    tests: Sequence[Mapping[str, Any]]
    fn_name: str | None = None
    starter_code: str | None = None
    timeout: float = 6.0
    budget: float = CODE_BUDGET_SECONDS
    longest_first: bool = False
    min_isolation: IsolationLevel = IsolationLevel.LIMITS

    @property
    def deadline_seconds(self) -> float:
        """Wall-clock seconds after which the task is given up, if `verify_code` has not ended it by its own limits."""
        return min((self.timeout + 1.0) * len(self.tests), self.budget) + self.timeout + _CODE_GRACE_SECONDS

    @property
    def expected_seconds(self) -> float:
        """A guess at the time it takes, by which tasks are ordered: a start for each test, and reading its input."""
        return 0.005 + sum(0.002 + 1e-7 * len(test["input"]) for test in self.tests)

    @property
    def memory_bytes(self) -> int | None:
        """No limit here: the sandbox limits the program, which is where the memory goes."""
        return None

    def run(self) -> Result:
        """The verdict, in this process and the sandbox that it starts."""
        from verifiers.code import verify_code

        return verify_code(**{field.name: getattr(self, field.name) for field in fields(self)})


Task = MathTask | CodeTask
_KINDS: dict[str, type[Task]] = {"math": MathTask, "code": CodeTask}


def to_record(task: Task) -> dict[str, Any]:
    """The task as what JSON can hold, for `from_record`."""
    kind = next(name for name, cls in _KINDS.items() if type(task) is cls)
    return {"kind": kind, **{field.name: getattr(task, field.name) for field in fields(task)}}


def from_record(record: Mapping[str, Any]) -> Task:
    """The task that `to_record` wrote.

    Raises:
        ValueError: an unknown kind or field, or one that is missing.
    """
    values = dict(record)
    kind = _KINDS.get(values.pop("kind", None))
    if kind is None:
        raise ValueError(f"unknown kind of task {record.get('kind')!r:.40}")
    try:
        if kind is CodeTask:
            values["min_isolation"] = IsolationLevel(values["min_isolation"])
        return kind(**values)
    except (TypeError, KeyError) as error:
        raise ValueError(f"unusable {record['kind']} task: {error}") from error
