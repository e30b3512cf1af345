"""FastAPI: a request starts a job and answers at once; the job's progress goes to the page.

pip install fastapi uvicorn
uvicorn --factory fastapi_app:make_app

The page opens EventSource("http://127.0.0.1:15674/sse/topic/job.7?last=1").
"""

import json
import os
import time
import urllib.request
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import FastAPI

GATEWAY = os.environ.get("QUEUECAST_URL", "http://127.0.0.1:15674")


def publish(destination: str, message: object) -> None:
    """Publish through the gateway; blocks, so call it from a thread (FastAPI's `def` is one)."""
    request = urllib.request.Request(
        f"{GATEWAY}/publish{destination}",
        json.dumps(message).encode(),
        {"Content-Type": "application/json"},
    )
    urllib.request.urlopen(request, timeout=10).close()


def work(job: int, pause: float = 0.5) -> None:
    """Do the job, telling how far it is."""
    for done in range(0, 100, 20):
        publish(f"/topic/job.{job}", {"state": "running", "done": done})
        time.sleep(pause)
    publish(f"/topic/job.{job}", {"state": "done", "done": 100, "result": job * 6})


def make_app() -> "FastAPI":
    from fastapi import BackgroundTasks, FastAPI

    app = FastAPI()

    @app.post("/jobs/{job}", status_code=202)
    def start(job: int, background: BackgroundTasks) -> dict[str, str]:
        background.add_task(work, job)
        return {"events": f"{GATEWAY}/sse/topic/job.{job}?last=1"}

    return app
