"""Every message of `explain`, from a failure that really happened on loopback."""

from __future__ import annotations

import socket
import threading
from concurrent import futures

import grpc
import pytest

from fedseg.errors import FedsegError, LinkError
from fedseg.rpc import certificates, credentials
from fedseg.rpc.failures import explain
from fedseg.rpc.pki import KeyPair

from .loopback import DAY, NOW, as_is, ask, enrolled, server_tls, serving

CA = certificates.create_study_ca("atlas", now=NOW)
SITE = enrolled(CA)


@pytest.fixture(scope="module")
def address():  # type: ignore[no-untyped-def]  # a generator fixture
    tls = server_tls(CA)
    with serving(lambda: tls) as at:
        yield at


def _failure(
    address: str, message: bytes = b"", *, ca: bytes = CA.cert_pem, site: KeyPair = SITE, timeout: float = 10
) -> FedsegError:
    with pytest.raises(grpc.RpcError) as caught:
        ask(address, ca, site, message, timeout=timeout)
    error = explain(caught.value, address)
    assert isinstance(error, LinkError)
    assert error.where == address
    return error


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def test_nobody_listens() -> None:
    error = _failure(f"127.0.0.1:{_free_port()}")
    assert error.what == "no server answers at this address"
    assert "fedseg server start" in str(error.hint)


def test_a_name_that_does_not_resolve() -> None:
    error = _failure("no-such-host.invalid:8443")
    assert error.what == "no machine of this name can be found"
    assert "typing errors" in str(error.hint)


def test_a_server_of_another_study(address: str) -> None:
    other = certificates.create_study_ca("atlas", now=NOW)
    error = _failure(address, ca=other.cert_pem)
    assert error.what == "this is not the study's server: its certificate is not signed by the study's CA"


@pytest.mark.parametrize(
    ("days", "what"),
    [(-200, "the server's certificate has expired"), (20, "the server's certificate is not valid yet")],
)
def test_a_server_certificate_out_of_its_time(days: int, what: str) -> None:
    made_at = NOW + days * DAY
    ca = certificates.create_study_ca("old", now=min(made_at, NOW))
    tls = server_tls(ca, now=made_at, days=100)
    with serving(lambda: tls) as at:
        error = _failure(at, ca=ca.cert_pem, site=enrolled(ca))
    assert error.what == what
    assert "this machine's clock" in str(error.hint)


def test_a_server_certificate_for_another_host() -> None:
    """Any address of 127/8 reaches the machine, but only 127.0.0.1 is in the certificate."""
    tls = server_tls(CA)
    server = grpc.server(futures.ThreadPoolExecutor(1), options=credentials.SERVER_OPTIONS)
    port = credentials.listen(server, "127.0.0.2:0", credentials.server_credentials(lambda: tls))
    server.start()
    try:
        error = _failure(f"127.0.0.2:{port}")
    finally:
        server.stop(0)
    assert error.what == "the server's certificate is for another host name"
    assert "study create --address" in str(error.hint)


def test_something_else_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(10)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(4096):
                    pass

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        error = _failure(f"127.0.0.1:{listener.getsockname()[1]}")
        thread.join(5)
    assert error.what == "what answers at this address is no fedseg server: it doesn't speak TLS"


def test_a_firewall_that_swallows_everything() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        error = _failure(f"127.0.0.1:{listener.getsockname()[1]}", timeout=0.3)
    assert error.what == "the server did not answer in time"
    assert "firewall" in str(error.hint)


def test_a_server_that_is_slow(address: str) -> None:
    assert _failure(address, b"wait", timeout=0.2).what == "the server did not answer in time"


def test_a_message_beyond_the_limit(address: str) -> None:
    for message in (b"big", b"x" * (5 << 20)):
        assert _failure(address, message).what == "a message is larger than this study's wire allows"


def test_a_call_the_server_does_not_know(address: str) -> None:
    with credentials.channel(address, CA.cert_pem, SITE) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/test.Test/Other", as_is, as_is)(b"", timeout=10)
    assert "another version of fedseg" in str(explain(caught.value, address))


def test_the_server_s_own_words_cannot_steer_a_terminal(address: str) -> None:
    error = _failure(address, b"refuse")
    assert error.what == "the server refused the call (PERMISSION_DENIED): not [31m you"


def test_a_call_that_is_cancelled(address: str) -> None:
    with credentials.channel(address, CA.cert_pem, SITE) as channel:
        answers = channel.unary_stream("/test.Test/Ask", as_is, as_is)(b"wait", timeout=10)
        answers.cancel()  # type: ignore[no-untyped-call]  # grpc-stubs leave it so
        with pytest.raises(grpc.RpcError) as caught:
            list(answers)
    assert explain(caught.value, address).what == "the call was cancelled"


def test_a_server_that_stops_in_mid_call() -> None:
    tls = server_tls(CA)
    with serving(lambda: tls) as at:
        channel = credentials.channel(at, CA.cert_pem, SITE)
        grpc.channel_ready_future(channel).result(timeout=10)
        call = channel.unary_unary("/test.Test/Ask", as_is, as_is).future(b"wait", timeout=10)
        with pytest.raises(grpc.FutureTimeoutError):
            call.result(timeout=0.2)
    with channel, pytest.raises(grpc.RpcError) as caught:
        call.result()
    assert explain(caught.value, at).what == "the connection to the server was lost"


def test_a_text_nobody_foresaw_is_passed_on() -> None:
    error = explain(grpc.RpcError("strange\x07 " + "x" * 1000), "host:1")
    assert "strange  xxx" in error.what
    assert len(error.what) < 400
