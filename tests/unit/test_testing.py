"""queuecast.testing: what a user's own tests lean on."""

from __future__ import annotations

import pytest

from queuecast.testing import gateway


@pytest.mark.parametrize("body", [b"done", "磁盘".encode(), b"\xff\x00\r\n", b""])
def test_the_last_message_is_the_body_that_was_published(body: bytes) -> None:
    with gateway() as running:
        running.publish("/topic/job.7", body)
        assert running.last("/topic/job.7") == body
