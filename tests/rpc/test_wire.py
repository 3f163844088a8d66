"""The service and the channel over loopback, mutual TLS and all, with a toy study."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc
import numpy as np
import pytest

from fedseg.errors import FedsegError, InviteError, LinkError, ProtocolError, StaleSession, Unreachable
from fedseg.federation.exchange import Instruction, Join, LedgerClaim, Published, Submit, Wait
from fedseg.federation.vector import model_hash
from fedseg.plan import Manifest
from fedseg.rpc import codec
from fedseg.rpc._pb import federation_pb2 as pb
from fedseg.rpc._pb import federation_pb2_grpc as pb_grpc
from fedseg.rpc.certificates import certificate_request, create_study_ca, new_site_key, require_issued
from fedseg.rpc.channel import RemoteStudy
from fedseg.rpc.credentials import channel as open_channel
from fedseg.rpc.invites import Invite
from fedseg.rpc.pki import KeyPair
from fedseg.rpc.service import Desk, start_server
from fedseg.runtime.coordinator import Coordinator
from fedseg.runtime.serve import desk_of
from fedseg.runtime.simulation import LocalLink
from fedseg.runtime.study import DiskArchive, StudyFolder
from fedseg.secagg.aggregator import plain_input
from fedseg.secagg.messages import MaskedInput
from fedseg.store.study_db import ClaimRow
from tests.rpc.loopback import enrolled
from tests.runtime import toy

NOW = time.time()
SIZE = 4 * (toy.SIZE + 1)
FIRST = model_hash(toy.INITIAL)


@dataclass(frozen=True)
class QuickLink(LocalLink):
    """Holds no poll, and breaks where it is told to."""

    breaks: dict[str, Exception] = field(default_factory=dict)

    def poll(self, session: bytes | None) -> Instruction:
        if "poll" in self.breaks:
            raise self.breaks["poll"]
        return self.coordinator.poll(self.site, session, 0)

    def published(self, round_number: int, progress: object) -> Published:
        if "published" in self.breaks:
            raise self.breaks["published"]
        return Published(round_number, ("a", "b"), np.arange(toy.SIZE + 1, dtype=np.uint32))


class Wire:
    """A served study of one round in plain mode, and its sites' credentials."""

    def __init__(self, root: Path) -> None:
        self.study = StudyFolder.create(
            root, toy.plan(mode="plain", rounds=1), toy.INITIAL, {"preset": "toy"}, address="127.0.0.1:1", now=NOW
        )
        self.manifest = self.study.manifest
        self.ca = self.study.ca.cert_pem
        self.breaks: dict[str, Exception] = {}
        self.alive: list[str] = []
        self.coordinator = Coordinator(self.manifest, DiskArchive(self.study), notify=lambda _: None)
        desk = replace(desk_of(self.study, self.manifest, self.coordinator), link=self._link, alive=self.alive.append)
        self.server, port = start_server(desk, "127.0.0.1:0", self.study.tls, sites=3)
        self.address = f"127.0.0.1:{port}"
        self.identities: dict[str, KeyPair] = {}

    def _link(self, site: str) -> QuickLink:
        return QuickLink(self.coordinator, site, self.breaks)

    def invite(self, site: str, *, now: float = NOW, hours: int = 1) -> Invite:
        return self.study.invite(site, now=now, hours=hours)

    def enrol(self, invite: Invite) -> KeyPair:
        key = new_site_key()
        with RemoteStudy(self.address, self.ca, invite.enrolment_identity(now=NOW)) as remote:
            certificate = remote.enrol(certificate_request(key, invite.site), bytes(32))
        return KeyPair(certificate, key)

    def identity(self, site: str) -> KeyPair:
        if site not in self.identities:
            self.identities[site] = self.enrol(self.invite(site))
        return self.identities[site]

    def as_site(self, site: str, parameters: int = toy.SIZE) -> RemoteStudy:
        return RemoteStudy(self.address, self.ca, self.identity(site), parameters)

    def as_stub(self, site: str) -> tuple[grpc.Channel, pb_grpc.FederationStub]:
        opened = open_channel(self.address, self.ca, self.identity(site))
        return opened, pb_grpc.FederationStub(opened)

    def submit(self) -> tuple[Join, Submit]:
        """All sites come and join, until updates are asked for."""
        links = {site: self._link(site) for site in "abc"}
        for link in links.values():
            link.poll(None)
        joined = None
        for link in links.values():
            instruction = link.poll(None)
            if isinstance(instruction, Join):
                joined = instruction
                link.advertise(instruction.header.sid0(), None)
        assert joined is not None
        asked = links["a"].poll(joined.header.sid0())
        assert isinstance(asked, Submit)
        return joined, asked


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    wire = Wire(tmp_path_factory.mktemp("wire") / "study")
    yield wire
    wire.server.stop(0).wait()


