"""Math answers: extraction from a response, and equality with a reference. Pure functions, no `eval` anywhere."""

from verifiers.math.compare import why_unreadable
from verifiers.math.extract import Extract, extract_answer
from verifiers.math.verify import verify_math

__all__ = ["Extract", "extract_answer", "verify_math", "why_unreadable"]
