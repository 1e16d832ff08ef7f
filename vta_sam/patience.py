"""How long to wait for a server, and which of its answers are worth asking again."""

from __future__ import annotations

from dataclasses import dataclass

PASSING_STATUSES = (408, 425, 429, 500, 502, 503, 504)  # of HTTP: it may be otherwise a moment later


@dataclass(frozen=True)
class Patience:
    """How long to wait for a server, and how often to ask it again."""

    connect_s: float = 10.0
    read_s: float = 60.0  # without a single byte
    attempts: int = 5  # in a row that bring next to nothing
    wait_s: float = 1.0  # before the second attempt; doubled before each one after it

    def pause_s(self, failures: int) -> float:
        """How long to wait after so many failures in a row."""
        return self.wait_s * 2 ** max(failures - 1, 0)