@pytest.fixture
def wire(shared: Wire) -> Iterator[Wire]:
    yield shared
    shared.breaks.clear()


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Wire]:
    """A study whose rounds no other test moves."""
    wire = Wire(tmp_path / "study")
    yield wire
    wire.server.stop(0).wait()


def silent(_done: int, _size: int) -> None:
    pass


# Who may come in.


def test_an_invite_becomes_a_certificate_of_the_invited_site(wire: Wire) -> None:
    identity = wire.identity("a")
    require_issued(identity.cert_pem, identity.key_pem, wire.ca, "a", now=time.time())
    with wire.as_site("a") as remote:
        manifest = Manifest.from_json(remote.manifest())
    assert manifest == wire.manifest


def test_an_invite_is_good_once(wire: Wire) -> None:
    invite = wire.invite("c")
    wire.identities["c"] = wire.enrol(invite)
    with pytest.raises(InviteError) as caught:
        wire.enrol(invite)
    assert caught.value.what == "this invite has been used"
    assert caught.value.hint == "ask the coordinator for a new one: fedseg study invite DIR c"
    assert caught.value.where == wire.address


def test_an_expired_invite_says_so(wire: Wire) -> None:
    with pytest.raises(InviteError, match="this invite has expired"):
        wire.enrol(wire.invite("b", now=NOW - 7200, hours=1))


def test_an_invite_that_was_replaced_ends_with_the_newer_one(wire: Wire) -> None:
    older, newer = wire.invite("b"), wire.invite("b")
    with pytest.raises(LinkError, match="it doesn't accept this site's certificate or invite"):
        wire.enrol(older)
    wire.identities["b"] = wire.enrol(newer)


def test_an_invite_that_the_server_never_made_is_turned_away(wire: Wire) -> None:
    forged = Invite.create(wire.address, "a", wire.ca, now=NOW, hours=1)
    with pytest.raises(LinkError) as caught:
        wire.enrol(forged)
    assert "doesn't accept this site's certificate or invite" in caught.value.what


def test_an_invite_opens_nothing_but_enrolment(wire: Wire) -> None:
    invite = wire.invite("b")
    with RemoteStudy(wire.address, wire.ca, invite.enrolment_identity(now=NOW), toy.SIZE) as remote:
        calls = (
            remote.manifest,
            lambda: remote.poll(None),
            lambda: remote.model(FIRST, silent),
            lambda: remote.upload(bytes(32), MaskedInput("b", bytes(32)), np.zeros(toy.SIZE + 1, np.uint32), silent),
        )
        for call in calls:
            with pytest.raises(LinkError) as caught:
                call()
            assert caught.value.what == "this certificate is not that of an enrolled site"
            assert caught.value.hint == "enrol with an invite first"


def test_a_site_that_is_enrolled_cannot_enrol_again(wire: Wire) -> None:
    with wire.as_site("a") as remote, pytest.raises(InviteError, match="this site is enrolled already"):
        remote.enrol(certificate_request(new_site_key(), "a"), bytes(32))


def test_a_certificate_of_the_study_that_is_in_no_book_is_refused(wire: Wire) -> None:
    stray = enrolled(wire.study.ca, "a")
    with (
        RemoteStudy(wire.address, wire.ca, stray) as remote,
        pytest.raises(LinkError, match="not that of an enrolled site"),
    ):
        remote.manifest()


def test_a_certificate_that_was_replaced_no_longer_counts(fresh: Wire) -> None:
    old = fresh.identity("a")
    fresh.enrol(fresh.invite("a"))
    with (
        RemoteStudy(fresh.address, fresh.ca, old) as remote,
        pytest.raises(LinkError, match="not that of an enrolled site"),
    ):
        remote.poll(None)


