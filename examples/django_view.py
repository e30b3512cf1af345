"""Django: a view that saves something and tells every open page.

In urls.py: path("orders/<int:order>/ship", django_view.ship)
The page opens EventSource("http://127.0.0.1:15674/sse/topic/orders.%23").
"""

import json
import os
import urllib.request
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from django.http import HttpRequest, JsonResponse

GATEWAY = os.environ.get("QUEUECAST_URL", "http://127.0.0.1:15674")


def publish(destination: str, message: object) -> None:
    """Publish through the gateway; raises urllib.error.URLError when it is not taken."""
    request = urllib.request.Request(
        f"{GATEWAY}/publish{destination}",
        json.dumps(message).encode(),
        {"Content-Type": "application/json"},
    )
    urllib.request.urlopen(request, timeout=10).close()


def ship(request: "HttpRequest", order: int) -> "JsonResponse":
    from django.db import transaction
    from django.http import JsonResponse

    # ... save it ...
    # Not before the database has it: a page that asks again must find what it was told.
    transaction.on_commit(lambda: publish(f"/topic/orders.{order}", {"state": "shipped"}))
    return JsonResponse({"order": order})
