"""What is made of a verifier's verdict before advantages are."""


def overlong_penalty(length: int, max_length: int, buffer: int) -> float:
    """0 for responses that end before the buffer, -1 at `max_length`, linear between (DAPO, arXiv 2503.14476, eq. 13).

    All in tokens.
    """
    return -max(0.0, min(1.0, (length - (max_length - buffer)) / buffer))
