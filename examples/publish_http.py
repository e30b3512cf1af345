"""Publish from any Python program: one HTTP request, nothing to install.

python publish_http.py /topic/job.7 '{"done": 50}'
"""

import json
import os
import sys
import urllib.error
import urllib.request
from urllib.parse import quote

GATEWAY = os.environ.get("QUEUECAST_URL", "http://127.0.0.1:15674")


def publish(destination: str, message: object) -> None:
    """Publish a message as JSON; returns once the broker has taken responsibility for it."""
    request = urllib.request.Request(
        f"{GATEWAY}/publish{quote(destination, safe='/%')}",
        json.dumps(message).encode(),
        {"Content-Type": "application/json"},
    )
    urllib.request.urlopen(request, timeout=10).close()


if __name__ == "__main__":
    try:
        publish(sys.argv[1], json.loads(sys.argv[2]))
    except urllib.error.HTTPError as error:
        sys.exit(f"refused: {error.read().decode()}")
