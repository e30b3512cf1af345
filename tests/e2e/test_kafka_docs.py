"""docs/kafka.md's five minutes, as a reader would go through them, in a browser at the end.

What a reader gets with docker and pip is there already. Addresses are put in their place, and the
programs in the container are run from the same release's jars.
"""

from __future__ import annotations

import asyncio
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.kafka import KafkaServer
from tests.support.processes import Process, free_port
from tests.support.sinks import eventually

if TYPE_CHECKING:
    from playwright.async_api import Page

# A busy machine takes a minute to start Kafka.
pytestmark = [pytest.mark.kafka, pytest.mark.browser, pytest.mark.timeout(400)]

PAGE = Path(__file__).parents[2] / "docs" / "kafka.md"
TOOLS = {
    "kafka-console-producer.sh": "org.apache.kafka.tools.ConsoleProducer",
    "kafka-console-consumer.sh": "org.apache.kafka.tools.consumer.ConsoleConsumer",
}


class Reader:
    """Does what the page says."""

    def __init__(self, kafka: KafkaServer, directory: Path) -> None:
        text = PAGE.read_text("utf-8")
        section = text.partition("five minutes\n")[2].partition("\n## ")[0]
        self._port, self.site_port = free_port(), free_port()
        for shown, here in (
            ("127.0.0.1:9092", kafka.bootstrap),
            ("127.0.0.1:15674", f"127.0.0.1:{self._port}"),
            ("8000", str(self.site_port)),
        ):
            assert shown in section
            section = section.replace(shown, here)
        self.blocks = re.findall(r"```sh\n(.*?)\n```", section, re.S)
        self.html = re.findall(r"```html\n(.*?)```", section, re.S)[0]
        self.shown = re.findall(r"```\n(id: .*?)\n```", section, re.S)[0]
        self._kafka = kafka
        self.directory = directory
        self.started: list[Process] = []

    def start(self, command: str, name: str) -> Process:
        """Run a command that goes on, as in a terminal of its own."""
        words = shlex.split(command)
        if words[0] == "queuecast":
            words = [sys.executable, "-m", *words, "--port", str(self._port)]
        elif words[0] == "python3":
            words = [sys.executable, *words[1:], "--directory", str(self.directory)]
        process = Process(words, log=self.directory / f"{name}.log")
        self.started.append(process)
        return process

    def run(self, command: str) -> str:
        """Run a command that ends; one of Kafka's is run from the jars."""
        first, pipe, second = command.partition(" | ")
        fed, kafkas = (first, second) if pipe else (None, command)
        found = re.search(r"(kafka-\S+\.sh) (.*)", kafkas)
        if found is None:
            return subprocess.run(
                shlex.split(command), check=True, capture_output=True, text=True, timeout=60
            ).stdout
        stdin = None
        if fed is not None:
            stdin = subprocess.run(["sh", "-c", fed], check=True, capture_output=True).stdout
        return self._kafka.tool(
            TOOLS[found[1]],
            *shlex.split(found[2]),
            stdin=stdin.decode() if stdin is not None else None,
        )

    def close(self) -> None:
        for process in self.started:
            process.kill()


async def test_five_minutes(kafka_own: KafkaServer, page: Page, tmp_path: Path) -> None:
    reader = Reader(kafka_own, tmp_path)
    _, serve, listen, produce, publish, consume = reader.blocks
    try:
        gateway = reader.start(serve, "gateway")
        await asyncio.to_thread(
            gateway.wait_until,
            lambda: "listens on" in gateway.log_tail(),
            what="the gateway",
            timeout=120,
        )
        listening = reader.start(listen, "curl")
        await eventually(lambda: "id: " in listening.log_tail(), "the stream", 60)
        await asyncio.to_thread(reader.run, produce)
        await eventually(lambda: "data: 0.86" in listening.log_tail(), "the records", 60)
        # Its words, but for the part of an id that is each topic's own.
        last = re.findall(r"id: [^\n]+\ndata: [^\n]+", listening.log_tail())[-1]
        assert re.sub("id: [0-9a-f]+", "id: *", last) == re.sub(
            "id: [0-9a-f]+", "id: *", reader.shown
        )

        (tmp_path / "page.html").write_text(f"<!doctype html>{reader.html}")
        reader.start(f"python3 -m http.server {reader.site_port} --bind 127.0.0.1", "site")
        address = f"http://127.0.0.1:{reader.site_port}/page.html"

        async def opens() -> bool:
            from playwright.async_api import Error

            try:
                await page.goto(address)
            except Error:
                return False
            return True

        for _ in range(50):
            if await opens():
                break
            await asyncio.sleep(0.2)
        await page.wait_for_function("document.getElementById('text').textContent === '1.09'")
        await asyncio.to_thread(reader.run, publish)
        await page.wait_for_function("document.getElementById('text').textContent === '1.10'")
        shown = await asyncio.to_thread(reader.run, consume)
        assert shown.split() == ["1.09", "0.86", "1.10"]
    finally:
        reader.close()
