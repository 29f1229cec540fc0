"""One verification as data: what a worker process gets, runs and answers with a `Result`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verifiers.math import Extract, verify_math
from verifiers.verdict import Result

MATH_SECONDS = 5.0
MATH_BYTES = 1 << 30
CODE_START_SECONDS = 10.0
CODE_MAX_SECONDS = 300.0


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
    def memory_bytes(self) -> int | None:
        """Address space that the task may add to its worker's."""
        return MATH_BYTES

    def run(self) -> Result:
        """The verdict, in this process."""
        return verify_math(self.response, self.answer, self.extract)


@dataclass(frozen=True, slots=True)
class CodeTask:
    """Run the program in a response on tests; see `verify_code`. `timeout` is in seconds, for each test."""

    response: str
    tests: Sequence[Mapping[str, Any]]
    fn_name: str | None = None
    starter_code: str | None = None
    timeout: float = 6.0

    @property
    def deadline_seconds(self) -> float:
        """Wall-clock seconds after which the task is given up: every test at its limit, but at most 5 minutes."""
        return min(CODE_START_SECONDS + (self.timeout + 1.0) * len(self.tests), CODE_MAX_SECONDS)

    @property
    def memory_bytes(self) -> int | None:
        """No limit here: the sandbox limits the program, which is where the memory goes."""
        return None

    def run(self) -> Result:
        """The verdict, in this process and the sandbox that it starts."""
        from verifiers.code import verify_code

        return verify_code(
            self.response,
            self.tests,
            fn_name=self.fn_name,
            starter_code=self.starter_code,
            timeout=self.timeout,
        )


Task = MathTask | CodeTask
