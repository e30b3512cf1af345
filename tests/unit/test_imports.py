"""Imports go down only, and each library stays where it belongs: the tables below are the rule."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src"
PACKAGE = SOURCE / "queuecast"

# The first floor: plain values that import the standard library and each other.
FLOOR = """
    __init__ errors disconnect message delivery position pattern destination aliases runtime
    metrics paths queuespec retention hostport
"""

# part -> the parts it may import, besides itself and the first floor.
PARTS = {
    "codecs": "",
    "hub": "",
    "brokers": "",
    "auth": "",
    "sessions": "codecs hub auth",
    "options": "",
    "settings": "auth options",
    "arrays": "brokers options",
    "config": "auth arrays brokers options settings",
    "advice": "brokers config options",
    "server": "codecs hub auth sessions config",
    "admin": "codecs hub auth sessions config",
    "bridge": "sessions",
    "sharing": "brokers hub",
    "calls": "brokers sessions",
    "accounts": "brokers calls hub sessions sharing",
    "starting": "brokers sessions",
    "demo": "sessions",
    "gateway": "codecs hub brokers auth sessions config server admin bridge calls accounts demo"
    " starting",
    "workers": "admin config gateway server settings",
    "testing": "config gateway",
    "commands": "advice codecs config options gateway workers",
    "cli": "codecs config options gateway commands",
    "__main__": "cli",
}

# library -> where it may be imported: a part, or a folder within one.
LIBRARIES = {
    "pika": "brokers.rabbitmq",
    "aiokafka": "brokers.kafka",
    "aiohttp": "server admin gateway workers testing commands cli",
    "multidict": "server admin gateway testing commands cli",
    "yarl": "server admin gateway testing commands cli",
    "httptools": "codecs server",
    "msgspec": "advice codecs auth sessions options arrays config server admin gateway workers"
    " testing commands cli",
    "uvloop": "gateway testing commands cli",
    "jwt": "auth",
    # The event loop belongs to whoever owns sockets; everything else is given what it needs.
    "asyncio": "brokers server admin gateway workers testing commands cli",
}

# A broker's client is imported only once its URL scheme is asked for, so a plain install works.
LAZY = ("queuecast.brokers.rabbitmq", "queuecast.brokers.kafka")


def modules() -> Iterator[tuple[str, ast.Module, bool]]:
    """Yield name, tree and whether it is a package's __init__, for every module of queuecast."""
    for path in sorted(PACKAGE.rglob("*.py")):
        names = path.relative_to(SOURCE).with_suffix("").parts
        is_package = names[-1] == "__init__"
        name = ".".join(names[:-1] if is_package else names)
        yield name, ast.parse(path.read_text(), str(path)), is_package


