"""How the commands complain."""

from __future__ import annotations

import sys


class Failure(Exception):
    """A command cannot go on; its text is for the person at the shell."""

    def __init__(self, text: str, exit_code: int = 1) -> None:
        super().__init__(text)
        self.exit_code = exit_code


def complain(text: str) -> None:
    """Say one line on stderr."""
    print(f"queuecast: {text}", file=sys.stderr, flush=True)
