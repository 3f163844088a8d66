"""A site's state on its own disk: who it is, what it agreed to, and what it must not compute twice."""

from __future__ import annotations

import json
import threading
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedseg.errors import ProtocolError, StorageError, UsageError
from fedseg.federation.exchange import Best
from fedseg.federation.parts import Kept, newest_of
from fedseg.federation.strategy import Strategy
from fedseg.federation.vector import Weights
from fedseg.plan.manifest import Manifest
from fedseg.rpc.certificates import (
    certificate_request,
    new_protocol_key,
    new_site_key,
    protocol_public_key,
    require_issued,
)
from fedseg.rpc.channel import RemoteStudy
from fedseg.rpc.invites import Invite
from fedseg.rpc.pki import KeyPair
from fedseg.runtime.roster_words import parse_fingerprint
from fedseg.runtime.session import encoding_of, evaluation_code
from fedseg.runtime.versions import MANIFEST, MEMBERSHIP, MODEL, all_versions, replace_plan
from fedseg.secagg.roster import Roster
from fedseg.secagg.signing import SIGNING_KEY_SIZE
from fedseg.store import secrets
from fedseg.store.audit_log import LOG, AuditLog, read, statement
from fedseg.store.audit_records import Closed, Evaluated, Fetched
from fedseg.store.files import LOCK, storage_errors, write_atomic
from fedseg.store.vectors import load_model_vector, load_ring_vector, save_vector

RingVector = NDArray[np.uint32]

# The protocol's record of a session: keys, shares and messages of at most 100 sites.
SESSION = "session.bin"
MOST_SESSION = 1 << 22

# What evaluations were given, by model: hashes of statistics.
SCORED = "scored.json"

_CONTRIBUTIONS, _MASKED, _KEPT = "contribution-*.npy", "masked-*.npy", "kept-*.npy"
_ERASING = threading.Lock()  # the training thread keeps a contribution while the other one takes in a model

# What an enrolment that failed leaves behind: the next one may begin anew.
LEFTOVERS = {"client.log", "keys", "ca.pem", LOCK}


@dataclass(frozen=True)
class Membership:
    """What a site remembers of the study it joined. Nothing in it leaves the site.

    Attributes:
        address: HOST:PORT of the server.
        site: This site's name.
        data: Where its scans are.
        labels: How its label numbers are read where the data set does not say; None where it does.
        ledger: Folder of the hospital's privacy ledger.
        policy: Text of the hospital's policy; None for the default.
    """

    address: str
    site: str
    data: str
    labels: str | None
    ledger: str
    policy: str | None


