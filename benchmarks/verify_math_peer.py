"""What `verify_math.py` compares: graders of math answers, each in its own process and environment.

    python benchmarks/verify_math_peer.py ours | math-verify

Reads lines of {response, answer} from standard input, the reference being the answer, and answers each with
{passed, seconds}: the wall clock of reading both and comparing them. A grader's own time limit is left as it comes.
"""

import json
import logging
import sys
import time
from collections.abc import Callable

Grader = Callable[[str, str], bool]


def ours() -> Grader:
    from verifiers.math import verify_math

    return lambda response, answer: verify_math(response, answer).reward == 1.0


def math_verify() -> Grader:
    from math_verify import parse, verify

    logging.disable()
    return lambda response, answer: verify(parse(rf"\boxed{{{answer}}}"), parse(response))


def main() -> None:
    graders = {"ours": ours, "math-verify": math_verify}
    name = sys.argv[1]
    grade = graders[name]()
    for answer, reference in ((r"\sqrt{12}", r"2\sqrt{3}"), (r"\frac{x^2-1}{x-1}", "x+1")):
        grade(rf"</think> \boxed{{{answer}}}", reference)  # what it imports only now
    for line in sys.stdin:
        task = json.loads(line)
        start = time.perf_counter()
        passed = bool(grade(task["response"], task["answer"]))
        print(json.dumps({"passed": passed, "seconds": time.perf_counter() - start}), flush=True)


if __name__ == "__main__":
    main()
