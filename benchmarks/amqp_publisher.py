"""A back end: publishes with pika to a RabbitMQ at a fixed rate, with the time due in the body.

The stamp is when a message was due, not when it left: a broker that makes its publisher wait, or
a publisher that is late, adds to the latency and hides nothing. The argument is the broker's URL.
"""

from __future__ import annotations

import sys
import time

import pika
import uvloop

from . import child, message

# Between two looks at the clock, in which the broker can tell the publisher to stop.
_NAP = 0.002
_EXCHANGE = "amq.topic"


class Publisher:
    """One connection with one channel, and the command of the benchmark."""

    def __init__(self, url: str) -> None:
        parameters = pika.URLParameters(url)
        # It is idle while subscribers connect, and says nothing meanwhile.
        parameters.heartbeat = 0
        self._connection = pika.BlockingConnection(parameters)
        self._channel = self._connection.channel()
        self._key = message.DESTINATION.rpartition("/")[2]

    async def pace(self, rate: float, messages: int, size: int) -> child.Answer:
        """Publish `messages` messages, one each 1/rate seconds."""
        started = time.monotonic()
        before = child.usage()["cpu"]
        number = 0
        while number < messages:
            due = started + number / rate
            if due > time.monotonic():
                self._connection.process_data_events(_NAP)
                continue
            body = message.body(number, size, stamped=True, due=due)
            self._channel.basic_publish(_EXCHANGE, self._key, body)
            number += 1
        elapsed = time.monotonic() - started
        return {
            "started": started,
            "elapsed": elapsed,
            "busy": (child.usage()["cpu"] - before) / elapsed,
        }


async def main() -> None:
    """Serve until the standard input ends."""
    publisher = Publisher(sys.argv[1])
    child.tell({})
    await child.serve({"pace": publisher.pace})


if __name__ == "__main__":
    uvloop.run(main())