def test_a_foreign_certificate_is_turned_away(wire: Wire) -> None:
    foreign = enrolled(create_study_ca("another study", now=NOW), "a")
    with RemoteStudy(wire.address, wire.ca, foreign) as remote, pytest.raises(LinkError) as caught:
        remote.manifest()
    assert "doesn't accept this site's certificate or invite" in caught.value.what


def test_a_foreign_server_is_not_spoken_to(wire: Wire) -> None:
    other = create_study_ca("another study", now=NOW)
    with RemoteStudy(wire.address, other.cert_pem, wire.identity("a")) as remote, pytest.raises(LinkError) as caught:
        remote.manifest()
    assert "this is not the study's server" in caught.value.what


@pytest.mark.parametrize(
    ("request_", "key", "says"),
    [
        (b"junk", bytes(32), "this is not a PEM certificate request"),
        (bytes(20_000), bytes(32), "the certificate request is too large"),
        (b"", bytes(31), "the protocol key has 31 bytes instead of 32"),
    ],
)
def test_malformed_enrolments_use_no_invite_up(wire: Wire, request_: bytes, key: bytes, says: str) -> None:
    invite = wire.invite("b")
    identity = invite.enrolment_identity(now=NOW)
    with RemoteStudy(wire.address, wire.ca, identity) as remote, pytest.raises(ProtocolError, match=says):
        remote.enrol(request_, key)
    assert [row.used_at for row in wire.study.db.invites() if row.id == invite.identifier] == [None]


# What passes.


def test_a_round_over_the_wire(fresh: Wire) -> None:
    joined, asked = fresh.submit()
    vectors = {site: np.full(toy.SIZE + 1, 7 * number, np.uint32) for number, site in enumerate("abc")}
    weight = joined.header.encoding.weight_scale
    told: list[int] = []
    for site, vector in vectors.items():
        vector[-1] = weight
        message = plain_input(joined.header, site, asked.sharers, vector)
        with fresh.as_site(site) as remote:
            assert remote.poll(asked.session) == asked
            remote.upload(asked.session, message, vector, lambda done, _: told.append(done))
    assert told == 3 * [SIZE]
    assert fresh.coordinator.history == ((1, ("a", "b", "c")),)
    total = fresh.coordinator.published(1)
    np.testing.assert_array_equal(total.total[:-1], np.full(toy.SIZE, 21, np.uint32))
    assert set(fresh.alive) == {"a", "b", "c"}
    with fresh.as_site("a") as remote:
        np.testing.assert_array_equal(
            remote.model(model_hash(fresh.coordinator.weights), silent), fresh.coordinator.weights
        )


def test_a_model_comes_down_whole(wire: Wire) -> None:
    told: list[tuple[int, int]] = []
    with wire.as_site("a") as remote:
        weights = remote.model(FIRST, lambda done, size: told.append((done, size)))
        np.testing.assert_array_equal(weights, toy.INITIAL)
        assert weights.dtype == np.float32
        assert told == [(4 * toy.SIZE, 4 * toy.SIZE)]
        with pytest.raises(StaleSession) as caught:
            remote.model("f" * 64, silent)
        assert caught.value.what == "the server no longer has that model"
        assert caught.value.hint == "ask again what to do"


def test_a_sum_comes_down_with_its_contributors(wire: Wire) -> None:
    with wire.as_site("a") as remote:
        published = remote.published(4, silent)
    assert (published.round, published.contributors) == (4, ("a", "b"))
    np.testing.assert_array_equal(published.total, np.arange(toy.SIZE + 1, dtype=np.uint32))


def test_a_download_of_another_size_is_refused_before_it_is_stored(wire: Wire) -> None:
    says = "the server offers 4000 bytes where the study's model takes 3996"
    with wire.as_site("a", parameters=toy.SIZE - 1) as remote, pytest.raises(ProtocolError, match=says):
        remote.model(FIRST, silent)


