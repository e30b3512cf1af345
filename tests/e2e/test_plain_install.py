"""The package as a user has it: built, installed without extras, in an environment of its own."""

import json
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def fetch(url: str, body: bytes | None = None) -> tuple[str, bytes]:
    with urllib.request.urlopen(urllib.request.Request(url, body), timeout=30) as answer:
        return answer.headers["Content-Type"], answer.read()


@pytest.mark.timeout(300)
def test_a_plain_install_serves_and_names_what_it_lacks(tmp_path: Path) -> None:
    # pip of this environment installs into that one: to make one with pip takes longer.
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    there = tmp_path / "env" / "bin"
    pip = [sys.executable, "-m", "pip", "--python", str(there / "python"), "install", "-q"]
    subprocess.run([*pip, "-c", ROOT / "constraints.txt", ROOT], check=True, cwd=tmp_path)

    lacking = subprocess.run(
        [there / "queuecast", "serve", "--broker", "amqp://127.0.0.1"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert (lacking.returncode, lacking.stdout) == (2, "")
    command = f"{there / 'python'} -m pip install 'queuecast[rabbitmq]'"
    assert lacking.stderr == f"queuecast: amqp:// needs pika: {command}\n"

    with subprocess.Popen(
        [there / "queuecast", "demo", "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    ) as gateway:
        try:
            assert gateway.stdout is not None
            first = gateway.stdout.readline()
            found = re.fullmatch(r"queuecast \S+ listens on (http://\S+)\n", first)
            assert found is not None, first
            url = found[1]
            assert b"<h1>" in fetch(f"{url}/demo/job")[1]
            assert fetch(f"{url}/queuecast.js")[0].startswith("text/javascript")
            fetch(f"{url}/publish/topic/plain", "你好".encode())
            _, batch = fetch(f"{url}/poll/topic/plain?last=1")
            assert json.loads(batch)["messages"][0]["body"] == "你好"
            gateway.send_signal(signal.SIGTERM)
            assert gateway.wait(60) == 0
        finally:
            gateway.kill()
