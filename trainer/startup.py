"""How long each part of getting ready takes, from the launcher's call to the first step."""

from __future__ import annotations

import time


class Startup:
    """Seconds by part, in order; each part ends where the next begins."""

    def __init__(self, started: float) -> None:
        self.seconds: dict[str, float] = {}
        self._last = started

    def done(self, part: str, at: float | None = None) -> None:
        """The end of a part, now or at a time in seconds since the epoch. Only the first end counts."""
        if part not in self.seconds:
            now = time.time() if at is None else at
            self.seconds[part] = round(max(0.0, now - self._last), 3)
            self._last = max(now, self._last)
