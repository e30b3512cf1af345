"""Exclusive queues and whose they are."""

import pytest

from queuecast.brokers.owners import Owners
from queuecast.errors import Locked
from queuecast.queuespec import Owner


def test_an_exclusive_queue_is_one_owner_s() -> None:
    owners, mine, other = Owners(), Owner(), Owner()
    owners.check("free", None)
    owners.take("q", mine)
    owners.take("q", mine)
    owners.check("q", mine)
    for stranger in (other, None):
        with pytest.raises(Locked, match="'q'"):
            owners.check("q", stranger)
        with pytest.raises(Locked):
            owners.take("q", stranger)
    owners.take("r", mine)
    assert owners.held(mine) == ["q", "r"]
    assert owners.held(other) == []
    owners.drop("q")
    owners.drop("q")
    owners.take("q", other)
    owners.clear()
    assert owners.held(mine) == owners.held(other) == []


def test_what_nobody_owns_is_not_locked() -> None:
    owners = Owners()
    owners.take("q", None)
    owners.check("q", Owner())