def test_a_download_that_was_altered_is_refused(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    with wire.as_site("a") as remote:
        monkeypatch.setattr(codec, "digest_of", lambda _: hashlib.sha256(b"something else").digest())
        with pytest.raises(ProtocolError, match="a download does not fit its own digest"):
            remote.model(FIRST, silent)


def test_a_claim_is_written_down(wire: Wire) -> None:
    with wire.as_site("a") as remote:
        remote.claim(LedgerClaim(2, 2**40, "ab" * 32))
    assert wire.study.db.claims()["a"] == ClaimRow("a", 2, 2**40, "ab" * 32)


def test_a_stale_step_is_told_apart_from_a_wrong_one(wire: Wire) -> None:
    with wire.as_site("a") as remote:
        with pytest.raises(StaleSession, match="that session has moved on"):
            remote.advertise(bytes(32), None)
        with pytest.raises(ProtocolError, match="a session has 5 bytes instead of 32") as caught:
            remote.poll(b"short")
        assert not isinstance(caught.value, StaleSession)
        remote.withdraw(bytes(32), "failed")


# Uploads that go wrong.


def upload(wire: Wire, parts: list[pb.UploadPart]) -> tuple[grpc.StatusCode, str]:
    opened, stub = wire.as_stub("a")
    with opened, pytest.raises(grpc.RpcError) as caught:
        stub.UploadMaskedInput(iter(parts), timeout=10)
    assert isinstance(caught.value, grpc.Call)
    return caught.value.code(), caught.value.details() or ""


def header(size: int = SIZE, digest: bytes = bytes(32)) -> pb.UploadPart:
    return pb.UploadPart(header=pb.UploadHeader(session=bytes(32), digest=digest, size=size))


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ([header(SIZE - 4)], f"an upload has {SIZE} bytes here, not {SIZE - 4}"),
        ([header(2**60)], f"an upload has {SIZE} bytes here, not {2**60}"),
        ([], f"an upload has {SIZE} bytes here, not 0"),
        ([pb.UploadPart(chunk=bytes(SIZE))], f"an upload has {SIZE} bytes here, not 0"),
        ([header(digest=b"x")], "a digest has 1 bytes instead of 32"),
        ([header(), pb.UploadPart(chunk=bytes(100))], f"a transfer was cut short: 100 of {SIZE} bytes"),
        ([header()], f"a transfer was cut short: 0 of {SIZE} bytes"),
        (
            [header(), pb.UploadPart(chunk=bytes(SIZE)), pb.UploadPart(chunk=b"x")],
            f"a transfer of {SIZE} bytes brought more",
        ),
        ([header(), header(), pb.UploadPart(chunk=bytes(SIZE - 1))], f"cut short: {SIZE - 1} of {SIZE} bytes"),
    ],
)
def test_uploads_of_a_wrong_size(fresh: Wire, parts: list[pb.UploadPart], says: str) -> None:
    _, asked = fresh.submit()
    for part in parts:
        if part.HasField("header"):
            part.header.session = asked.session
    code, details = upload(fresh, parts)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert says in details
    assert fresh._link("a").poll(asked.session) == asked


def test_an_upload_that_nobody_asked_for_is_refused_at_its_header(wire: Wire) -> None:
    code, details = upload(wire, [header(), pb.UploadPart(chunk=bytes(SIZE))])
    assert code is grpc.StatusCode.ABORTED
    assert "that session has moved on" in details


def test_an_upload_that_breaks_off_adds_nothing(fresh: Wire, caplog: pytest.LogCaptureFixture) -> None:
    joined, asked = fresh.submit()
    vector = np.ones(toy.SIZE + 1, np.uint32)
    message = plain_input(joined.header, "a", asked.sharers, vector)

    def parts() -> Iterator[pb.UploadPart]:
        yield pb.UploadPart(header=pb.UploadHeader(session=asked.session, digest=message.digest, size=SIZE))
        yield pb.UploadPart(chunk=vector.tobytes()[:100])
        raise RuntimeError("the site dies here")

    opened, stub = fresh.as_stub("a")
    with opened, pytest.raises(grpc.RpcError):
        stub.UploadMaskedInput(parts(), timeout=10)
    assert fresh._link("a").poll(asked.session) == asked
    with fresh.as_site("a") as remote:
        remote.upload(asked.session, message, vector, silent)
    assert isinstance(fresh._link("a").poll(asked.session), Wait)
    assert fresh.coordinator._attempt is not None
    assert fresh.coordinator._attempt.row.bytes_received == SIZE
    assert "a call failed" not in caplog.text


