"""How the commands complain."""

from __future__ import annotations

import sys

from ..errors import QueuecastError


class Failure(Exception):
    """A command cannot go on; its text is for the person at the shell."""

    def __init__(self, text: str, exit_code: int = 1) -> None:
        super().__init__(text)
        self.exit_code = exit_code


def line(error: QueuecastError) -> str:
    """Return an error as one line: what was wrong, then what helps."""
    text = f"{error.text}: {error.hint}" if error.hint else error.text
    return " ".join(text.split())


def complain(text: str) -> None:
    """Say one line on stderr."""
    print(f"queuecast: {text}", file=sys.stderr, flush=True)
