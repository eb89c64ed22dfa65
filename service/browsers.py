"""What a browser must not be made to do for the page of another site. Other clients notice nothing of it.

- A name that an attacker has pointed at this server (DNS rebinding) makes his page "same origin" with it: so
  only names that nobody else can own are answered, and those of HUVIDPO_ALLOWED_HOSTS.
- A page of another site may send requests here, as it may load this server's clips: so what a browser says
  comes from elsewhere is refused, but for links to our pages.
"""

import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from service.errors import Forbidden

PRIVATE = (".localhost", ".local", ".internal")  # no public name ends so
SAFE = ("GET", "HEAD")


def allowed_hosts(listed: str) -> frozenset[str]:
    """The names of a list like "a.example.com,b.example.com"; "*" is all."""
    return frozenset(name.strip().lower() for name in listed.split(",") if name.strip())


def check_host(headers: Headers, allowed: frozenset[str]) -> None:
    """Raises Forbidden for a Host that is no address, no name of a private network, and not `allowed`."""
    host = headers.get("host", "")
    if not host or "*" in allowed or _name(host) in allowed or _is_private(_name(host)):
        return
    raise Forbidden(f"Host: got {host[:100]!r}, which is not in HUVIDPO_ALLOWED_HOSTS of this server")


def _name(host: str) -> str:
    """Without port and brackets; "" for what is no host."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_private(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
        return True
    except ValueError:
        return bool(name) and ("." not in name or name.endswith(PRIVATE))


def check_site(method: str, headers: Headers) -> None:
    """Raises Forbidden for what a page of another site made a browser send."""
    site = headers.get("sec-fetch-site")
    if site in ("none", "same-origin"):
        return
    if site is not None:
        foreign = method not in SAFE or headers.get("sec-fetch-mode") != "navigate"
    else:  # an old browser says with Origin where a request that changes something comes from; others nothing
        origin = headers.get("origin")
        foreign = method not in SAFE and origin is not None and urlsplit(origin).netloc != headers.get("host")
    if foreign:
        raise Forbidden("requests are taken from this server's own pages, not from pages of other sites")
