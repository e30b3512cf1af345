"""The demo's pages, by their paths.

Only what stands in the table is served, so that no path leads out of the folder. Pages name
each other and the gateway relatively: they work under any path prefix.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files

_HTML = "text/html; charset=utf-8"
_SCRIPT = "text/javascript; charset=utf-8"

_PAGES = {
    "/": ("index.html", _HTML),
    "/demo/job": ("job.html", _HTML),
    "/demo/dashboard": ("dashboard.html", _HTML),
    "/demo/chat": ("chat.html", _HTML),
    "/demo/style.css": ("style.css", "text/css; charset=utf-8"),
    "/demo/icon.svg": ("icon.svg", "image/svg+xml"),
    "/demo/page.js": ("page.js", _SCRIPT),
    "/demo/listen.js": ("listen.js", _SCRIPT),
    "/demo/job.js": ("job.js", _SCRIPT),
    "/demo/dashboard.js": ("dashboard.js", _SCRIPT),
    "/demo/chart.js": ("chart.js", _SCRIPT),
    "/demo/chat.js": ("chat.js", _SCRIPT),
}

PATHS = tuple(_PAGES)


def page(path: str) -> tuple[str, bytes] | None:
    """Return content type and body of the page at a path, or None when there is none."""
    found = _PAGES.get(path)
    if found is None:
        return None
    name, kind = found
    return kind, _read(name)


@lru_cache(maxsize=len(_PAGES))
def _read(name: str) -> bytes:
    return files(__package__).joinpath("pages", name).read_bytes()
