"""A clock that stands still until it is told to move on."""


class Clock:
    """`now` is in seconds; a test may set it, or add to it."""

    def __init__(self, now: float = 1_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds
