"""Rewards: does a response solve its problem?

`math` compares the boxed answer with the reference, `code` runs the program against tests in a
sandbox, `pool` does either in killable worker processes. Nothing here imports torch or the trainer.
"""

from verifiers.verdict import Result, Verdict

__all__ = ["Result", "Verdict"]
