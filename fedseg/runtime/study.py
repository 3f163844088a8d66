"""A study on the coordinator's disk: how it is made, and where everything in it lies."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from fedseg.document import Document
from fedseg.errors import InviteError, ProtocolError, RosterError, StorageError, UsageError
from fedseg.federation.exchange import Enrolled
from fedseg.federation.strategy import Strategy
from fedseg.plan.manifest import Manifest
from fedseg.plan.study import StudyPlan
from fedseg.rpc.addresses import split_address
from fedseg.rpc.certificates import (
    create_study_ca,
    fingerprint,
    issue_server_certificate,
    issue_site_certificate,
    new_protocol_key,
)
from fedseg.rpc.credentials import ServerTls
from fedseg.rpc.invites import Invite
from fedseg.rpc.pki import KeyPair
from fedseg.runtime.disk_archive import DiskArchive
from fedseg.runtime.extension import extend
from fedseg.runtime.resolution import FirstModel, resolve
from fedseg.runtime.session import roster_of
from fedseg.runtime.versions import (
    MANIFEST,
    MEMBERSHIP,
    MODEL,
    all_versions,
    read_manifest,
    replace_plan,
)
from fedseg.secagg.roster import Roster
from fedseg.secagg.signing import SIGNING_KEY_SIZE, check_signing_key, public_half
from fedseg.store.audit_log import LOG, AuditLog
from fedseg.store.files import storage_errors, write_atomic
from fedseg.store.study_db import InviteRow, SiteRow, StudyDb

_MAKE = "make one: fedseg study create DIR --plan PLAN --address HOST:PORT"


@dataclass(frozen=True)
class StudyFolder:
    """Paths of a study's files below one folder, and what is done with them."""

    root: Path

    @property
    def model(self) -> Path:
        """The final model."""
        return self.root / MODEL

    @property
    def log(self) -> Path:
        """What the server has to say."""
        return self.root / "server.log"

    @property
    def audit(self) -> Path:
        """The server's signed log of the protocol."""
        return self.root / LOG

    @property
    def staging(self) -> Path:
        """Where an upload lies, without a name, until it is whole."""
        return self.root / "rounds"

    @property
    def db(self) -> StudyDb:
        """The study's book."""
        return StudyDb(self.root / "study.sqlite")

    @property
    def archive(self) -> DiskArchive:
        """Its rounds, models and sums."""
        return DiskArchive(self.root, self.db)

    @property
    def ca(self) -> KeyPair:
        """The study's CA."""
        return self._pair("ca")

    @classmethod
    def create(
        cls,
        root: Path,
        document: Document[StudyPlan],
        first: FirstModel,
        *,
        address: str,
        now: float,
    ) -> StudyFolder:
        """Make a study: keys, certificates, the resolved plan, the initial model, an empty book.

        Args:
            root: A folder that is empty or not there.
            document: The plan.
            first: Where round 1 starts.
            address: HOST:PORT under which sites reach the server.
            now: Seconds since 1970.

        Raises:
            PlanError, UsageError, StorageError: before anything is written, where possible.
        """
        host, _ = split_address(address)
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise UsageError("the folder is not empty", where=str(root), hint="name a new folder for the study")
        manifest = resolve(document, first, study=secrets.token_hex(16))
        folder = cls(root)
        with storage_errors(root):
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            (root / "keys").mkdir(mode=0o700)
            (root / "rounds").mkdir()
        ca = create_study_ca("fedseg study", now=now)
        server = issue_server_certificate(ca, [host], now=now)
        for name, pair in {"ca": ca, "server": server}.items():
            write_atomic(root / "keys" / f"{name}.key", pair.key_pem)
            write_atomic(root / "keys" / f"{name}.pem", pair.cert_pem, 0o644)
        write_atomic(root / "keys" / "audit.key", new_protocol_key())
        AuditLog.create(folder.audit, folder.signing_key, "server", "server", manifest.study).close()
        folder.archive.save_model(0, Strategy.of(manifest).first(first.weights), None)
        write_atomic(root / "address", address.encode(), 0o644)
        folder.db.invites()
        # The manifest comes last: a folder without it is no study.
        write_atomic(root / MANIFEST, manifest.to_json(), 0o644)
        return folder

    @classmethod
    def open(cls, root: Path) -> StudyFolder:
        """A study that was created before.

        Raises:
            UsageError: if there is none in this folder.
        """
        if not root.is_dir():
            raise UsageError("there is no such folder", where=str(root), hint=_MAKE)
        if (root / MEMBERSHIP).is_file():
            raise UsageError(
                "this is the folder of a site, not the coordinator's of the study",
                where=str(root),
                hint="name the folder that fedseg study create made, at the coordinator's",
            )
        if not (root / MANIFEST).is_file():
            raise UsageError("this folder holds no study", where=str(root), hint=_MAKE)
        return cls(root)

    @property
    def manifest(self) -> Manifest:
        """The resolved plan, in its newest version."""
        return read_manifest(self.root / MANIFEST)

    @property
    def versions(self) -> list[Manifest]:
        """All versions of the plan, oldest first."""
        return all_versions(self.root)

    def extend(
        self, rounds: int, *, epsilon: float | None = None, reserve: int | None = None, evaluate: bool = False
    ) -> Manifest:
        """Go on under a version of the plan with more rounds; only while no server runs.

        Args:
            rounds: How many more; 0 only where an evaluation comes to the plan.
            epsilon: The privacy budget of all rounds together; None: as it was.
            reserve: Rounds beyond the schedule that the noise is calibrated for; None: as it was.
            evaluate: Whether federated evaluation comes to the plan, where it had none.

        Returns:
            The new version. The one before, and the model that it made, are kept beside it.

        Raises:
            PlanError: It cannot be; nothing was changed.
        """
        old, first = self.manifest, self.archive.load_model(0)
        new = extend(
            old, first, rounds=rounds, epsilon=epsilon, reserve=reserve, evaluate=evaluate, book=self.db.rounds(),
            claims=self.db.all_claims(),
        )  # fmt: skip
        replace_plan(self.root, new)
        return new

    @property
    def address(self) -> str:
        """HOST:PORT under which sites reach the server."""
        return (self.root / "address").read_text()

    def invite(self, site: str, *, now: float, hours: int) -> Invite:
        """Make an invite for one site; an unused earlier one of that site ends.

        Raises:
            UsageError: if the plan does not name the site.
        """
        known = self.manifest.plan.site_names
        if site not in known:
            raise UsageError(
                f"the plan names no site {site!r}", where=str(self.root), hint=f"its sites: {', '.join(known)}"
            )
        invite = Invite.create(self.address, site, self.ca.cert_pem, now=now, hours=hours)
        row = InviteRow(invite.identifier, site, invite.ca_certificate(), invite.expires_at, None)
        self.db.add_invite(row)
        return invite

    def enrol(self, invite_id: str, certificate_request: bytes, protocol_key: bytes, *, now: float) -> bytes:
        """Trade an invite for a site certificate (PEM).

        Raises:
            InviteError: if the invite is unknown, used or expired.
            ProtocolError: if the request is malformed, or the protocol key no key or another party's.
        """
        site = next((row.site for row in self.db.invites() if row.id == invite_id), None)
        if site is None:
            raise InviteError("the server does not know this invite")
        check_signing_key(protocol_key)
        known = self.enrolled()
        if protocol_key in (known.server_key, *(key for name, key in known.keys.items() if name != site)):
            raise ProtocolError("this protocol key is another party's: each makes its own")
        certificate = issue_site_certificate(self.ca, certificate_request, site, now=now)
        self.db.enrol(invite_id, SiteRow(site, fingerprint(certificate), protocol_key), now=now)
        return certificate

    @property
    def signing_key(self) -> bytes:
        """The server's private Ed25519 key, 32 bytes: it signs what the server publishes, and its log.

        Raises:
            StorageError: if it is missing or damaged.
        """
        path = self.root / "keys" / "audit.key"
        with storage_errors(path):
            key = path.read_bytes()
        if len(key) != SIGNING_KEY_SIZE:
            raise StorageError("the server's signing key is damaged", where=str(path), hint="restore it from a backup")
        return key

    def enrolled(self) -> Enrolled:
        """The server's key, and the protocol keys of the sites that have enrolled so far."""
        return Enrolled(public_half(self.signing_key), {row.name: row.protocol_key for row in self.db.sites()})

    def roster(self) -> Roster:
        """The study's roster.

        Raises:
            RosterError: while a site of the plan has yet to enrol.
        """
        manifest, enrolled = self.manifest, self.enrolled()
        missing = [site for site in manifest.plan.site_names if site not in enrolled.keys]
        if missing:
            hint = f"make an invite and send it: fedseg study invite {quote(str(self.root))} {missing[0]}"
            raise RosterError(f"{', '.join(missing)} yet to enrol", where=str(self.root), hint=hint)
        return roster_of(manifest, enrolled)

    def tls(self) -> ServerTls:
        """The server's identity, and the CAs whose clients may connect."""
        server, ca = self._pair("server"), self.ca
        roots = [ca.cert_pem, *(row.ca_certificate for row in self.db.invites())]
        return ServerTls(server.cert_pem, server.key_pem, b"".join(roots))

    def _pair(self, name: str) -> KeyPair:
        keys = self.root / "keys"
        with storage_errors(keys):
            return KeyPair((keys / f"{name}.pem").read_bytes(), (keys / f"{name}.key").read_bytes())
