"""A study that believes everything and remembers who said what, served over loopback."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np

from fedseg.errors import InviteError, StaleSession
from fedseg.federation.exchange import (
    Countersigned,
    Enrolled,
    Instruction,
    LedgerClaim,
    Progress,
    Published,
    RingVector,
    Wait,
    WithdrawReason,
)
from fedseg.federation.vector import Weights
from fedseg.rpc import certificates
from fedseg.rpc._pb import federation_pb2_grpc as pb_grpc
from fedseg.rpc.channel import RemoteStudy
from fedseg.rpc.credentials import ServerTls
from fedseg.rpc.credentials import channel as open_channel
from fedseg.rpc.invites import Invite
from fedseg.rpc.pki import KeyPair
from fedseg.rpc.service import Desk, start_server
from fedseg.secagg.messages import Advertisement, Consistency, Envelopes, MaskedInput, Shares
from tests.secagg import helpers

NOW = time.time()
PARAMETERS, LENGTH = 1000, 1003
SIZE = 4 * LENGTH
SESSION = bytes(range(100, 132))
WEIGHTS = np.linspace(-1, 1, PARAMETERS, dtype=np.float32)
TOTAL = np.arange(LENGTH, dtype=np.uint32)
PUBLISHED = Published(4, ("amiens", "brno"), TOTAL, bytes(range(32)), "ab" * 32, bytes(range(64)))
COUNTERSIGNED = Countersigned("cd" * 32, 2, 2**40, "ab" * 32, 7, 2, bytes(range(64)))
KEYS = {site: bytes([number]) * 32 for number, site in enumerate(helpers.NAMES[:3])}


@dataclass
class Memory:
    """What has been said, and what is to be answered.

    Attributes:
        said: (site, method, arguments), in order.
        alive: Sites that were at work.
        answers: What `poll`, `published`, `model`, `roster`, `claim` and `countersigned` answer; an exception is
            raised.
        hold: What to do in `poll` before answering.
        wanted: The session that updates are asked for in.
        expect: What to do before an upload is let in.
    """

    said: list[tuple[str, str, tuple[object, ...]]] = field(default_factory=list)
    alive: list[str] = field(default_factory=list)
    answers: dict[str, object] = field(default_factory=dict)
    hold: Callable[[str], object] = lambda _: None
    wanted: bytes = SESSION
    expect: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class FakeLink:
    """`federation.exchange.Link`."""

    memory: Memory
    site: str

    def _hear(self, method: str, *arguments: object) -> object:
        self.memory.said.append((self.site, method, arguments))
        answer = self.memory.answers.get(method)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def manifest(self, plan_hash: str | None = None) -> bytes:
        self._hear("manifest", *([] if plan_hash is None else [plan_hash]))
        return b"the plan"

    def roster(self) -> Enrolled:
        answer = self._hear("roster")
        return answer if isinstance(answer, Enrolled) else Enrolled(bytes(range(32)), KEYS)

    def poll(self, session: bytes | None) -> Instruction:
        answer = self._hear("poll", session)
        self.memory.hold(self.site)
        return answer if isinstance(answer, Instruction) else Wait("the others")

    def advertise(self, session: bytes, advertisement: Advertisement | None) -> None:
        self._hear("advertise", session, advertisement)

    def share_keys(self, session: bytes, envelopes: Envelopes) -> None:
        self._hear("share_keys", session, envelopes)

    def upload(self, session: bytes, message: MaskedInput, vector: RingVector, progress: Progress) -> None:
        self._hear("upload", session, message, vector.tobytes())

    def confirm(self, session: bytes, message: Consistency) -> None:
        self._hear("confirm", session, message)

    def unmask(self, session: bytes, shares: Shares) -> None:
        self._hear("unmask", session, shares)

    def withdraw(self, session: bytes, reason: WithdrawReason) -> None:
        self._hear("withdraw", session, reason)

    def claim(self, claim: LedgerClaim) -> Countersigned:
        answer = self._hear("claim", claim)
        return answer if isinstance(answer, Countersigned) else COUNTERSIGNED

    def countersigned(self) -> Countersigned | None:
        answer = self._hear("countersigned")
        return answer if isinstance(answer, Countersigned) else None

    def model(self, model_hash: str, progress: Progress) -> Weights:
        answer = self._hear("model", model_hash)
        return answer if isinstance(answer, np.ndarray) else WEIGHTS

    def published(self, round_number: int, progress: Progress) -> Published:
        answer = self._hear("published", round_number)
        return answer if isinstance(answer, Published) else PUBLISHED

    def evaluated(self, round_number: int, progress: Progress) -> Published:
        answer = self._hear("evaluated", round_number)
        return answer if isinstance(answer, Published) else PUBLISHED

    def holds(self, model_hash: str) -> None:
        self._hear("holds", model_hash)


class Wire:
    """The fake study's server, its books, and its sites' credentials."""

    def __init__(self, staging: Path, *, sites: int = 3) -> None:
        self.ca = certificates.create_study_ca("atlas", now=NOW)
        self._own = certificates.issue_server_certificate(self.ca, ["127.0.0.1"], now=NOW)
        self.invites: dict[str, Invite] = {}
        self.used: set[str] = set()
        self.site_of: dict[str, str] = {}
        self.memory, self.staging = Memory(), staging
        self.identities: dict[str, KeyPair] = {}
        self.desk = self._desk()
        self.server, port = start_server(self.desk, "127.0.0.1:0", self.tls, sites=sites)
        self.address = f"127.0.0.1:{port}"

    def _desk(self) -> Desk:
        return Desk(
            link=lambda site: FakeLink(self.memory, site),
            alive=self._alive,
            site_of=self.site_of.get,
            enrol=self._enrol,
            study_ca=self.ca.cert_pem,
            invites=lambda: {key: invite.ca_certificate() for key, invite in self.invites.items()},
            now=lambda: NOW,
            staging=self.staging,
            expect_upload=self._expect_upload,
        )

    def tls(self) -> ServerTls:
        roots = [self.ca.cert_pem, *(invite.ca_certificate() for invite in self.invites.values())]
        return ServerTls(self._own.cert_pem, self._own.key_pem, b"".join(roots))

    def _enrol(self, invite: str, request: bytes, protocol_key: bytes) -> bytes:
        if invite in self.used:
            raise InviteError("this invite has been used", hint="ask for another")
        site = self.invites[invite].site
        certificate = certificates.issue_site_certificate(self.ca, request, site, now=NOW)
        self.used.add(invite)
        self.memory.said.append((site, "enrol", (protocol_key,)))
        self.site_of[certificates.fingerprint(certificate)] = site
        return certificate

    def _alive(self, site: str) -> None:
        self.memory.alive.append(site)

    def _expect_upload(self, site: str, session: bytes) -> int:
        self.memory.expect()
        if session != self.memory.wanted:
            raise StaleSession("that session has moved on", hint="ask again what to do")
        return SIZE

    def invite(self, site: str) -> Invite:
        invite = Invite.create(self.address, site, self.ca.cert_pem, now=NOW, hours=1)
        self.invites[invite.identifier] = invite
        return invite

    def enrol(self, invite: Invite) -> KeyPair:
        key = certificates.new_site_key()
        request = certificates.certificate_request(key, invite.site)
        with RemoteStudy(self.address, self.ca.cert_pem, invite.enrolment_identity(now=NOW)) as remote:
            return KeyPair(remote.enrol(request, bytes(32)), key)

    def identity(self, site: str) -> KeyPair:
        if site not in self.identities:
            self.identities[site] = self.enrol(self.invite(site))
        return self.identities[site]

    def as_site(self, site: str, *, parameters: int = PARAMETERS, length: int = LENGTH) -> RemoteStudy:
        return RemoteStudy(
            self.address, self.ca.cert_pem, self.identity(site), parameters=parameters, length=length
        )  # fmt: skip

    def as_channel(self, site: str) -> grpc.Channel:
        return open_channel(self.address, self.ca.cert_pem, self.identity(site))

    def as_stub(self, site: str) -> tuple[grpc.Channel, pb_grpc.FederationStub]:
        opened = self.as_channel(site)
        return opened, pb_grpc.FederationStub(opened)

    def said(self, method: str) -> list[tuple[object, ...]]:
        """The arguments of every call of a method."""
        return [arguments for _, name, arguments in self.memory.said if name == method]

    def forget(self) -> None:
        """Begin a test as if nothing had been said."""
        self.memory = Memory()


def until(happened: Callable[[], object], seconds: float = 10) -> None:
    """Wait for what another thread brings about."""
    end, pause = time.monotonic() + seconds, threading.Event()
    while not happened():
        assert time.monotonic() < end
        pause.wait(0.01)