@dataclass(frozen=True)
class SiteFolder:
    """Paths of a site's files below one folder, and what is done with them.

    It is a site's `runtime.ports.Memory` and its `runtime.pinning.Pins`.
    """

    root: Path

    @property
    def model(self) -> Path:
        """The study's final model."""
        return self.root / MODEL

    @property
    def personal(self) -> Path:
        """This site's own model, where the plan's strategy makes one; it is never sent."""
        return self.model.with_name("model-personal.safetensors")

    @property
    def log(self) -> Path:
        """What the client has to say."""
        return self.root / "client.log"

    @property
    def cache(self) -> Path:
        """Prepared scans."""
        return self.root / "cache"

    @property
    def audit(self) -> Path:
        """The site's signed log of the protocol."""
        return self.root / LOG

    @property
    def enrolled(self) -> bool:
        """Whether this folder holds a membership."""
        return (self.root / MEMBERSHIP).is_file()

    @classmethod
    def open(cls, root: Path) -> SiteFolder:
        """The state of a site that enrolled before.

        Raises:
            UsageError: if there is none in this folder.
        """
        folder = cls(root)
        if not folder.enrolled:
            raise UsageError(
                "this folder holds no site's state",
                where=str(root),
                hint="to join a study: fedseg client join INVITE --data BIDS_DIR --state DIR",
            )
        return folder

    def refuse_other_study(self, invite: Invite) -> None:
        """Keep one study's state apart from another's.

        Raises:
            UsageError: if this folder belongs to another study or site, or holds something else.
        """
        if self.enrolled:
            same = self._read("ca.pem") == invite.ca_cert_pem and self.membership.site == invite.site
            what = "this site has joined already" if same else "this folder is the state of another study or site"
            hint = f"go on with: fedseg client join --state {self.root}" if same else "name a new folder with --state"
            raise UsageError(what, where=str(self.root), hint=hint)
        if self.root.exists() and (not self.root.is_dir() or {path.name for path in self.root.iterdir()} - LEFTOVERS):
            hint = "name a new folder with --state"
            raise UsageError("the state folder is not empty", where=str(self.root), hint=hint)

    def enrol(
        self, invite: Invite, *, data: Path, labels: str | None, ledger: Path, policy: str | None, now: float
    ) -> None:
        """Make this site's keys, trade the invite for a certificate, fetch the study's manifest.

        Keys are made here and stay here. The invite is used up by the server only once the keys are on disk.

        Raises:
            InviteError: if the invite was used or has expired.
            LinkError: if the server cannot be reached or trusted.
            StorageError: if the folder cannot be written.
        """
        with storage_errors(self.root):
            (self.root / "keys").mkdir(mode=0o700, parents=True, exist_ok=True)
        key, protocol_key = new_site_key(), new_protocol_key()
        write_atomic(self.root / "keys" / "tls.key", key)
        write_atomic(self.root / "keys" / "protocol.key", protocol_key)
        request = certificate_request(key, invite.site)
        with RemoteStudy(invite.address, invite.ca_cert_pem, invite.enrolment_identity(now=now)) as remote:
            certificate = remote.enrol(request, protocol_public_key(protocol_key))
        require_issued(certificate, key, invite.ca_cert_pem, invite.site, now=now)
        write_atomic(self.root / "keys" / "tls.pem", certificate, 0o644)
        write_atomic(self.root / "ca.pem", invite.ca_cert_pem, 0o644)
        member = Membership(invite.address, invite.site, str(data), labels, str(ledger), policy)
        self.remember(member)

    def remember(self, member: Membership) -> None:
        """Write down who this site is and where its scans are."""
        write_atomic(self.root / MEMBERSHIP, json.dumps(asdict(member), indent=1).encode())

    @property
    def membership(self) -> Membership:
        """What `enrol` wrote down.

        Raises:
            StorageError: if the file is damaged.
        """
        try:
            return Membership(**json.loads(self._read(MEMBERSHIP)))
        except (ValueError, TypeError):
            raise StorageError("the site's state is damaged", where=str(self.root / MEMBERSHIP)) from None

    def connect(self, manifest: Manifest | None = None) -> RemoteStudy:
        """A connection to the study's server; models and sums come over it only where the manifest says their sizes."""
        keys = self.root / "keys"
        with storage_errors(keys):
            identity = KeyPair((keys / "tls.pem").read_bytes(), (keys / "tls.key").read_bytes())
        sizes = {}
        if manifest is not None:
            sizes = {
                "parameters": Strategy.of(manifest).size,
                "length": encoding_of(manifest).length,
                "statistics": evaluation_code(manifest).length,
            }
        return RemoteStudy(self.membership.address, self._read("ca.pem"), identity, **sizes)

    @property
    def manifest(self) -> Manifest | None:
        """The study that this site's operator accepted; None before."""
        path = self.root / MANIFEST
        return Manifest.from_json(self._read(path.name)) if path.is_file() else None

    def accept(self, manifest: Manifest) -> None:
        """Write down the study that the operator accepted: from here on no other plan is."""
        write_atomic(self.root / MANIFEST, manifest.to_json())

    @property
    def versions(self) -> list[Manifest]:
        """All versions of the plan that this site knows, oldest first; the operator accepted the last one."""
        return all_versions(self.root)

    def extend(self, following: Sequence[Manifest]) -> None:
        """Write down that the operator accepted the last of these versions, which follow the one accepted before."""
        replace_plan(self.root, *following)

    @property
    def newest_round(self) -> int:
        """The newest round whose end is in this site's log; 0 where there is none."""
        if not self.audit.exists():
            return 0
        bodies = (statement(record) for record in read(self.audit))
        return max((body.round for body in bodies if isinstance(body, Closed | Evaluated | Fetched)), default=0)

    # runtime.pinning.Pins

    @property
    def protocol_key(self) -> bytes:
        """The site's private Ed25519 key, 32 bytes.

        Raises:
            StorageError: if it is missing or damaged.
        """
        key = self._read("keys/protocol.key")
        if len(key) != SIGNING_KEY_SIZE:
            path = self.root / "keys" / "protocol.key"
            raise StorageError("this site's protocol key is damaged", where=str(path), hint="ask for a new invite")
        return key

    @property
    def roster(self) -> Roster | None:
        """The roster that the operator confirmed; None before.

        Raises:
            StorageError: if the file is damaged.
        """
        path = self.root / "roster.bin"
        try:
            return Roster.from_bytes(self._read(path.name)) if path.is_file() else None
        except ProtocolError as error:
            raise StorageError(f"the pinned roster is damaged: {error.what}", where=str(path)) from None

    def pin_roster(self, roster: Roster) -> None:
        """Write down the roster that the operator confirmed, fsynced: from here on no other is, until approved."""
        write_atomic(self.root / "roster.bin", roster.to_bytes())

    @property
    def approved(self) -> bytes | None:
        """The roster fingerprint that the operator approved last with `approve`; None where there is none.

        Raises:
            StorageError: if the file is damaged.
        """
        path = self.root / "approved"
        if not path.is_file():
            return None
        try:
            return parse_fingerprint(self._read(path.name).decode())
        except (UsageError, UnicodeDecodeError):
            hint = f"approve again: fedseg client approve-roster --state {self.root} --fingerprint HEX"
            raise StorageError("the approved fingerprint is damaged", where=str(path), hint=hint) from None

    def approve(self, fingerprint: bytes) -> None:
        """Write down the fingerprint of a roster that the operator compared. Any process may, whoever holds the folder.

        Raises:
            StorageError: if the folder cannot be written.
        """
        write_atomic(self.root / "approved", f"{fingerprint.hex()}\n".encode())

    # runtime.ports.Memory

    def weights(self) -> Weights | None:
        """The newest model that this site holds."""
        path = self.root / "weights.npy"
        return load_model_vector(path) if path.is_file() else None

    def save_weights(self, weights: Weights) -> None:
        """Keep the newest model; what was computed from the one before has served, and is overwritten."""
        save_vector(self.root / "weights.npy", weights)
        self.erase_updates()

    def contribution(self, round_number: int, model: str) -> RingVector | None:
        """The encoded update of that round and model, where it was computed."""
        path = self._contribution(round_number, model)
        return load_ring_vector(path) if path.is_file() else None

    def save_contribution(self, round_number: int, model: str, vector: RingVector) -> None:
        """Keep it, fsynced; earlier ones have served, and are overwritten.

        It lacks the masks, and in distributed mode the other sites' noise. It outlives an attempt that failed: the
        round's next one sends the same again, as its noise was charged once.
        """
        path = self._contribution(round_number, model)
        self._erase(_CONTRIBUTIONS, {path})
        save_vector(path, vector)

    def session(self) -> bytes | None:
        """The protocol's record of the newest session, as it was written down; None before the first."""
        return secrets.read(self.root / SESSION, MOST_SESSION)

    def save_session(self, data: bytes) -> None:
        """Keep it, fsynced; what it replaces held secrets and is overwritten."""
        secrets.replace(self.root / SESSION, data)

    def masked(self, session: bytes) -> RingVector | None:
        """The masked update of a session (sid0), exactly as it is sent; None where there is none."""
        path = self._masked(session)
        return load_ring_vector(path) if path.is_file() else None

    def save_masked(self, session: bytes, vector: RingVector) -> None:
        """Keep it, fsynced; earlier ones have served, and are overwritten."""
        path = self._masked(session)
        self._erase(_MASKED, {path})
        save_vector(path, vector)

    def scored(self, model: str) -> str | None:
        """Hash of the statistics of that model that were given to an evaluation, in hex; None where none were.

        Raises:
            StorageError: The file is damaged.
        """
        return self._all_scored.get(model)

    def save_scored(self, model: str, digest: str) -> None:
        """Keep it for good, fsynced: the statistics themselves are erased.

        Raises:
            StorageError: The file is damaged.
        """
        write_atomic(self.root / SCORED, json.dumps({**self._all_scored, model: digest}).encode())

    def best(self) -> Best | None:
        """What a collapse would roll back to, as this site has computed it; None before the first score.

        Raises:
            StorageError: if the file is damaged.
        """
        path = self.root / "best.json"
        try:
            return Best(**json.loads(self._read(path.name))) if path.is_file() else None
        except (ValueError, TypeError):
            raise StorageError("what this site knows of the best model is damaged", where=str(path)) from None

    def save_best(self, best: Best) -> None:
        """Keep it, fsynced."""
        write_atomic(self.root / "best.json", json.dumps(asdict(best)).encode())

    def kept(self, closed: int) -> Kept | None:
        """What stays at this site of the newest round up to `closed`, by the plan's strategy; None where nothing does.

        Raises:
            StorageError: The file is damaged.
        """
        newest = newest_of(self._kept_rounds, closed)
        return None if newest is None else Kept(newest, load_model_vector(self._kept(newest)))

    def save_kept(self, round_number: int, closed: int, vector: Weights) -> None:
        """Keep it, fsynced, readable for this account alone, and what it follows; all else is overwritten."""
        save_vector(self._kept(round_number), vector)
        needed = {round_number, newest_of(self._kept_rounds, closed)}
        self._erase(_KEPT, {self._kept(number) for number in needed if number is not None})

    def erase_updates(self) -> None:
        """Overwrite and remove every update that this site has computed: once a round has closed, or the study ended.

        Best effort, as `store.secrets` says.

        Raises:
            StorageError: The disk is failing.
        """
        self._erase(_CONTRIBUTIONS)
        self._erase(_MASKED)

    def clean_up(self) -> None:
        """Overwrite and remove what a crash has left half-written or half-erased; only while nothing is being written.

        Raises:
            StorageError: The disk is failing.
        """
        for left in self.root.glob(".*.npy*.last"):
            secrets.sweep(left.with_name(left.name[1 : -len(".last")]))
        for left in self.root.glob(".*.npy.*.part"):
            secrets.erase(left)
        secrets.sweep(self.root / SESSION)

    def open_audit(self, study: str) -> AuditLog:
        """This site's log of a study, held until it is closed; begun where the site has said nothing yet.

        Raises:
            LedgerError: if it is missing though the site has taken part, broken, or held by another process.
        """
        if not self.audit.exists() and self.session() is None:
            return AuditLog.create(self.audit, self.protocol_key, "site", self.membership.site, study)
        return AuditLog.open(self.audit, self.protocol_key)

    def _masked(self, session: bytes) -> Path:
        return self.root / f"masked-{session.hex()}.npy"

    def _contribution(self, round_number: int, model: str) -> Path:
        return self.root / f"contribution-{round_number:05d}-{model[:16]}.npy"

    def _kept(self, round_number: int) -> Path:
        return self.root / f"kept-{round_number:05d}.npy"

    @property
    def _all_scored(self) -> dict[str, str]:
        path = self.root / SCORED
        try:
            return dict(json.loads(self._read(path.name))) if path.is_file() else {}
        except (ValueError, TypeError):
            raise StorageError("what this site has given to evaluations is damaged", where=str(path)) from None

    @property
    def _kept_rounds(self) -> list[int]:
        return [int(path.stem.removeprefix("kept-")) for path in self.root.glob(_KEPT)]

    def _erase(self, names: str, needed: Collection[Path] = ()) -> None:
        with _ERASING:
            for old in self.root.glob(names):
                if old not in needed:
                    secrets.erase(old)

    def _read(self, name: str) -> bytes:
        with storage_errors(self.root / name):
            return (self.root / name).read_bytes()
