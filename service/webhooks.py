"""Webhooks: a job that has ended is told to the address it named, signed as standardwebhooks.com says.

    POST <webhook_url>      webhook-id, webhook-timestamp, webhook-signature
    {"id": "evt_...", "object": "event", "type": "video.completed", "created_at": 1700000000,
     "data": {"id": "video_..."}}                                   or "video.failed"

Which addresses are called says outside.py; it is asked when the job is made and again at each delivery.
"""

import json
import logging
from datetime import UTC, datetime

from standardwebhooks import Webhook

from huvidpo.errors import InvalidRequest
from service import outside
from service.job_rows import Job
from service.settings import Settings

logger = logging.getLogger(__name__)
FIELD = "webhook_url"
TIMEOUT = 10.0  # seconds a receiver has to answer
WAITS = (1.0, 5.0, 30.0, 120.0, 600.0, 3600.0, 4 * 3600.0)  # seconds between tries
GONE = 410  # the receiver wants no more


async def check(url: str, settings: Settings) -> None:
    """Raises InvalidRequest for what `deliver` would not call."""
    if not settings.webhook_secret:
        raise InvalidRequest(f"{FIELD}: webhooks are off here, HUVIDPO_WEBHOOK_SECRET turns them on", FIELD)
    await outside.look_up(url, FIELD, settings.webhook_allow)


async def deliver(url: str, body: str, settings: Settings) -> int:
    """One try. The status of the answer; 0 where there was none.

    Raises InvalidRequest when the address is not (or no longer) one that may be called.
    """
    id, now = json.loads(body)["id"], datetime.now(UTC)
    headers = {
        "Content-Type": "application/json",
        "webhook-id": id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(settings.webhook_secret).sign(id, now, body),
    }
    try:
        async with outside.call(
            "POST", url, FIELD, TIMEOUT, headers, body, settings.webhook_allow
        ) as answer:  # nobody reads what it says
            return answer.status_code
    except outside.FAILURES as error:
        logger.warning("webhook %s: %s", id, str(error) or type(error).__name__)
        return 0


def event_of(job: Job) -> str:
    """The body that tells of a job that has ended. Its id is the same at each try."""
    event = {
        "id": f"evt_{job.id}",
        "object": "event",
        "type": f"video.{job.status}",
        "created_at": int(job.completed_at or job.created_at),
        "data": {"id": job.id},
    }
    return json.dumps(event)
