"""What a failed gRPC call means, in words that a hospital can act on.

gRPC tells the kinds of failed connection apart only in its status text; the texts are those of gRPC 1.85, and a test
produces each over loopback. A text that is not known still gives an error, with gRPC's own words.
"""

from __future__ import annotations

from dataclasses import dataclass

import grpc

from fedseg.errors import FedsegError, LinkError
from fedseg.rpc.certificates import require_valid

MAX_DETAILS = 300
_NOT_CONNECTED = "failed to connect"
_CLOSED = ("Socket closed", "Connection reset", "Broken pipe", "GOAWAY")


@dataclass(frozen=True)
class _Meaning:
    sign: str
    what: str
    hint: str


_NEW_SERVER = "ask the study's coordinator; the invite or state folder may belong to another study"

_CONNECTING = (
    _Meaning(
        "errors resolving",
        "no machine of this name can be found",
        "check the address for typing errors and this machine's DNS",
    ),
    _Meaning(
        "Connection refused",
        "no server answers at this address",
        "is `fedseg server start` running there, and is the port open in its firewall?",
    ),
    _Meaning(
        "WRONG_VERSION_NUMBER",
        "what answers at this address is no fedseg server: it doesn't speak TLS",
        "check host and port; a proxy in between must pass TLS through unopened",
    ),
    _Meaning(
        "certificate has expired",
        "the server's certificate has expired",
        "ask the study's coordinator to renew it, and check this machine's clock",
    ),
    _Meaning(
        "certificate is not yet valid",
        "the server's certificate is not valid yet",
        "check this machine's clock",
    ),
    _Meaning(
        "CERTIFICATE_VERIFY_FAILED",
        "this is not the study's server: its certificate is not signed by the study's CA",
        _NEW_SERVER,
    ),
    _Meaning(
        "Hostname Verification Check failed",
        "the server's certificate is for another host name",
        "use the address that the coordinator gave to `fedseg study create --address`",
    ),
    _Meaning(
        "timed out",
        "the server cannot be reached in time",
        "check this machine's network and the firewalls in between",
    ),
)

_STATUS = {
    grpc.StatusCode.DEADLINE_EXCEEDED: (
        "the server did not answer in time",
        "it may be busy, or a firewall may swallow the connection; try again",
    ),
    grpc.StatusCode.UNIMPLEMENTED: (
        "the server doesn't know this call: it runs another version of fedseg",
        "install the same version at both ends",
    ),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (
        "a message is larger than this study's wire allows",
        "install the same version of fedseg at both ends",
    ),
    grpc.StatusCode.CANCELLED: ("the call was cancelled", "try again"),
}


def explain(
    error: grpc.RpcError, address: str, *, cert_pem: bytes | None = None, now: float | None = None
) -> FedsegError:
    """Turn a failed call into an error for a person; return it, so that the caller raises it `from error`.

    Args:
        error: What gRPC raised.
        address: HOST:PORT of the server.
        cert_pem: The certificate that this end presented, if the error may speak of it.
        now: The time, needed with `cert_pem`: TLS 1.3 doesn't tell a client why it was turned away, so its own
            certificate is looked at.
    """
    code, details = _status(error)
    if code is grpc.StatusCode.UNAVAILABLE:
        return _unavailable(details, address, cert_pem, now)
    if code in _STATUS:
        what, hint = _STATUS[code]
        return LinkError(what, where=address, hint=hint)
    name = code.name if code else "no status"
    return LinkError(f"the server refused the call ({name}): {_clean(details)}", where=address)


def _unavailable(details: str, address: str, cert_pem: bytes | None, now: float | None) -> FedsegError:
    for meaning in _CONNECTING:
        if meaning.sign in details:
            return LinkError(meaning.what, where=address, hint=meaning.hint)
    if _NOT_CONNECTED in details and any(sign in details for sign in _CLOSED):
        return _turned_away(address, cert_pem, now)
    if any(sign in details for sign in (*_CLOSED, "Cancelling all calls")):
        return LinkError("the connection to the server was lost", where=address, hint="it may have stopped; try again")
    return LinkError(f"the server is not available: {_clean(details)}", where=address, hint="try again later")


def _turned_away(address: str, cert_pem: bytes | None, now: float | None) -> FedsegError:
    if cert_pem is not None and now is not None:
        try:
            require_valid(
                cert_pem,
                now=now,
                where="this site's certificate",
                hint="ask the study's coordinator for a new invite",
            )
        except LinkError as expired:
            return expired
    return LinkError(
        "the server closed the connection: it doesn't accept this site's certificate or invite",
        where=address,
        hint="ask the study's coordinator for a new invite",
    )


def _status(error: grpc.RpcError) -> tuple[grpc.StatusCode | None, str]:
    if isinstance(error, grpc.Call):
        return error.code(), error.details() or ""
    return None, str(error)


def _clean(details: str) -> str:
    """The other end's words, short and without what could steer a terminal."""
    shown = "".join(letter if letter.isprintable() else " " for letter in details[:MAX_DETAILS])
    return shown or "no reason given"
