"""Counts that tests keep and that are told at the end of the session, however many processes it had."""

from collections import Counter

total: Counter[str] = Counter()
