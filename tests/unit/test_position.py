"""Positions: text and back, and what a client may ask to start from."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queuecast.errors import BadPosition
from queuecast.position import LIVE, MAX_POSITION_TEXT, Mark, Position, Start, Vector, new_epoch

marks = st.builds(Mark, st.from_regex(r"[0-9a-z]{1,32}", fullmatch=True), st.integers(0, 10**18))


@given(st.lists(marks, min_size=1, max_size=30))
def test_text_and_back(vector: list[Mark]) -> None:
    position = Position(vector)
    assert Position.parse(str(position)) == position
    assert str(Vector(vector)) == str(position)
    assert Vector(vector).position() == position


@pytest.mark.parametrize(
    "text",
    [
        *[
            "",
            "a",
            "a-",
            "-1",
            "a-01",
            "A-1",
            "a-1,",
            ",a-1",
            "a-1 ",
            "a-1\n",
            "a-١",
            "ä-1",
            "a--1",
        ],
        "a-" + "1" * 20,
        "a" * 33 + "-1",
        "0-1\x00",
    ],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(BadPosition):
        Position.parse(text)


def test_a_long_text_is_refused_before_it_is_read() -> None:
    with pytest.raises(BadPosition, match=str(MAX_POSITION_TEXT)):
        Position.parse("a-1," * 1000)


@pytest.mark.parametrize(
    ("text", "compact"),
    [
        ("k-5,k-7,k-0", "k-5.7.0"),
        ("k-5.7,k-0,b-1", "k-5.7.0,b-1"),
        ("k-5,b-1,k-7", "k-5,b-1,k-7"),
    ],
)
def test_neighbours_of_one_epoch_share_its_name(text: str, compact: str) -> None:
    assert Position.parse(text) == Position.parse(compact)
    assert str(Position.parse(text)) == str(Vector(Position.parse(text))) == compact


@pytest.mark.parametrize(
    ("text", "bounds"),
    [
        ("k-5~7", (0, 1)),
        ("k-5.6~7.8", (0, 2)),
        ("b-1.2~k-5~6.7~8,c-0", (0, 2, 3, 5)),
        ("k-5.7,b-1", ()),
    ],
)
def test_a_text_shows_that_another_destination_begins(text: str, bounds: tuple[int, ...]) -> None:
    position = Position.parse(text)
    assert position.bounds == bounds
    assert str(position) == str(Vector(position)) == str(Vector(position).position()) == text
    assert Position.parse("~".join(map(str, position.parts()))) == position


def test_many_destinations_of_one_numbering_stay_short() -> None:
    marks, bounds = [Mark("k", 5)] * 300, tuple(range(300))
    assert str(Vector(marks, bounds)) == "k-5" + "~5" * 299


@pytest.mark.parametrize(
    "text",
    [
        "k-5~",
        "k-~5",
        "k-5.~6",
        "k~5",
        "~k-5",
        "k-5~06",
        "k-5.",
        "k-.5",
        "k-5..6",
        "k-5.06",
        "k.5",
        "k-5.6-7",
    ],
)
def test_malformed_runs_are_refused(text: str) -> None:
    with pytest.raises(BadPosition):
        Position.parse(text)


def test_a_vector_moves_lane_by_lane() -> None:
    vector = Vector([Mark("a", 1), Mark("b", 1)])
    before = vector.copy()
    vector.advance(1, 5)
    vector.advance(0, 0, "c")
    assert str(vector) == "c-0,b-5"
    assert str(before) == "a-1,b-1"


def test_epochs_differ() -> None:
    epochs = {new_epoch("n") for _ in range(1000)}
    assert len(epochs) == 1000
    assert all(Position.parse(f"{epoch}-0") for epoch in epochs)


@pytest.mark.parametrize(
    ("since", "last", "start"),
    [
        (None, None, LIVE),
        ("", "", LIVE),
        (None, "0", LIVE),
        (None, "12", Start("last", count=12)),
        ("first", None, Start("first")),
        ("1795302624", None, Start("time", time=1795302624.0)),
        ("1795302624.25", None, Start("time", time=1795302624.25)),
        ("a-7", None, Start("since", position=Position([Mark("a", 7)]))),
        ("a-7", "1", Start("since", position=Position([Mark("a", 7)]))),
        ("first", "1", Start("first")),
        ("a-7", "nonsense", Start("since", position=Position([Mark("a", 7)]))),
    ],
)
def test_start(since: str | None, last: str | None, start: Start) -> None:
    assert Start.parse(since, last) == start


def test_an_event_id_is_a_position_or_foreign() -> None:
    asked = Start("last", count=1, foreign=True)
    position = Position([Mark("a", 7)])
    assert Start.parse("first", None, "a-7") == Start(
        "since", position=position, otherwise=Start("first", foreign=True)
    )
    for foreign in ("abc", "first", "42", "2026-01-31T12:00:00Z", "1526919030474-0", "a" * 3000):
        assert Start.parse(None, "1", foreign) == asked
    assert Start.parse(None, "1", "") == Start("last", count=1)


@pytest.mark.parametrize("last", ["-1", "1.5", "x", "²", "١", "1" * 10, " 1"])
def test_last_is_a_count(last: str) -> None:
    with pytest.raises(BadPosition, match="count") as caught:
        Start.parse(None, last)
    assert "0 to 999999999" in caught.value.hint
