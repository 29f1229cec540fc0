"""The outcome of one verification, the same for math and code."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self


class Verdict(StrEnum):
    """What became of a response. Only `PASS` earns a reward.

    `INFRA_ERROR` is the verifier's own fault (a worker died, a disk filled up): the sample is retried,
    then dropped from the batch, and never trains as a 0.
    """

    PASS = "pass"
    WRONG = "wrong"
    TIMEOUT = "timeout"
    RUNTIME_ERROR = "runtime_error"
    NO_ANSWER = "no_answer"
    INFRA_ERROR = "infra_error"


@dataclass(frozen=True, slots=True)
class Result:
    """Verdict of one response.

    Attributes:
        verdict: what became of it.
        extracted: the answer or program found in the response; None if there is none.
        seconds: wall-clock time that the verification took.
        detail: one line for people (which test failed, what an error said); may be empty.
    """

    verdict: Verdict
    extracted: str | None
    seconds: float
    detail: str = ""

    @property
    def reward(self) -> float:
        """1.0 for `pass`, 0.0 for everything else."""
        return 1.0 if self.verdict is Verdict.PASS else 0.0

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """The result that `dataclasses.asdict` turned into a record. Raises KeyError, ValueError or TypeError."""
        return cls(Verdict(record["verdict"]), record["extracted"], float(record["seconds"]), str(record["detail"]))
