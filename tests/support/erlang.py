"""Questions to a running Erlang node without a virtual machine for each.

rabbitmqctl starts one, which takes half a second of processor time; erl_call, which comes with
Erlang, takes milliseconds. Tests ask for queue counts until they are right, so it matters.
"""

import base64
import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from secrets import token_hex
from typing import Any

_ANSWER = re.compile(r"([A-Za-z0-9+/=]+)\n\{ok, ok\}\s*\Z")


def find_erl_call() -> str | None:
    """Return the command, if this machine has it."""
    return shutil.which("erl_call") or shutil.which("erl_call", path="/usr/lib/erlang/bin")


def evaluate(
    erl_call: str, node: str, cookie: str, expression: str, *, env: Mapping[str, str]
) -> Any:
    """Evaluate an Erlang expression that returns a JSON binary, and return what it says.

    Raises RuntimeError with the answer when the node gives another one.
    """
    done = subprocess.run(
        # A name of its own: the node refuses a second one of the same name at a time.
        [erl_call, "-fetch_stdout", "-e", "-n", node, "-c", cookie, "-h", f"q{token_hex(4)}"],
        # Printed: of a long value erl_call shows the beginning.
        input=f'io:format("~s~n", [base64:encode({expression})]).\n',
        env=dict(env),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    found = _ANSWER.match(done.stdout)
    if found is None:
        raise RuntimeError(f"erl_call {expression}: {done.stdout}{done.stderr}")
    return json.loads(base64.b64decode(found[1]))
