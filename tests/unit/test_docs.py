"""The documentation agrees with the code where a machine can tell."""

import re
import tomllib
from pathlib import Path

import pytest

from queuecast import config
from queuecast.disconnect import ALL

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def anchor(heading: str) -> str:
    """Return a heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def test_the_table_of_codes_is_the_codes() -> None:
    text = (ROOT / "docs/protocols.md").read_text("utf-8")
    rows = re.findall(r"^\| (\d{4}) \| (\d{3}) \| `(\w+)` \| (.+) \| (yes|no) \|$", text, re.M)
    assert rows == [
        (str(each.code), str(each.status), each.name, each.text, "yes" if each.retry else "no")
        for each in ALL
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text("utf-8")
    links = re.findall(
        r'\]\(([^)]+)\)|(?:src|srcset)="([^"]+)"', re.sub(r"```.*?```", "", text, flags=re.S)
    )
    for link in filter(None, (link for pair in links for link in pair)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, part = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        if part:
            headings = re.findall(r"^#+ (.+)$", target.read_text("utf-8"), re.M)
            assert part in map(anchor, headings), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_configuration_that_is_shown_is_valid(page: Path) -> None:
    for block in re.findall(r"```toml\n(.*?)```", page.read_text("utf-8"), re.S):
        tables = tomllib.loads(block)
        made = config.from_tables(tables)
        assert made
