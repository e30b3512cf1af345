"""The demo's pages: what is served, that it leads nowhere else, that the code shown is real."""

import html
import re

import pytest

from queuecast.demo.site import PATHS, page

HTML = [path for path in PATHS if (page(path) or ("",))[0].startswith("text/html")]


def text(path: str) -> str:
    found = page(path)
    assert found is not None
    return found[1].decode()


def test_every_path_has_a_page_of_its_type() -> None:
    kinds = {path: (page(path) or ("", b""))[0].partition(";")[0] for path in PATHS}
    assert kinds["/"] == "text/html"
    assert kinds["/demo/style.css"] == "text/css"
    assert kinds["/demo/job.js"] == "text/javascript"
    assert all((page(path) or ("", b""))[1] for path in PATHS)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/demo",
        "/demo/",
        "/demo/site.py",
        "/demo/../site.py",
        "/demo/pages/job.js",
        "/demo/%2e%2e/site.py",
        "//demo/job",
        "/demo/job/",
        "/demo/job\0",
    ],
)
def test_nothing_else_is_served(path: str) -> None:
    assert page(path) is None


@pytest.mark.parametrize("path", HTML)
def test_a_page_refers_to_its_own_gateway_only_and_relatively(path: str) -> None:
    source = text(path)
    references = re.findall(r'(?:href|src)="([^"]*)"', source)
    assert references
    for reference in references:
        assert not re.match(r"[a-z]+:|/", reference), reference
        if reference in ("#main", "?job="):
            continue
        base = path.rsplit("/", 1)[0]
        target = f"{base}/{reference}"
        target = re.sub(r"^/demo/\.\./$", "/", target)
        target = "/" if target == "/." else target
        assert page(target) is not None, reference


@pytest.mark.parametrize("path", HTML)
def test_a_page_keeps_to_a_strict_content_security_policy(path: str) -> None:
    source = text(path)
    assert "default-src 'none'" in source
    assert not re.search(r"\son[a-z]+=|\sstyle=|<style", source)
    assert not re.search(r"<script(?![^>]*\ssrc=)", source)


def test_the_code_that_is_shown_is_the_code_that_runs() -> None:
    shown = [
        (path, name, html.unescape(code))
        for path in HTML
        for name, code in re.findall(
            r'<pre data-language="js" data-from="([^"]+)">(.*?)</pre>', text(path), re.DOTALL
        )
    ]
    assert {path for path, _, _ in shown} == {"/demo/job", "/demo/dashboard", "/demo/chat"}
    for path, name, code in shown:
        assert code in text(f"/demo/{name}"), f"{path} shows what is not in {name}"