def test_a_second_upload_ends_one_that_hangs(fresh: Wire) -> None:
    joined, asked = fresh.submit()
    vector = np.ones(toy.SIZE + 1, np.uint32)
    message = plain_input(joined.header, "a", asked.sharers, vector)
    begun, end = threading.Event(), threading.Event()

    def parts() -> Iterator[pb.UploadPart]:
        yield pb.UploadPart(header=pb.UploadHeader(session=asked.session, digest=message.digest, size=SIZE))
        yield pb.UploadPart(chunk=vector.tobytes()[:100])
        begun.set()
        end.wait(20)

    opened, stub = fresh.as_stub("a")
    with opened:
        hanging = stub.UploadMaskedInput.future(parts(), timeout=20)
        assert begun.wait(10)
        while not fresh.alive:
            assert not end.wait(0.01)
        with fresh.as_site("a") as remote:
            remote.upload(asked.session, message, vector, silent)
        with pytest.raises(grpc.RpcError):
            hanging.result(10)
        end.set()
    assert isinstance(fresh._link("a").poll(asked.session), Wait)


def test_an_upload_that_does_not_fit_its_digest_is_refused(fresh: Wire) -> None:
    joined, asked = fresh.submit()
    vector = np.ones(toy.SIZE + 1, np.uint32)
    message = plain_input(joined.header, "a", asked.sharers, vector)
    with fresh.as_site("a") as remote, pytest.raises(ProtocolError, match="site a at MaskedInputCollection"):
        remote.upload(asked.session, message, vector + np.uint32(1), silent)
    assert fresh._link("a").poll(asked.session) == asked


# Failures that nobody foresaw.


@pytest.mark.parametrize("kind", [RuntimeError, KeyError, FedsegError, OSError])
def test_a_failure_of_the_server_says_nothing_of_itself(
    wire: Wire, kind: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("poll", "published"):
        wire.breaks[name] = kind("/srv/secret/path")
    opened, stub = wire.as_stub("a")
    with opened, caplog.at_level(logging.ERROR, "fedseg.rpc.service"):
        with pytest.raises(grpc.RpcError) as unary:
            stub.Poll(pb.PollRequest(), timeout=10)
        with pytest.raises(grpc.RpcError) as streaming:
            list(stub.DownloadSum(pb.DownloadSumRequest(round=1), timeout=10))
    for error in (unary.value, streaming.value):
        assert isinstance(error, grpc.Call)
        assert error.code() is grpc.StatusCode.INTERNAL
        assert error.details() == "the server failed; its log says why"
        assert b"secret" not in str(error.trailing_metadata()).encode()
    assert caplog.text.count("/srv/secret/path") >= 2
    with wire.as_site("a") as remote, pytest.raises(LinkError) as caught:
        remote.poll(None)
    assert caught.value.what == "the server refused the call (INTERNAL): the server failed; its log says why"


def test_words_of_a_refusal_are_cleaned(wire: Wire) -> None:
    wire.breaks["poll"] = ProtocolError("bad\x1b[2J", hint="call\x07 us")
    with wire.as_site("a") as remote, pytest.raises(ProtocolError) as caught:
        remote.poll(None)
    assert (caught.value.what, caught.value.hint) == ("bad [2J", "call  us")


def test_a_server_that_is_not_there_may_be_tried_again(wire: Wire) -> None:
    with (
        RemoteStudy("127.0.0.1:1", wire.ca, wire.identity("a")) as remote,
        pytest.raises(Unreachable) as caught,
    ):
        remote.manifest()
    assert caught.value.what == "no server answers at this address"


def test_a_second_server_on_the_port_is_refused(wire: Wire) -> None:
    desk: Desk = desk_of(wire.study, wire.manifest, wire.coordinator)
    with pytest.raises(LinkError, match="the port is in use"):
        start_server(desk, wire.address, wire.study.tls, sites=1)


def test_the_desk_keeps_certificates_out_of_logs(wire: Wire) -> None:
    assert "invites" not in repr(desk_of(wire.study, wire.manifest, wire.coordinator))
