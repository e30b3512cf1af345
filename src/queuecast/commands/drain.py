"""`queuecast drain`: have a running gateway send its clients away, and wait until it has.

The gateway is told by a signal (SIGUSR1): it needs no further door, and the system knows who may.
It stays up, not ready, until it is stopped. How far it is stands in /readyz.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
import urllib.error
import urllib.request

from ..config import load
from . import pidfile
from .failure import Failure

# Seconds between two looks, and for one.
_PAUSE, _PATIENCE = 0.2, 5.0
_MAX_ANSWER = 64 << 10


def drain(arguments: argparse.Namespace) -> int:
    """Drain a gateway; raises Failure."""
    number = getattr(signal, "SIGUSR1", None)
    if number is None:
        raise Failure("this system has no SIGUSR1: stop the gateway instead, that drains it too", 2)
    running = _which(arguments)
    try:
        os.kill(running.pid, number)
    except ProcessLookupError:
        raise Failure(f"no process {running.pid} runs") from None
    except PermissionError:
        raise Failure(f"process {running.pid} belongs to another user") from None
    if not running.url:
        print(f"told process {running.pid}; give --url to wait until it is drained")
        return 0
    _wait(running)
    print("drained")
    return 0


def _which(arguments: argparse.Namespace) -> pidfile.Running:
    if arguments.pid is not None:
        return pidfile.Running(arguments.pid, (arguments.url or "").rstrip("/"))
    path = arguments.pid_file or load({}, file=arguments.config).server.pid_file
    if not path:
        raise Failure("which gateway? give --pid-file or --pid, or set server.pid_file", 2)
    running = pidfile.read(path)
    if not running.url:
        raise Failure("the gateway is still starting, it has no clients yet")
    return running._replace(url=(arguments.url or running.url).rstrip("/"))


def _wait(running: pidfile.Running) -> None:
    """Return once the gateway is drained, or has stopped."""
    while True:
        if _status(running) == "drained":
            return
        time.sleep(_PAUSE)


def _status(running: pidfile.Running) -> str:
    # Never by a proxy: this is about one process.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        try:
            with opener.open(f"{running.url}/readyz", timeout=_PATIENCE) as answer:
                raw = answer.read(_MAX_ANSWER)
        except urllib.error.HTTPError as refused:
            raw = refused.read(_MAX_ANSWER)
        status = json.loads(raw)["status"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        try:
            os.kill(running.pid, 0)
        except ProcessLookupError:
            return "drained"  # it has stopped, which drained it
        raise Failure(f"cannot see how far it is at {running.url}/readyz: {error}") from None
    return str(status)
