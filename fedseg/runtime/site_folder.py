"""A site's state on its own disk: who it is, what it agreed to and confirmed, and where everything in it lies."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from shlex import quote

from fedseg.errors import InviteError, ProtocolError, StorageError, UsageError
from fedseg.federation.strategy import Strategy
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
from fedseg.runtime.disk_memory import CACHE, DiskMemory
from fedseg.runtime.roster_words import parse_fingerprint
from fedseg.runtime.session import encoding_of, evaluation_code
from fedseg.runtime.versions import MANIFEST, MEMBERSHIP, MODEL, all_versions, replace_plan
from fedseg.secagg.roster import Roster
from fedseg.secagg.signing import SIGNING_KEY_SIZE
from fedseg.store.audit_log import LOG, AuditLog, read, statement
from fedseg.store.audit_records import Closed, Evaluated, Fetched
from fedseg.store.files import LOCK, storage_errors, write_atomic

# What an enrolment that failed leaves behind: the next one may begin anew.
LEFTOVERS = {"client.log", "keys", "ca.pem", LOCK}
DAMAGED = (
    "restore this folder from a backup; or ask the coordinator for a new invite, and join with it and another --state"
)


@dataclass(frozen=True)
class Membership:
    """What a site remembers of the study it joined. Nothing in it leaves the site.

    Attributes:
        address: HOST:PORT of the server.
        site: This site's name.
        data: Where its scans are.
        labels: How its label numbers are read where the data set does not say; None where it does.
        ledger: Folder of the hospital's privacy ledger.
        policy: Text of the hospital's policy as it was agreed to last; None for the default.
        policy_file: Where that was read, and is read again at each start; None where no file was named.
        agreed: When each version of the plan was agreed to (UTC, ISO 8601), by its hash.
    """

    address: str
    site: str
    data: str
    labels: str | None
    ledger: str
    policy: str | None
    policy_file: str | None = None
    agreed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SiteFolder:
    """Paths of a site's files below one folder, and what is done with them.

    It is a site's `runtime.pinning.Pins`.
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
        return self.root / CACHE

    @property
    def memory(self) -> DiskMemory:
        """What it keeps between messages."""
        return DiskMemory(self.root)

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
            again = f"go on with: fedseg client join --state {quote(str(self.root))}"
            hint = again if same else "name a new folder with --state"
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
            try:
                certificate = remote.enrol(request, protocol_public_key(protocol_key))
            except InviteError as error:
                error.hint = "ask the study's coordinator for a new invite; a site that has joined goes on from its "
                error.hint += "own state folder: fedseg client join --state DIR"
                raise
        require_issued(certificate, key, invite.ca_cert_pem, invite.site, now=now)
        write_atomic(self.root / "keys" / "tls.pem", certificate, 0o644)
        write_atomic(self.root / "ca.pem", invite.ca_cert_pem, 0o644)
        member = Membership(invite.address, invite.site, str(data), labels, str(ledger), policy)
        self.remember(member)

    def clear(self) -> None:
        """Remove what an invite that was refused has left here: keys that are nobody's, a log that says no more."""
        for name in ("tls.key", "protocol.key"):
            (self.root / "keys" / name).unlink(missing_ok=True)
        (self.root / "client.log").unlink(missing_ok=True)
        (self.root / LOCK).unlink(missing_ok=True)
        for folder in (self.root / "keys", self.root):
            # Whatever else lies there stays.
            with suppress(OSError):
                folder.rmdir()

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
            raise StorageError("the site's state is damaged", where=str(self.root / MEMBERSHIP), hint=DAMAGED) from None

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
            raise StorageError("this site's protocol key is damaged", where=str(path), hint=DAMAGED)
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
            raise StorageError(f"the pinned roster is damaged: {error.what}", where=str(path), hint=DAMAGED) from None

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
            hint = f"approve again: fedseg client approve-roster --state {quote(str(self.root))} --fingerprint HEX"
            raise StorageError("the approved fingerprint is damaged", where=str(path), hint=hint) from None

    def approve(self, fingerprint: bytes) -> None:
        """Write down the fingerprint of a roster that the operator compared. Any process may, whoever holds the folder.

        Raises:
            StorageError: if the folder cannot be written.
        """
        write_atomic(self.root / "approved", f"{fingerprint.hex()}\n".encode())

    def open_audit(self, study: str) -> AuditLog:
        """This site's log of a study, held until it is closed; begun where the site has said nothing yet.

        Raises:
            LedgerError: if it is missing though the site has taken part, broken, or held by another process.
        """
        if not self.audit.exists() and self.memory.session() is None:
            return AuditLog.create(self.audit, self.protocol_key, "site", self.membership.site, study)
        return AuditLog.open(self.audit, self.protocol_key)

    def _read(self, name: str) -> bytes:
        with storage_errors(self.root / name):
            return (self.root / name).read_bytes()