def imported(node: ast.AST, module: str, is_package: bool) -> list[str]:
    """Return the absolute names that one import statement may load."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = node.module or ""
    if node.level:
        above = module.split(".")
        keep = len(above) - node.level + (1 if is_package else 0)
        base = ".".join([*above[:keep], *([node.module] if node.module else [])])
    # `from queuecast import hub` names a part only in what is imported.
    return [f"{base}.{alias.name}" for alias in node.names]


def part_of(name: str) -> str:
    """Return the part a dotted name of queuecast belongs to; the first floor is one part."""
    words = name.split(".")
    first = words[1] if len(words) > 1 else "__init__"
    # `from queuecast import __version__`: a name, not a module.
    known = first in PARTS or (PACKAGE / first).is_dir() or (PACKAGE / f"{first}.py").exists()
    return "floor" if first in FLOOR.split() or not known else first


def violations(name: str, tree: ast.Module, is_package: bool) -> list[str]:
    """Return a sentence per import that the tables do not allow."""
    part = part_of(name)
    if part not in {"floor", *PARTS}:
        return [f"{name}: give it a line in PARTS of {Path(__file__).name}"]
    found = []
    for node in ast.walk(tree):
        for target in imported(node, name, is_package):
            line = f"{name}, line {getattr(node, 'lineno', '?')}: imports {target}"
            top = target.split(".")[0]
            if top == "queuecast":
                wanted = part_of(target)
                if wanted not in {part, "floor", *PARTS.get(part, "").split()}:
                    found.append(f"{line}, which is not below {part}")
            elif top not in sys.stdlib_module_names or top in LIBRARIES:
                places = LIBRARIES.get(top, "").split()
                inside = f"{name}.".removeprefix("queuecast.")
                if not any(inside.startswith(f"{place}.") for place in places):
                    found.append(f"{line}, allowed in: {', '.join(places) or 'nowhere'}")
    return found


def eager(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield the statements that run when the module is imported."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting.extend(node.orelse)
            continue
        waiting.extend(ast.iter_child_nodes(node))


def test_imports_go_down_only() -> None:
    found = [line for module in modules() for line in violations(*module)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source", "refused"),
    [
        ("queuecast.errors", "import msgspec", True),
        ("queuecast.errors", "import asyncio", True),
        ("queuecast.errors", "from .hub import feed", True),
        ("queuecast.message", "from queuecast.position import Position", False),
        ("queuecast.hub.feed", "from queuecast import __version__, errors", False),
        ("queuecast.hub.feed", "from queuecast import brokers", True),
        ("queuecast.hub.feed", "from ..brokers import base", True),
        ("queuecast.hub.feed", "def late():\n    import asyncio", True),
        ("queuecast.brokers.base", "import pika", True),
        ("queuecast.brokers.rabbitmq.adapter", "import pika.channel", False),
        ("queuecast.brokers.embedded.broker", "from ..rabbitmq import pika\nimport pika", True),
        ("queuecast.sessions.sse", "import queuecast.brokers.base", True),
        ("queuecast.sessions.sse", "from queuecast.hub.feed import Feed", False),
        ("queuecast.server.web", "from queuecast.gateway import Gateway", True),
        ("queuecast.surprise", "", True),
    ],
)
def test_the_rule_sees(
    module: str, source: str, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A package with every part, so that the cases do not depend on what exists so far.
    for name in (*FLOOR.split(), *PARTS, "surprise"):
        (tmp_path / f"{name}.py").touch()
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path)
    assert bool(violations(module, ast.parse(source), False)) is refused


def test_no_broker_client_is_imported_by_others_at_import_time() -> None:
    found = [
        f"{name} imports {target} at import time"
        for name, tree, is_package in modules()
        for node in eager(tree)
        for target in imported(node, name, is_package)
        for lazy in LAZY
        if f"{target}.".startswith(f"{lazy}.") and not f"{name}.".startswith(f"{lazy}.")
    ]
    assert not found, "\n".join(found)


def test_importing_queuecast_loads_no_broker_client() -> None:
    parts = ["queuecast", "queuecast.brokers"]
    parts += [
        f"queuecast.{name}" for name in ("gateway", "cli") if (PACKAGE / f"{name}.py").exists()
    ]
    check = (
        f"import sys, {', '.join(parts)}\n"
        "print(sorted({'pika', 'aiokafka', *" + repr(LAZY) + "} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", check],
        env={"PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_no_file_names_a_registry_host_or_a_developers_path() -> None:
    # Written in pieces, so that this file does not find itself.
    forbidden = re.compile(
        r"registry\.npm" + r"js|python" + r"hosted\.org|pypi\.org/" + "simple"
        r"|(?<![\w./%*}-])/(?:work|root|home/\w+)" + r"/(?=\w)"
    )
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("git: this is no checkout, so which files belong to the project is unknown")
    found = []
    for file in listed.stdout.splitlines():
        try:
            text = (ROOT / file).read_text()
        except (UnicodeDecodeError, FileNotFoundError, IsADirectoryError):
            continue  # A picture, or deleted and not yet committed.
        found += [f"{file}: {match.group()}" for match in forbidden.finditer(text)]
    assert not found, "\n".join(found)
