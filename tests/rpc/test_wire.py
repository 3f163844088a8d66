"""The service and the channel over loopback, mutual TLS and all, in front of a study that believes everything."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest

from fedseg.errors import (
    FedsegError,
    InviteError,
    LedgerError,
    LinkError,
    ProtocolError,
    StaleSession,
    StorageError,
    Unreachable,
)
from fedseg.federation.exchange import (
    Best,
    Confirm,
    Enrolled,
    Finished,
    Head,
    Instruction,
    Join,
    LedgerClaim,
    Link,
    Paused,
    ShareKeys,
    Submit,
    Unmask,
    Wait,
)
from fedseg.rpc import transfer
from fedseg.rpc._pb import federation_pb2 as pb
from fedseg.rpc.certificates import certificate_request, create_study_ca, new_site_key, require_issued
from fedseg.rpc.channel import RemoteStudy
from fedseg.rpc.invites import Invite
from fedseg.rpc.service import SPARE_THREADS, start_server
from fedseg.rpc.turns import CALLS_A_SITE
from fedseg.secagg.messages import Advertisement, Consistency, Envelopes, MaskedInput, Shares
from tests.rpc.fake_study import (
    COUNTERSIGNED,
    KEYS,
    LENGTH,
    NOW,
    PARAMETERS,
    PUBLISHED,
    SESSION,
    SIZE,
    TOTAL,
    WEIGHTS,
    Wire,
    until,
)
from tests.rpc.loopback import as_is, enrolled
from tests.secagg import helpers

HEADER = helpers.session()
SITE, OTHER = HEADER.sites[:2]
INPUTS = helpers.inputs_of(HEADER)
ADVERTISED = {site: state.message for site, state in helpers.after_advertise(HEADER)[1].items()}
SHARED = {site: state.message for site, state in helpers.after_share(HEADER)[1].items()}
CONFIRMED = {site: state.message for site, state in helpers.after_confirm(HEADER, INPUTS)[1].items()}
UNMASKED = {site: state.message for site, state in helpers.after_unmask(HEADER, INPUTS)[1].items()}
VECTOR = np.arange(LENGTH, dtype=np.uint32) * np.uint32(4_000_003)
MESSAGE = MaskedInput(SITE, bytes(range(32)), bytes(range(64)))
MODEL = "cd" * 32


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    wire = Wire(tmp_path_factory.mktemp("staging"))
    yield wire
    wire.server.stop(0).wait()


@pytest.fixture
def wire(shared: Wire) -> Wire:
    shared.forget()
    return shared


def silent(_done: int, _size: int) -> None:
    pass


# Who may come in.


def test_an_invite_becomes_a_certificate_of_the_invited_site(wire: Wire) -> None:
    identity = wire.enrol(wire.invite(SITE))
    require_issued(identity.cert_pem, identity.key_pem, wire.ca.cert_pem, SITE, now=time.time())
    assert wire.said("enrol") == [(bytes(32),)]
    with RemoteStudy(wire.address, wire.ca.cert_pem, identity) as remote:
        assert remote.manifest() == b"the plan"
    assert wire.memory.said[-1] == (SITE, "manifest", ())


def test_a_refusal_brings_its_hint(wire: Wire) -> None:
    invite = wire.invite("cluj")
    wire.enrol(invite)
    with pytest.raises(InviteError) as caught:
        wire.enrol(invite)
    assert (caught.value.what, caught.value.hint) == (
        "the server says: this invite has been used; ask for another",
        None,
    )
    assert caught.value.where == wire.address


def test_an_invite_that_the_server_never_made_is_turned_away(wire: Wire) -> None:
    forged = Invite.create(wire.address, SITE, wire.ca.cert_pem, now=NOW, hours=1)
    with pytest.raises(LinkError) as caught:
        wire.enrol(forged)
    assert "doesn't accept this site's certificate or invite" in caught.value.what


LINK_CALLS: dict[str, Callable[[Link], object]] = {
    "manifest": lambda link: link.manifest(),
    "roster": lambda link: link.roster(),
    "poll": lambda link: link.poll(None),
    "advertise": lambda link: link.advertise(SESSION, ADVERTISED[SITE]),
    "share_keys": lambda link: link.share_keys(SESSION, SHARED[SITE]),
    "upload": lambda link: link.upload(SESSION, MESSAGE, VECTOR, silent),
    "confirm": lambda link: link.confirm(SESSION, CONFIRMED[SITE]),
    "unmask": lambda link: link.unmask(SESSION, UNMASKED[SITE]),
    "withdraw": lambda link: link.withdraw(SESSION, "failed"),
    "claim": lambda link: link.claim(LedgerClaim(1, 2, MODEL)),
    "countersigned": lambda link: link.countersigned(),
    "model": lambda link: link.model(MODEL, silent),
    "published": lambda link: link.published(4, silent),
    "evaluated": lambda link: link.evaluated(4, silent),
    "holds": lambda link: link.holds(MODEL),
}


def test_every_call_of_a_link_is_tried_here() -> None:
    assert set(LINK_CALLS) == {name for name in vars(Link) if not name.startswith("_")}


@pytest.mark.parametrize("name", LINK_CALLS)
def test_an_invite_opens_nothing_but_enrolment(wire: Wire, name: str) -> None:
    identity = wire.invite(OTHER).enrolment_identity(now=NOW)
    with (
        RemoteStudy(wire.address, wire.ca.cert_pem, identity, parameters=PARAMETERS, length=LENGTH) as remote,
        pytest.raises(LinkError) as caught,
    ):
        LINK_CALLS[name](remote)
    said = "this certificate is not that of an enrolled site; enrol with an invite first"
    assert (caught.value.what, caught.value.hint) == (f"the server says: {said}", None)
    assert not wire.memory.said


def test_a_site_that_is_enrolled_cannot_enrol_again(wire: Wire) -> None:
    with wire.as_site(SITE) as remote, pytest.raises(InviteError, match="this site is enrolled already"):
        remote.enrol(certificate_request(new_site_key(), SITE), bytes(32))


def test_a_certificate_of_the_study_that_is_in_no_book_is_refused(wire: Wire) -> None:
    stray = enrolled(wire.ca, SITE)
    with (
        RemoteStudy(wire.address, wire.ca.cert_pem, stray) as remote,
        pytest.raises(LinkError, match="not that of an enrolled site"),
    ):
        remote.manifest()


def test_a_foreign_certificate_is_turned_away(wire: Wire) -> None:
    foreign = enrolled(create_study_ca("another study", now=NOW), SITE)
    with RemoteStudy(wire.address, wire.ca.cert_pem, foreign) as remote, pytest.raises(LinkError) as caught:
        remote.manifest()
    assert "doesn't accept this site's certificate or invite" in caught.value.what


def test_a_foreign_server_is_not_spoken_to(wire: Wire) -> None:
    other = create_study_ca("another study", now=NOW)
    with RemoteStudy(wire.address, other.cert_pem, wire.identity(SITE)) as remote, pytest.raises(LinkError) as caught:
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
def test_malformed_enrolments_are_refused(wire: Wire, request_: bytes, key: bytes, says: str) -> None:
    identity = wire.invite(OTHER).enrolment_identity(now=NOW)
    with (
        RemoteStudy(wire.address, wire.ca.cert_pem, identity) as remote,
        pytest.raises(ProtocolError, match=says),
    ):
        remote.enrol(request_, key)
    assert not wire.said("enrol")


# What passes.

CLAIM = LedgerClaim(2, 2**40, "ab" * 32, "ef" * 32, 7, 2)


def test_what_a_site_says_arrives_as_it_was_said_and_in_its_name(wire: Wire) -> None:
    told: list[tuple[int, int]] = []
    with wire.as_site(SITE) as remote:
        remote.poll(SESSION)
        remote.advertise(SESSION, ADVERTISED[SITE])
        remote.advertise(SESSION, None)
        remote.share_keys(SESSION, SHARED[SITE])
        remote.upload(SESSION, MESSAGE, VECTOR, lambda done, size: told.append((done, size)))
        remote.confirm(SESSION, CONFIRMED[SITE])
        remote.unmask(SESSION, UNMASKED[SITE])
        remote.withdraw(SESSION, "budget")
        remote.claim(CLAIM)
        remote.claim(replace(CLAIM, previous=None))
        remote.holds(MODEL)
    assert wire.memory.said[-11:] == [
        (SITE, "poll", (SESSION,)),
        (SITE, "advertise", (SESSION, ADVERTISED[SITE])),
        (SITE, "advertise", (SESSION, None)),
        (SITE, "share_keys", (SESSION, SHARED[SITE])),
        (SITE, "upload", (SESSION, MESSAGE, VECTOR.tobytes())),
        (SITE, "confirm", (SESSION, CONFIRMED[SITE])),
        (SITE, "unmask", (SESSION, UNMASKED[SITE])),
        (SITE, "withdraw", (SESSION, "budget")),
        (SITE, "claim", (CLAIM,)),
        (SITE, "claim", (replace(CLAIM, previous=None),)),
        (SITE, "holds", (MODEL,)),
    ]
    assert told == [(SIZE, SIZE)]
    assert wire.memory.alive == [SITE]


def test_a_countersigned_claim_arrives_as_the_server_signed_it(wire: Wire) -> None:
    with wire.as_site(SITE) as remote:
        assert remote.claim(CLAIM) == COUNTERSIGNED
        assert remote.countersigned() is None
        wire.memory.answers["countersigned"] = COUNTERSIGNED
        assert remote.countersigned() == COUNTERSIGNED


def test_a_refused_claim_says_why_in_the_servers_words(wire: Wire) -> None:
    wire.memory.answers["claim"] = LedgerError("an older copy of the ledger is in use", hint="restore the newest")
    with wire.as_site(SITE) as remote, pytest.raises(LedgerError) as caught:
        remote.claim(CLAIM)
    assert caught.value.what == "the server says: an older copy of the ledger is in use; restore the newest"


def test_an_earlier_version_of_the_plan_can_be_asked_for(wire: Wire) -> None:
    with wire.as_site(SITE) as remote:
        assert remote.manifest("cd" * 32) == b"the plan"
    assert wire.memory.said[-1] == (SITE, "manifest", ("cd" * 32,))


HEAD = Head("12" * 32, 7, "34" * 32, Best("56" * 32, 0.8251))


@pytest.mark.parametrize(
    "instruction",
    [
        Wait("brno to join"),
        Join(HEADER, HEAD),
        ShareKeys(SESSION, tuple(ADVERTISED.values())),
        Submit(SESSION, HEADER.sites, SHARED[OTHER].sealed),
        Confirm(SESSION, HEADER.sites),
        Unmask(SESSION, {site: message.signature for site, message in CONFIRMED.items()}),
        Finished(replace(HEAD, best=None), ((1, HEADER.sites), (3, HEADER.sites[:2]))),
        Paused("the server was stopped"),
    ],
    ids=lambda instruction: type(instruction).__name__,
)
def test_an_instruction_arrives_as_it_was_given(wire: Wire, instruction: Instruction) -> None:
    wire.memory.answers["poll"] = instruction
    with wire.as_site(SITE) as remote:
        assert remote.poll(None) == instruction
    assert wire.said("poll") == [(None,)]


def test_who_has_enrolled_is_told(wire: Wire) -> None:
    with wire.as_site(SITE) as remote:
        assert remote.roster() == Enrolled(bytes(range(32)), KEYS)
        wire.memory.answers["roster"] = Enrolled(bytes(32), {})
        assert remote.roster() == Enrolled(bytes(32), {})


@pytest.mark.parametrize(
    ("told", "says"),
    [
        (Enrolled(bytes(31), KEYS), "the server's key has 31 bytes instead of 32"),
        (Enrolled(bytes(32), {"brno": bytes(33)}), "protocol keys: that of brno has 33 bytes instead of 32"),
        (Enrolled(bytes(32), {"BRNO": bytes(32)}), "protocol keys: not names of sites"),
        (
            Enrolled(bytes(32), {f"s{number}": bytes(32) for number in range(101)}),
            "protocol keys: more than a study has sites",
        ),
    ],
)
def test_a_malformed_roster_is_refused(wire: Wire, told: Enrolled, says: str) -> None:
    wire.memory.answers["roster"] = told
    with wire.as_site(SITE) as remote, pytest.raises(ProtocolError, match=says):
        remote.roster()


def test_a_model_comes_down_whole(wire: Wire) -> None:
    told: list[tuple[int, int]] = []
    with wire.as_site(SITE) as remote:
        weights = remote.model(MODEL, lambda done, size: told.append((done, size)))
    np.testing.assert_array_equal(weights, WEIGHTS)
    assert weights.dtype == np.float32
    assert told == [(4 * PARAMETERS, 4 * PARAMETERS)]
    assert wire.said("model") == [(MODEL,)]


def test_a_sum_comes_down_with_all_that_the_server_says_of_it(wire: Wire) -> None:
    with wire.as_site(SITE) as remote:
        published = remote.published(4, silent)
    np.testing.assert_array_equal(published.total, TOTAL)
    assert published.total.dtype == np.uint32
    assert replace(published, total=TOTAL) == PUBLISHED


def test_an_evaluation_comes_down_by_its_own_size(wire: Wire) -> None:
    short = replace(PUBLISHED, total=TOTAL[:53])
    wire.memory.answers["published"] = short
    with RemoteStudy(
        wire.address, wire.ca.cert_pem, wire.identity(SITE), parameters=PARAMETERS, length=LENGTH, statistics=53
    ) as remote:
        published = remote.evaluated(4, silent)
        np.testing.assert_array_equal(published.total, short.total)
        assert replace(published, total=short.total) == short
        with pytest.raises(ProtocolError, match="the server offers 212 bytes where a sum of this study has 4012"):
            remote.published(4, silent)


def test_a_download_of_another_size_is_refused_before_it_is_stored(wire: Wire) -> None:
    with wire.as_site(SITE, parameters=PARAMETERS - 1, length=LENGTH + 1) as remote:
        with pytest.raises(ProtocolError, match="the server offers 4000 bytes where a model of this study has 3996"):
            remote.model(MODEL, silent)
        with pytest.raises(ProtocolError, match="the server offers 4012 bytes where a sum of this study has 4016"):
            remote.published(4, silent)


def test_a_site_that_knows_no_plan_yet_downloads_nothing(wire: Wire) -> None:
    with RemoteStudy(wire.address, wire.ca.cert_pem, wire.identity(SITE)) as remote:
        with pytest.raises(ProtocolError, match="where a model of this study has 0"):
            remote.model(MODEL, silent)
        with pytest.raises(ProtocolError, match="where a sum of this study has 0"):
            remote.published(4, silent)


def test_a_download_that_was_altered_is_refused(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "digest_of", lambda _: bytes(32))
    with wire.as_site(SITE) as remote, pytest.raises(ProtocolError, match="a download does not fit its own digest"):
        remote.model(MODEL, silent)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"round": 5}, "the server sent the sum of round 5 instead of 4"),
        ({"session": bytes(31)}, "a session has 31 bytes instead of 32"),
        ({"next_model": "ab"}, "a model's hash has 1 bytes instead of 32"),
        ({"signature": b""}, "the server's signature has 0 bytes instead of 64"),
        ({"contributors": ("brno", "amiens")}, "contributors: not a sorted list of sites"),
        ({"contributors": ("../brno",)}, "contributors: not names of sites"),
    ],
)
def test_a_sum_that_is_said_wrongly_is_refused(wire: Wire, wrong: dict[str, object], says: str) -> None:
    wire.memory.answers["published"] = replace(PUBLISHED, **wrong)  # type: ignore[arg-type]
    with wire.as_site(SITE) as remote, pytest.raises(ProtocolError) as caught:
        remote.published(4, silent)
    assert says in caught.value.what


def test_a_stale_step_is_told_apart_from_a_wrong_one(wire: Wire) -> None:
    wire.memory.answers["confirm"] = StaleSession("that session has moved on", hint="ask again what to do")
    with wire.as_site(SITE) as remote:
        with pytest.raises(StaleSession) as stale:
            remote.confirm(SESSION, CONFIRMED[SITE])
        with pytest.raises(ProtocolError, match="a session has 5 bytes instead of 32") as wrong:
            remote.poll(b"short")
    assert (stale.value.what, stale.value.hint) == (
        "the server says: that session has moved on; ask again what to do",
        None,
    )
    assert not isinstance(wrong.value, StaleSession)


# A site speaks for itself alone.


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("advertise", ADVERTISED[OTHER]),
        ("share_keys", SHARED[OTHER]),
        ("confirm", CONFIRMED[OTHER]),
        ("unmask", UNMASKED[OTHER]),
    ],
)
def test_a_message_in_another_site_s_name_is_refused(
    wire: Wire, call: str, message: Advertisement | Envelopes | Consistency | Shares
) -> None:
    with wire.as_site(SITE) as remote, pytest.raises(ProtocolError) as caught:
        getattr(remote, call)(SESSION, message)
    assert caught.value.what == f"the server says: {SITE} sent a message in another site's name"
    assert not wire.said(call)


def test_an_upload_is_in_the_name_of_whoever_sends_it(wire: Wire) -> None:
    with wire.as_site(OTHER) as remote:
        remote.upload(SESSION, MESSAGE, VECTOR, silent)
    [(_, message, _)] = wire.said("upload")
    assert message == replace(MESSAGE, site=OTHER)


@pytest.mark.parametrize(
    ("call", "request_"),
    [
        ("Poll", pb.PollRequest(session=bytes(33))),
        ("AdvertiseKeys", pb.AdvertiseKeysRequest(advertisement=ADVERTISED[SITE].to_bytes())),
        ("ShareKeys", pb.ShareKeysRequest(envelopes=SHARED[SITE].to_bytes())),
        ("ConfirmContributors", pb.ConfirmContributorsRequest(consistency=CONFIRMED[SITE].to_bytes())),
        ("Unmask", pb.UnmaskRequest(shares=UNMASKED[SITE].to_bytes())),
        ("Withdraw", pb.WithdrawRequest(reason=pb.WITHDRAW_REASON_FAILED)),
        ("ClaimLedger", pb.ClaimLedgerRequest()),
        ("HoldModel", pb.HoldModelRequest()),
    ],
)
def test_requests_without_their_hash_are_refused(wire: Wire, call: str, request_: object) -> None:
    opened, stub = wire.as_stub(SITE)
    with opened, pytest.raises(grpc.RpcError) as caught:
        getattr(stub, call)(request_, timeout=10)
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "instead of 32" in (caught.value.details() or "")
    assert not wire.memory.said


# Uploads that go wrong.


def upload(wire: Wire, parts: list[pb.UploadPart]) -> tuple[grpc.StatusCode, str]:
    opened, stub = wire.as_stub(SITE)
    with opened, pytest.raises(grpc.RpcError) as caught:
        stub.UploadMaskedInput(iter(parts), timeout=10)
    assert isinstance(caught.value, grpc.Call)
    return caught.value.code(), caught.value.details() or ""


def header(**other: object) -> pb.UploadPart:
    fields = {"session": SESSION, "digest": bytes(32), "size": SIZE, "signature": bytes(64)} | other
    return pb.UploadPart(header=pb.UploadHeader(**fields))  # type: ignore[arg-type]


def chunk(size: int) -> pb.UploadPart:
    return pb.UploadPart(chunk=bytes(size))


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ([header(size=SIZE - 4)], f"an upload has {SIZE} bytes here, not {SIZE - 4}"),
        ([header(size=2**60)], f"an upload has {SIZE} bytes here, not {2**60}"),
        ([], "a digest has 0 bytes instead of 32"),
        ([chunk(SIZE)], "a digest has 0 bytes instead of 32"),
        ([header(digest=b"x")], "a digest has 1 bytes instead of 32"),
        ([header(signature=bytes(63))], "a signature has 63 bytes instead of 64"),
        ([header(session=b"")], "a session has 0 bytes instead of 32"),
        ([header()], f"a transfer was cut short: 0 of {SIZE} bytes"),
        ([header(), chunk(100)], f"a piece of a transfer has 100 bytes instead of {SIZE}"),
        ([header(), chunk(SIZE + 1)], f"a piece of a transfer has {SIZE + 1} bytes instead of {SIZE}"),
        ([header(), chunk(SIZE), chunk(1)], f"a transfer of {SIZE} bytes brought more"),
        ([header(), chunk(SIZE), chunk(0)], f"a transfer of {SIZE} bytes brought more"),
        ([header(), header(), chunk(SIZE)], f"a piece of a transfer has 0 bytes instead of {SIZE}"),
    ],
)
def test_uploads_of_a_wrong_shape(wire: Wire, parts: list[pb.UploadPart], says: str) -> None:
    code, details = upload(wire, parts)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert says in details
    assert not wire.said("upload")


def test_an_upload_that_nobody_asked_for_is_refused_at_its_header(wire: Wire) -> None:
    code, details = upload(wire, [header(session=bytes(32)), chunk(SIZE)])
    assert code is grpc.StatusCode.ABORTED
    assert "that session has moved on" in details
    assert not wire.memory.alive


def test_an_upload_that_breaks_off_is_not_handed_on(wire: Wire, caplog: pytest.LogCaptureFixture) -> None:
    def parts() -> Iterator[pb.UploadPart]:
        yield header()
        raise RuntimeError("the site dies here")

    opened, stub = wire.as_stub(SITE)
    with opened, pytest.raises(grpc.RpcError):
        stub.UploadMaskedInput(parts(), timeout=10)
    with wire.as_site(SITE) as remote:
        remote.upload(SESSION, MESSAGE, VECTOR, silent)
    assert wire.said("upload") == [(SESSION, MESSAGE, VECTOR.tobytes())]
    assert "a call failed" not in caplog.text


@pytest.mark.parametrize("first", [[], [header()]], ids=["before its header", "after its header"])
def test_a_second_upload_ends_one_that_hangs(wire: Wire, first: list[pb.UploadPart]) -> None:
    begun, end = threading.Event(), threading.Event()

    def parts() -> Iterator[pb.UploadPart]:
        yield from first
        begun.set()
        end.wait(20)

    opened, stub = wire.as_stub(SITE)
    with opened:
        hanging = stub.UploadMaskedInput.future(parts(), timeout=20)
        assert begun.wait(10)
        time.sleep(0.2)
        with wire.as_site(SITE) as remote:
            remote.upload(SESSION, MESSAGE, VECTOR, silent)
        with pytest.raises(grpc.RpcError) as caught:
            hanging.result(10)
        end.set()
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() is grpc.StatusCode.CANCELLED
    assert wire.said("upload") == [(SESSION, MESSAGE, VECTOR.tobytes())]


def test_nothing_of_an_upload_is_left_on_disk(wire: Wire) -> None:
    with wire.as_site(SITE) as remote:
        remote.upload(SESSION, MESSAGE, VECTOR, silent)
    upload(wire, [header()])
    assert list(wire.staging.iterdir()) == []


# What a client can make the server hold.


def test_a_site_has_so_many_calls_and_others_their_own(wire: Wire) -> None:
    there, leave = threading.Semaphore(0), threading.Event()
    busy = "this site has too many calls under way"

    def hold(site: str) -> None:
        if site == SITE:
            there.release()
            assert leave.wait(20)

    wire.memory.hold = hold
    with wire.as_site(SITE) as remote, wire.as_site(OTHER) as other, ThreadPoolExecutor(CALLS_A_SITE) as pool:
        held = [pool.submit(remote.poll, None) for _ in range(CALLS_A_SITE)]
        try:
            for _ in held:
                assert there.acquire(timeout=10)
            for call in (remote.manifest, lambda: remote.model(MODEL, silent)):
                with pytest.raises(Unreachable) as caught:
                    call()
                assert busy in caught.value.what
            assert isinstance(other.poll(None), Wait)
        finally:
            leave.set()
        assert all(isinstance(poll.result(10), Wait) for poll in held)
        assert remote.manifest() == b"the plan"


def test_a_second_download_ends_one_that_nobody_reads(wire: Wire) -> None:
    wire.memory.answers["model"] = np.zeros(8 << 20, np.float32)
    opened, stub = wire.as_stub(SITE)
    with opened, wire.as_site(SITE) as remote:
        unread = stub.DownloadModel(pb.DownloadModelRequest(model_hash=bytes(32)), timeout=20)
        assert next(iter(unread)).header.size == 32 << 20
        with pytest.raises(ProtocolError, match="where a model"):
            remote.model(MODEL, silent)
        with pytest.raises(grpc.RpcError) as caught:
            list(unread)
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() is grpc.StatusCode.CANCELLED


def test_a_server_that_is_out_of_threads_says_so_and_recovers(tmp_path: Path) -> None:
    wire, silence = Wire(tmp_path, sites=1), threading.Event()
    threads = CALLS_A_SITE + SPARE_THREADS
    with wire.as_site(SITE) as remote, wire.as_channel(SITE) as mute:
        open_call = mute.stream_unary("/fedseg.v1.Federation/Poll", as_is, as_is)
        calls = [open_call.future(iter(lambda: silence.wait(20), True), timeout=20) for _ in range(threads)]
        until(lambda: wire.server._state.active_rpc_count == threads)  # type: ignore[attr-defined]  # nothing says it
        with pytest.raises(Unreachable) as caught:
            remote.manifest()
        assert caught.value.what == "the server is busy"
        silence.set()
        for call in calls:
            with pytest.raises(grpc.RpcError):
                call.result(10)
        until(lambda: wire.server._state.active_rpc_count == 0)  # type: ignore[attr-defined]
        assert remote.manifest() == b"the plan"
    wire.server.stop(0).wait()


def test_a_connection_has_so_many_calls(tmp_path: Path) -> None:
    wire, silence = Wire(tmp_path, sites=3), threading.Event()
    with wire.as_channel(SITE) as mute:
        open_call = mute.stream_unary("/fedseg.v1.Federation/Poll", as_is, as_is)
        calls = [
            open_call.future(iter(lambda: silence.wait(20), True), timeout=20) for _ in range(2 * CALLS_A_SITE + 3)
        ]
        until(lambda: wire.server._state.active_rpc_count == 2 * CALLS_A_SITE)  # type: ignore[attr-defined]
        time.sleep(0.2)
        assert wire.server._state.active_rpc_count == 2 * CALLS_A_SITE  # type: ignore[attr-defined]
        silence.set()
        for call in calls:
            with pytest.raises(grpc.RpcError):
                call.result(10)
    wire.server.stop(0).wait()


def test_the_server_reads_little_ahead_of_a_call_that_says_too_much(wire: Wire) -> None:
    pulled, end = [0] * (CALLS_A_SITE + 1), threading.Event()

    def endless(number: int) -> Iterator[bytes]:
        yield b""
        while not end.is_set():
            pulled[number] += 1
            yield bytes(transfer.CHUNK_BYTES)

    wire.memory.hold = lambda _: end.wait(20)
    with wire.as_channel(SITE) as loud:
        poll = loud.stream_unary("/fedseg.v1.Federation/Poll", as_is, as_is)
        calls = [poll.future(endless(number), timeout=20) for number in range(CALLS_A_SITE)]
        until(lambda: len(wire.said("poll")) == CALLS_A_SITE)
        # Calls that are refused bring traffic, which would let gRPC's own estimate grow.
        for _ in range(40):
            with pytest.raises(grpc.RpcError):
                poll(endless(CALLS_A_SITE), timeout=20)
        time.sleep(0.5)
        end.set()
        for call in calls:
            call.result(10)
    # About two at the server, one on its way, one in the client's hands; by gRPC's own estimate it would be 64.
    assert 1 <= max(pulled[:CALLS_A_SITE]) <= 8


def test_a_message_that_is_too_large_or_inflates_is_refused(wire: Wire) -> None:
    opened, stub = wire.as_stub(SITE)
    for size, compression in ((3 << 20, None), (64 << 20, grpc.Compression.Gzip)):
        with opened, pytest.raises(grpc.RpcError) as caught:
            request = pb.ShareKeysRequest(envelopes=bytes(size))
            stub.ShareKeys(request, timeout=10, compression=compression)
        assert isinstance(caught.value, grpc.Call)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        opened, stub = wire.as_stub(SITE)
    opened.close()


# Failures that nobody foresaw.


@pytest.mark.parametrize("kind", [RuntimeError, KeyError, FedsegError, OSError])
def test_a_failure_of_the_server_says_nothing_of_itself(
    wire: Wire, kind: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("poll", "published"):
        wire.memory.answers[name] = kind("/srv/secret/path")
    opened, stub = wire.as_stub(SITE)
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
    with wire.as_site(SITE) as remote, pytest.raises(LinkError) as caught:
        remote.poll(None)
    assert caught.value.what == "the server refused the call (INTERNAL): the server failed; its log says why"


def test_a_full_disk_at_the_server_passes(wire: Wire, caplog: pytest.LogCaptureFixture) -> None:
    wire.memory.answers["upload"] = StorageError("the disk is full", where="/srv/secret/path")
    with wire.as_site(SITE) as remote, pytest.raises(Unreachable) as caught:
        remote.upload(SESSION, MESSAGE, VECTOR, silent)
    assert "the server cannot store what it is sent; its log says why" in caught.value.what
    assert "/srv/secret/path: the disk is full" in caplog.text


def test_words_of_a_refusal_are_cleaned(wire: Wire) -> None:
    wire.memory.answers["poll"] = ProtocolError("bad\x1b[2J", hint="call\x07 us")
    with wire.as_site(SITE) as remote, pytest.raises(ProtocolError) as caught:
        remote.poll(None)
    assert (caught.value.what, caught.value.hint) == ("the server says: bad [2J; call  us", None)


def test_a_server_that_is_not_there_may_be_tried_again(wire: Wire) -> None:
    with (
        RemoteStudy("127.0.0.1:1", wire.ca.cert_pem, wire.identity(SITE)) as remote,
        pytest.raises(Unreachable) as caught,
    ):
        remote.manifest()
    assert caught.value.what == "no server answers at this address"


def test_a_second_server_on_the_port_is_refused(wire: Wire) -> None:
    with pytest.raises(LinkError, match="the port is in use"):
        start_server(wire.desk, wire.address, wire.tls, sites=1)


def test_the_desk_keeps_certificates_out_of_logs(wire: Wire) -> None:
    assert "invites" not in repr(wire.desk)
