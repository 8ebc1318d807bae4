"""Where a webhook may go: which URLs are taken, and which addresses their names may stand for.

A URL is written by whoever makes a webhook, and our servers follow it from inside the network: so it may not
lead to this machine, to its neighbours or to a cloud's metadata, whatever its name resolves to at the moment.
"""

import ipaddress
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

Resolve = Callable[[str, int], list[str]]
"""Host and port -> all addresses of the host."""

URL_CHARACTERS_MAX = 2_048
VISIBLE = re.compile(r"[\x21-\x7e]+")
NAME = re.compile(r"[A-Za-z0-9._:-]+")
PORTS = {"https": 443, "http": 80}
NAT64 = ipaddress.ip_network("64:ff9b::/96")
SHARED = ipaddress.ip_network("100.64.0.0/10")  # carriers' private addresses, where some clouds keep metadata

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Refused(Exception):
    """The URL or its address is not one that a webhook may go to; the message says why."""


@dataclass(frozen=True, slots=True)
class Target:
    """A URL, taken apart by the one parser that everything here uses."""

    is_tls: bool
    host: str
    port: int
    path: str


def parse(url: str, *, allows_private: bool) -> Target:
    """The parts of a URL. Refused unless it is https (or http where private addresses are allowed)."""
    if len(url) > URL_CHARACTERS_MAX or not VISIBLE.fullmatch(url) or "\\" in url:
        raise Refused(f"A webhook's URL has at most {URL_CHARACTERS_MAX} visible ASCII characters and no backslash.")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise Refused(f"This is not a URL: {error}.") from None
    if parts.scheme not in PORTS or (parts.scheme == "http" and not allows_private):
        raise Refused(f"A webhook's URL begins with https://, and this one with '{parts.scheme}:'.")
    if parts.username is not None or parts.fragment or not NAME.fullmatch(host):
        raise Refused("A webhook's URL names a host, and neither a user nor a fragment.")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.scheme == "https", host, port or PORTS[parts.scheme], path)


def resolve(host: str, port: int) -> list[str]:
    """Every address of a host, as the system knows them. Refused if there is none."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Refused(f"The host '{host}' has no address: {error}.") from None
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def checked(target: Target, resolved: list[str], *, allows_private: bool) -> str:
    """The address to connect to. Refused if any of the host's addresses is not public."""
    if not resolved:
        raise Refused(f"The host '{target.host}' has no address.")
    if not allows_private:
        for address in resolved:
            refuse_private(target.host, address)
    return resolved[0]


def refuse_private(host: str, address: str) -> None:
    """Refused unless an address is one of the public internet."""
    if not is_public(ipaddress.ip_address(address)):
        raise Refused(f"The host '{host}' has the address {address}, which is not public.")


def is_public(address: Address) -> bool:
    """Whether an address is of the public internet, and so is the one that it wraps."""
    if isinstance(address, ipaddress.IPv6Address):
        wrapped = _wrapped(address)
        if wrapped is not None:
            return is_public(wrapped)
        if address.is_site_local:
            return False
    elif address in SHARED:
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def _wrapped(address: ipaddress.IPv6Address) -> Address | None:
    """The IPv4 address that an IPv6 address leads to: mapped, by 6to4, by Teredo or by NAT64."""
    if address in NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if address.teredo:
        return address.teredo[1]
    return address.ipv4_mapped or address.sixtofour
