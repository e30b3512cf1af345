"""Noticing a consumer that is answered no more, though Kafka is there.

The task in which aiokafka fetches may end without a word (its issue 983); who asks such a consumer
for records finds none for ever. It has to be replaced.
"""

from __future__ import annotations

import time
from typing import Any

from ...errors import Unavailable
from .control import Control

# Seconds without an answer. A request that a cut connection has lost is given up after 15.
PATIENCE = 30.0


class Silence:
    """How long ago one consumer was answered; to be made with it."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._heard = time.time()

    def check(self, consumer: Any) -> None:
        """Raise Unavailable when Kafka has been there for PATIENCE, but no answer of it.

        A partition without news is answered too, twice a second.
        """
        now = time.time()
        asked = consumer.assignment() - consumer.paused()
        if not asked or not self._control.ready:
            self._heard = now
            return
        answers = [consumer.last_poll_timestamp(tp) or 0 for tp in asked]  # ms
        self._heard = max(self._heard, max(answers) / 1000)
        if now - self._heard > PATIENCE:
            raise Unavailable(f"no answer for {PATIENCE:g} s, though Kafka is there")
