"""Webhooks: a job that has ended is told to the address it named, signed as standardwebhooks.com says.

    POST <webhook_url>      webhook-id, webhook-timestamp, webhook-signature
    {"id": "evt_...", "object": "event", "type": "video.completed", "created_at": 1700000000,
     "data": {"id": "video_..."}}                                   or "video.failed"

An address is https and public: the service must not be made to knock at doors of its own network. That is
checked when the job is made and again at each delivery; the connection goes to the address that was checked.
"""

import asyncio
import ipaddress
import json
import logging
import socket
from datetime import UTC, datetime
from typing import Any

import httpx
from standardwebhooks import Webhook

from huvidpo.errors import InvalidRequest
from service.job_rows import Job
from service.settings import Settings

logger = logging.getLogger(__name__)
FIELD = "webhook_url"
TIMEOUT = 10.0  # seconds a receiver has to answer
WAITS = (1.0, 5.0, 30.0, 120.0, 600.0, 3600.0, 4 * 3600.0)  # seconds between tries
GONE = 410  # the receiver wants no more
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


async def check(url: str, settings: Settings) -> None:
    """Raises InvalidRequest for what `deliver` would not call."""
    if not settings.webhook_secret:
        raise InvalidRequest(f"{FIELD}: webhooks are off here, HUVIDPO_WEBHOOK_SECRET turns them on", FIELD)
    await _address(url, settings)


async def deliver(url: str, body: str, settings: Settings) -> int:
    """One try. The status of the answer; 0 where there was none.

    Raises InvalidRequest when the address is not (or no longer) one that may be called.
    """
    address = await _address(url, settings)
    where, now = httpx.URL(url), datetime.now(UTC)
    headers = {
        "Host": where.netloc.decode(),
        "Content-Type": "application/json",
        "User-Agent": "huvidpo",
        "webhook-id": json.loads(body)["id"],
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(settings.webhook_secret).sign(json.loads(body)["id"], now, body),
    }
    try:
        # no proxy of the environment: it would resolve the name anew
        async with httpx.AsyncClient(timeout=TIMEOUT, trust_env=False) as client, asyncio.timeout(TIMEOUT):
            request = client.build_request(
                "POST",
                where.copy_with(host=address),
                content=body,
                headers=headers,
                extensions={"sni_hostname": where.host},  # whose certificate it has to be
            )
            answer = await client.send(request, stream=True)  # nobody reads what it says
            await answer.aclose()
            return answer.status_code
    except (httpx.HTTPError, TimeoutError, OSError) as error:
        logger.warning("webhook %s: %s", headers["webhook-id"], error or type(error).__name__)
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


async def _address(url: str, settings: Settings) -> str:
    """An address that the URL's host has now. Raises InvalidRequest."""
    where = _parsed(url)
    allowed = str(where.copy_with(raw_path=b"/")).rstrip("/") in settings.webhook_allow.split(",")
    if where.scheme != "https" and not allowed:
        raise InvalidRequest(f"{FIELD}: expected an address that begins with https://", FIELD)
    try:
        async with asyncio.timeout(TIMEOUT):
            found = await asyncio.get_running_loop().getaddrinfo(
                where.host, where.port, type=socket.SOCK_STREAM
            )
    except (OSError, TimeoutError, UnicodeError):
        raise InvalidRequest(f"{FIELD}: the host {where.host[:100]!r} has no address", FIELD) from None
    addresses = [str(one[4][0]) for one in found]
    if not allowed and not all(is_public(address) for address in addresses):
        raise InvalidRequest(f"{FIELD}: {where.host[:100]!r} is in a private network", FIELD)
    return addresses[0]


def _parsed(url: str) -> httpx.URL:
    try:
        where = httpx.URL(url)
    except (httpx.InvalidURL, ValueError):
        where = httpx.URL("")
    if where.scheme not in ("http", "https") or not where.host or where.userinfo or where.fragment:
        raise InvalidRequest(
            f"{FIELD}: expected an address like https://example.com/hook, without a name or password in it",
            FIELD,
        )
    return where


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet, also where it wraps another one."""
    ip: Any = ipaddress.ip_address(address.partition("%")[0])
    if ip.version == 6:
        wrapped = ipaddress.ip_address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else None
        ip = ip.ipv4_mapped or ip.sixtofour or wrapped or ip
    return ip.is_global and not ip.is_multicast
