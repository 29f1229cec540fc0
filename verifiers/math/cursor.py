"""Where a parser stands in its tokens."""

from verifiers.math.nodes import Unreadable
from verifiers.math.tokens import Kind, Token

MAX_DEPTH = 60

END = Token(Kind.MARK, "")


class Cursor:
    """Tokens, the place among them, and how deep in the expression that is."""

    def __init__(self, tokens: tuple[Token, ...]) -> None:
        self.tokens = tokens
        self.at = 0
        self.depth = 0
        self.bars = 0  # open |...|: inside, a bar closes

    @property
    def peek(self) -> Token:
        return self.tokens[self.at] if self.at < len(self.tokens) else END

    def next(self) -> Token:
        token = self.peek
        self.at += 1
        return token

    def accept(self, *texts: str) -> str | None:
        token = self.peek
        if token.text in texts and token.kind in (Kind.MARK, Kind.COMMAND):
            self.at += 1
            return token.text
        return None

    def expect(self, text: str) -> None:
        if not self.accept(text):
            raise Unreadable(f"expected {text!r} at {self.peek.text!r}")

    def enter(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable("nested too deeply")
