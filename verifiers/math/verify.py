"""The verdict on a response to a math problem."""

import time

from verifiers.math.compare import equivalent
from verifiers.math.extract import Extract, extract_answer
from verifiers.verdict import Result, Verdict


def verify_math(response: str, answer: str, extract: Extract = "strict") -> Result:
    """`pass` if the answer that `extract_answer` finds in the response equals the reference, else `wrong`.

    `no_answer` if there is none. A pure function that may be called from any thread; it has no time limit of its
    own, only bounds on sizes (run it in a `VerifierPool` for one). What cannot be read as mathematics is compared
    as text. An exception other than ValueError for an unknown `extract` is a bug of the verifier.
    """
    start = time.perf_counter()
    extracted = extract_answer(response, extract)
    if extracted is None:
        return Result(Verdict.NO_ANSWER, None, time.perf_counter() - start)
    passed = equivalent(extracted, answer)
    verdict = Verdict.PASS if passed else Verdict.WRONG
    detail = "" if passed else f"expected {answer[:80]}"
    return Result(verdict, extracted, time.perf_counter() - start, detail)
