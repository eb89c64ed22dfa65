"""Calls to addresses that a caller names. They are https and public: the service must not be made to knock at
doors of its own network. The name is looked up once, every address it has is checked, and the connection goes
to one that was checked, so that a name that means another machine a moment later is of no use. Redirects are
not followed, proxies of the environment not used: both would look up names anew.
"""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

import httpx

from huvidpo.errors import InvalidRequest

LOOK_UP_SECONDS = 10.0  # for a name
FAILURES = (httpx.HTTPError, TimeoutError, OSError)  # what a call may raise beside InvalidRequest
# its own threads: names that take long to look up hold up nothing else
_RESOLVER = ThreadPoolExecutor(4, thread_name_prefix="look up")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_UNICAST = ipaddress.ip_network("2000::/3")  # all of IPv6 that is given to anybody on the public internet
_HOSTS_OWN = (  # called global, and yet a machine's own neighbour
    ipaddress.ip_network("192.0.0.0/24"),  # of protocols; one cloud's metadata
    ipaddress.ip_network("168.63.129.16/32"),  # another's
)


@asynccontextmanager
async def call(
    method: str,
    url: str,
    field: str,
    seconds: float,
    headers: Mapping[str, str],
    content: str | None = None,
    allow: str = "",
) -> AsyncGenerator[httpx.Response, None]:
    """The answer, its body not read yet. All of it, with what is done inside, may take `seconds`.

    Raises InvalidRequest, which names `field`, for an address that may not be called; FAILURES.
    """
    async with asyncio.timeout(seconds):
        where, address = await look_up(url, field, allow)
        async with httpx.AsyncClient(timeout=seconds, trust_env=False, verify=_trust()) as client:
            request = client.build_request(
                method,
                where.copy_with(host=address),
                content=content,
                headers={"Host": where.netloc.decode(), "User-Agent": "huvidpo", **headers},
                # whose certificate it has to be
                extensions={"sni_hostname": where.raw_host.decode()},
            )
            answer = await client.send(request, stream=True)
            try:
                yield answer
            finally:
                await answer.aclose()


async def look_up(url: str, field: str, allow: str = "") -> tuple[httpx.URL, str]:
    """The URL, and an address that its host has now. `allow`: origins, by commas, that need be neither https
    nor public. Raises InvalidRequest, which names `field`.
    """
    where = _parsed(url, field)
    allowed = str(where.copy_with(raw_path=b"/")).rstrip("/") in allow.split(",")
    if where.scheme != "https" and not allowed:
        raise InvalidRequest(f"{field}: expected an address that begins with https://", field)
    try:
        async with asyncio.timeout(LOOK_UP_SECONDS):
            found = await asyncio.get_running_loop().run_in_executor(
                _RESOLVER, socket.getaddrinfo, where.raw_host.decode(), where.port, 0, socket.SOCK_STREAM
            )
    except (OSError, TimeoutError, UnicodeError):
        found = []
    addresses = [str(one[4][0]) for one in found]
    if not addresses or not (allowed or all(is_public(address) for address in addresses)):
        # one answer to both: whoever asks need not learn which names a private network has
        raise InvalidRequest(f"{field}: the host {where.host[:100]!r} has no public address", field)
    return where, addresses[0]


def _parsed(url: str, field: str) -> httpx.URL:
    try:
        where = httpx.URL(url)
    except (httpx.InvalidURL, ValueError):
        where = httpx.URL("")
    if where.scheme not in ("http", "https") or not where.host or where.userinfo or where.fragment:
        raise InvalidRequest(
            f"{field}: expected an address like https://example.com/path, without a name or password in it, "
            "and without #",
            field,
        )
    return where


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet, also where it wraps another one."""
    ip: Any = ipaddress.ip_address(address.partition("%")[0])
    if ip.version == 6:
        wrapped = ipaddress.ip_address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else None
        ip = ip.ipv4_mapped or ip.sixtofour or wrapped or ip
    if ip.version == 6 and ip not in _UNICAST:  # Python calls most that is reserved global
        return False
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _HOSTS_OWN)


@cache
def _trust() -> ssl.SSLContext:
    """The authorities whose certificates count; to read them takes a while."""
    return httpx.create_ssl_context(trust_env=False)
