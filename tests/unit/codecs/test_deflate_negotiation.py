"""permessage-deflate: which offers of a client are taken, and what is answered."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from queuecast.codecs.deflate import negotiate

PLAIN = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"

# Offers, and the answer. The combinations of Autobahn's groups 13.1 to 13.7 are among them.
OFFERS: dict[str, str | None] = {
    "permessage-deflate": PLAIN,
    "permessage-deflate; client_max_window_bits": PLAIN,
    "permessage-deflate; client_max_window_bits=15": PLAIN,
    "permessage-deflate; client_max_window_bits=8": PLAIN,
    'permessage-deflate; client_max_window_bits="10"': PLAIN,
    r'permessage-deflate; client_max_window_bits="1\0"': PLAIN,
    "permessage-deflate; server_no_context_takeover; client_no_context_takeover": PLAIN,
    "permessage-deflate;client_no_context_takeover": PLAIN,
    " permessage-deflate ;\tclient_max_window_bits = 9 ": PLAIN,
    "permessage-deflate; server_max_window_bits=15": PLAIN + "; server_max_window_bits=15",
    'permessage-deflate; server_max_window_bits="15"; client_max_window_bits': PLAIN
    + "; server_max_window_bits=15",
    # Declined: a window below 15 of ours, and what section 7 does not know.
    "permessage-deflate; server_max_window_bits=9": None,
    "permessage-deflate; server_max_window_bits=14; client_max_window_bits=15": None,
    "permessage-deflate; server_max_window_bits=8": None,
    "permessage-deflate; server_max_window_bits": None,
    "permessage-deflate; server_max_window_bits=16": None,
    "permessage-deflate; server_max_window_bits=015": None,
    "permessage-deflate; client_max_window_bits=7": None,
    "permessage-deflate; client_max_window_bits=16": None,
    "permessage-deflate; client_max_window_bits=08": None,
    "permessage-deflate; client_max_window_bits=x": None,
    "permessage-deflate; client_max_window_bits=+9": None,
    "permessage-deflate; server_no_context_takeover=1": None,
    "permessage-deflate; client_no_context_takeover=true": None,
    "permessage-deflate; unknown": None,
    "permessage-deflate; client_max_window_bits; client_max_window_bits": None,
    "permessage-deflate; client_max_window_bits=10; client_max_window_bits": None,
    "Permessage-Deflate-2": None,
    "x-webkit-deflate-frame": None,
    "permessage-bzip2": None,
    "": None,
    # The first that can be accepted is.
    "permessage-deflate; server_max_window_bits=10, permessage-deflate": PLAIN,
    "permessage-deflate; bogus, permessage-deflate; server_max_window_bits=15": PLAIN
    + "; server_max_window_bits=15",
    "permessage-bzip2; x=1, permessage-deflate; client_max_window_bits": PLAIN,
    'x; y="a", permessage-deflate': PLAIN,
    ",, permessage-deflate ,": PLAIN,
    # Malformed: nothing is taken from it.
    "permessage-deflate;": None,
    "permessage-deflate; ;": None,
    "permessage-deflate; =15": None,
    "permessage-deflate; client_max_window_bits=": None,
    'permessage-deflate; client_max_window_bits="': None,
    'permessage-deflate; client_max_window_bits="10': None,
    'permessage-deflate; client_max_window_bits="1 0"': None,
    'permessage-deflate; client_max_window_bits=""': None,
    "permessage-deflate client_max_window_bits": None,
    "permessage-deflate, @": None,
    'permessage-deflate, x; y="a,b"': None,
    "; permessage-deflate": None,
    "permessage-deflate; client_max_window_bits=10 10": None,
    "permessage-deflate; cliént": None,
}


@pytest.mark.parametrize("offer", OFFERS)
def test_negotiation(offer: str) -> None:
    assert negotiate({"sec-websocket-extensions": offer}) == OFFERS[offer]


def test_no_offer_at_all() -> None:
    assert negotiate({}) is None


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [*'";,=\\ \t\x00é', "permessage-deflate", "client_max_window_bits", "10", "x"]
        ),
        max_size=30,
    ).map("".join)
)
def test_any_offer_is_accepted_or_declined(offer: str) -> None:
    answer = negotiate({"sec-websocket-extensions": offer})
    assert answer is None or answer.startswith(PLAIN)
    assert answer is None or "permessage-deflate" in offer
