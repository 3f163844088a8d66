"""HOST:PORT, as it stands in a plan, on the command line and in an invite."""

from __future__ import annotations

import ipaddress
import re

from fedseg.errors import UsageError

MAX_ADDRESS = 255
_ADDRESS = re.compile(
    r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)):(?P<port>\d{1,5})"
)
_HINT = "write HOST:PORT, for example fedseg.hospital.org:8443 or [2001:db8::1]:8443"


def split_address(address: str) -> tuple[str, int]:
    """Take HOST:PORT apart: (host without brackets, port 1 to 65535).

    Only names, IPv4 addresses and IPv6 addresses in brackets pass, so that no other gRPC target (`unix:`, `xds:`) can.

    Raises:
        UsageError: It is no such address.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None or len(address) > MAX_ADDRESS:
        raise UsageError("this is not an address", where=repr(address[:MAX_ADDRESS]), hint=_HINT)
    port = int(match["port"])
    if not 1 <= port <= 65535:
        raise UsageError(f"there is no port {port}", where=address, hint="a port is 1 to 65535")
    if match["six"] and not (":" in match["six"] and _is_ip(match["six"])):
        raise UsageError("what stands in brackets is not an IPv6 address", where=address, hint=_HINT)
    return match["six"] or match["host"], port


def is_loopback(host: str) -> bool:
    """Whether a host without brackets is this machine itself."""
    return host == "localhost" or (_is_ip(host) and ipaddress.ip_address(host).is_loopback)


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
