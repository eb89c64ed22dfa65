"""What a browser must not be made to do for the page of another site."""

import pytest
from starlette.datastructures import Headers

from service.browsers import allowed_hosts, check_host, check_site
from service.errors import Forbidden


@pytest.mark.parametrize("host", [
    "127.0.0.1:3000", "localhost", "LOCALHOST:3000", "10.1.2.3", "[::1]:3000", "gateway", "gateway:80",
    "video.localhost", "nas.local", "huvidpo.default.svc.cluster.local", "vm.internal", "localhost.", "",
    "video.example.com", "Video.Example.com:8443",
])  # fmt: skip
def test_hosts_that_are_answered(host):
    check_host(Headers({"host": host}), allowed_hosts("video.example.com, b.example"))
    check_host(Headers({"host": "evil.example"}), allowed_hosts("*"))


@pytest.mark.parametrize("host", [
    "evil.example", "evil.example:3000", "127.0.0.1.evil.example", "localhost.evil.example",
    "video.example.com.evil",
    "evilvideo.example.com", "[", "[::1", "@", ":80", "a.local@evil.example", "127.0.0.1.nip.io", "0x7f.1",
])  # fmt: skip
def test_hosts_that_are_not(host):
    with pytest.raises(Forbidden, match="HUVIDPO_ALLOWED_HOSTS"):
        check_host(Headers({"host": host}), allowed_hosts("video.example.com"))


OWN = {"host": "a:3000", "origin": "http://a:3000"}


@pytest.mark.parametrize(("method", "headers"), [
    ("POST", {}), ("POST", {"host": "a:3000"}), ("POST", OWN),
    ("POST", OWN | {"sec-fetch-site": "same-origin"}),
    ("POST", {"host": "b", "origin": "https://a", "sec-fetch-site": "same-origin"}),  # a proxy renamed it
    ("GET", {"sec-fetch-site": "none", "sec-fetch-mode": "navigate"}),
    ("GET", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}),  # a link
    ("GET", {"host": "a", "origin": "http://evil"}),
])  # fmt: skip
def test_requests_of_our_own_pages_and_of_programs(method, headers):
    check_site(method, Headers(headers))


@pytest.mark.parametrize(("method", "headers"), [
    ("POST", OWN | {"sec-fetch-site": "cross-site"}), ("POST", OWN | {"sec-fetch-site": "same-site"}),
    ("POST", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}),  # a form
    ("GET", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}),  # a video element
    ("DELETE", {"sec-fetch-site": "same-site"}), ("POST", OWN | {"sec-fetch-site": "anything"}),
    ("POST", {"host": "a:3000", "origin": "http://a:81"}), ("POST", {"host": "a", "origin": "null"}),
])  # fmt: skip
def test_requests_of_pages_of_other_sites(method, headers):
    with pytest.raises(Forbidden, match="other sites"):
        check_site(method, Headers(headers))
