"""A real gRPC server on loopback; by default with one call, Ask, that answers with the caller's fingerprint."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager

import grpc

from fedseg.rpc import certificates, credentials
from fedseg.rpc.credentials import ServerTls
from fedseg.rpc.pki import KeyPair

NOW = int(time.time())
DAY = 86_400


def enrolled(ca: KeyPair, site: str = "leuven", *, now: float = NOW) -> KeyPair:
    key = certificates.new_site_key()
    request = certificates.certificate_request(key, site)
    return KeyPair(certificates.issue_site_certificate(ca, request, site, now=now), key)


def server_tls(ca: KeyPair, *, now: float = NOW, days: int = 365, more_roots: bytes = b"") -> ServerTls:
    own = certificates.issue_server_certificate(ca, ["127.0.0.1"], now=now, days=days)
    return ServerTls(own.cert_pem, own.key_pem, ca.cert_pem + more_roots)


def _answer(request: bytes, context: grpc.ServicerContext) -> bytes:
    if request == b"wait":
        time.sleep(0.6)
    if request == b"refuse":
        context.abort(grpc.StatusCode.PERMISSION_DENIED, "not\x1b[31m you")
    return b"x" * (5 << 20) if request == b"big" else credentials.peer_fingerprint(context).encode()


ASK = grpc.method_handlers_generic_handler("test.Test", {"Ask": grpc.unary_unary_rpc_method_handler(_answer)})


@contextmanager
def serving(get_tls: Callable[[], ServerTls], handler: grpc.GenericRpcHandler[bytes, bytes] = ASK) -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(2), options=credentials.SERVER_OPTIONS)
    server.add_generic_rpc_handlers((handler,))
    port = credentials.listen(server, "127.0.0.1:0", credentials.server_credentials(get_tls))
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


def as_is(message: bytes) -> bytes:
    return message


def ask(
    address: str, ca_cert_pem: bytes, identity: KeyPair, message: bytes = b"who am I", *, timeout: float = 10
) -> str:
    with credentials.channel(address, ca_cert_pem, identity) as channel:
        answer: bytes = channel.unary_unary("/test.Test/Ask", as_is, as_is)(message, timeout=timeout)
    return answer.decode()
