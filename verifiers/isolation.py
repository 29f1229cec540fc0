"""The levels of isolation that programs can be given; `verifiers.code` says what each leaves open."""

from enum import StrEnum


class IsolationLevel(StrEnum):
    """Strongest first."""

    NAMESPACES = "namespaces"
    LANDLOCK = "landlock"
    SECCOMP = "seccomp"
    LIMITS = "limits"

    def reaches(self, minimum: "IsolationLevel") -> bool:
        """Whether this level is `minimum` or stronger."""
        order = list(IsolationLevel)
        return order.index(self) <= order.index(minimum)
