"""The conformance table names tests that exist, in every row, and reasons where it differs."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/stomp-conformance.md").read_text("utf-8")
ROWS = [
    [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
    for line in PAGE.splitlines()
    if line.startswith("| ") and not re.match(r"\| (rule|form|header) \| RabbitMQ", line)
]
TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_row_names_tests_that_exist(row: list[str]) -> None:
    assert len(row) == 4, "rule, RabbitMQ, Queuecast, tests"
    assert row[2]
    named = TEST.findall(row[3])
    assert named
    assert ", ".join(f"`{path}::{name}`" for path, name in named) == row[3], "nothing but tests"
    for path, name in named:
        tree = ast.parse((ROOT / path).read_text("utf-8"))
        functions = (ast.FunctionDef, ast.AsyncFunctionDef)
        assert name in {each.name for each in tree.body if isinstance(each, functions)}, path


def test_every_part_is_there() -> None:
    assert len(ROWS) > 100
    parts = re.findall(r"^## (.+)$", PAGE, re.M)
    assert parts == [
        "Connection",
        "Framing",
        "Destinations",
        "Queues' headers",
        "SUBSCRIBE and UNSUBSCRIBE",
        "ACK, NACK, prefetch",
        "SEND, receipts, transactions",
        "Reply queues",
        "Headers of messages",
        "Errors",
        "Permissions",
        "Flow control",
        "Not there",
    ]
