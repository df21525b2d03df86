"""What surrounds every step: its events, and a word left for the one who started it when it fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trainer.lifeline import end_with_parent
from trainer.observe import leave_word, timed


@contextmanager
def step(name: str, **fields: Any) -> Iterator[dict[str, Any]]:
    """Emit events around a step; the body may add fields to the last one (`reused`)."""
    end_with_parent()
    try:
        with timed(name, **fields) as found:
            yield found
    except Exception as error:
        leave_word(name, error)
        raise
