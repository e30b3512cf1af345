"""The destinations, all fed by the same messages, and the gateway's configuration for them.

Messages go to one key. Three patterns match it: one is under a rule that keeps everything, one
under a rule that soon has to let go of what is old, one under no rule at all.
"""

from __future__ import annotations

from collections.abc import Collection

from queuecast.hub.cohort import KEPT_BYTES
from queuecast.hub.log import ENTRY_OVERHEAD
from queuecast.hub.page import FEED_PAGES, SHEET_BYTES
from queuecast.server.connection import WRITE_BUFFER

from .. import message

KEPT = message.DESTINATION
OUTGROWN = "/topic/*"
UNRETAINED = "/topic/#"
FEEDS = {"retained": KEPT, "outgrown": OUTGROWN, "unretained": UNRETAINED}

# Of the rule that is outgrown, and of a feed's log: so much that who reads all the time on a
# machine that stalls for a moment does not fall behind it.
OUTGROWN_BYTES = 8 << 20
LOG_BYTES = 16 << 20

# Of each feed: the rule that keeps its messages, "" for none.
_RULES = {
    "retained": f'[[retain]]\ndestination = "{KEPT}"\nbytes = "4GB"\n',
    "outgrown": f'[[retain]]\ndestination = "{OUTGROWN}"\nbytes = {OUTGROWN_BYTES}\n',
    "unretained": "",
}


def configuration(port: int, data: str, names: Collection[str]) -> str:
    """Return the configuration file of a gateway that serves these feeds.

    data: a directory. It is used only where everything is kept: memory would not do.
    """
    durable = f'data = "{data}"\n' if "retained" in names else ""
    rules = "".join(_RULES[name] for name in FEEDS if name in names)
    return (
        f'[server]\nport = {port}\ngrace = "1s"\n[broker]\n{durable}'
        f"[log]\nbytes = {LOG_BYTES}\n{rules}"
    )


def filling(size: int) -> int:
    """Return how many messages fill a log. size: of a body."""
    return LOG_BYTES // (size + ENTRY_OVERHEAD)


def allowance(sleepers: int, size: int) -> int:
    """Return the bytes that sleepers may cost the gateway, awake again or not.

    size: of a body. Each has what its socket was given, and what its cohort may keep encoded; those
    of a feed share its pages of history, each of them read and encoded.
    """
    history = len(FEEDS) * FEED_PAGES * SHEET_BYTES
    # A page's messages are objects, each with a key, headers and a place besides its body.
    objects = history * 400 // (size + 400)
    return sleepers * (2 * WRITE_BUFFER + KEPT_BYTES) + history + objects
