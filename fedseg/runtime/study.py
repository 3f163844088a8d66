"""A study on the coordinator's disk: how it is made, and where everything in it lies."""

from __future__ import annotations

import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from fedseg.document import Document
from fedseg.errors import InviteError, ProtocolError, RosterError, StorageError, UsageError
from fedseg.federation.exchange import Enrolled
from fedseg.federation.strategy import Strategy
from fedseg.federation.vector import Weights
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
from fedseg.runtime.archive import RingVector
from fedseg.runtime.extension import extend
from fedseg.runtime.resolution import FirstModel, resolve
from fedseg.runtime.session import roster_of
from fedseg.runtime.versions import (
    MANIFEST,
    MEMBERSHIP,
    MODEL,
    all_versions,
    earlier_versions,
    read_manifest,
    replace_plan,
)
from fedseg.secagg.roster import Roster
from fedseg.secagg.signing import SIGNING_KEY_SIZE, check_signing_key, public_half
from fedseg.store.audit_log import LOG, AuditLog
from fedseg.store.files import storage_errors, write_atomic
from fedseg.store.study_db import ClaimRow, InviteRow, RoundRow, SiteRow, StudyDb
from fedseg.store.vectors import load_model_vector, load_ring_vector, save_vector


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
        DiskArchive(folder).save_model(0, Strategy.of(manifest).first(first.weights), None)
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
            raise UsageError(
                "there is no such folder", where=str(root), hint="make one: fedseg study create DIR --plan PLAN"
            )
        if (root / MEMBERSHIP).is_file():
            raise UsageError(
                "this is the folder of a site, not the coordinator's of the study",
                where=str(root),
                hint="name the folder that fedseg study create made, at the coordinator's",
            )
        if not (root / MANIFEST).is_file():
            raise UsageError(
                "this folder holds no study", where=str(root), hint="make one: fedseg study create DIR --plan PLAN"
            )
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
        old, first = self.manifest, DiskArchive(self).load_model(0)
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
            raise InviteError("the server does not know this invite", hint="ask the coordinator for a new one")
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
            hint = f"make an invite and send it: fedseg study invite {self.root} {missing[0]}"
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


KEPT = 2


class DiskArchive:
    """`runtime.archive.Archive` in a study's folder: first and best model, newest model and sum and those before."""

    def __init__(self, folder: StudyFolder) -> None:
        self._root, self._rounds, self._db = folder.root, folder.root / "rounds", folder.db

    def rounds(self) -> list[RoundRow]:
        """All attempts at all rounds, in order."""
        return self._db.rounds()

    def save_round(self, row: RoundRow) -> None:
        """Write or rewrite one attempt."""
        self._db.save_round(row)

    def save_claim(self, claim: ClaimRow) -> None:
        """Keep a site's countersigned claim."""
        self._db.save_claim(claim)

    def newest_claim(self, site: str) -> ClaimRow | None:
        """The newest claim of a site."""
        return self._db.claims().get(site)

    def save_finished(self, site: str, plan: str) -> None:
        """Note that a site holds the final model of a version of the plan."""
        self._db.save_finished(site, plan)

    def finished(self, plan: str) -> set[str]:
        """Sites that hold the final model of a version of the plan."""
        return self._db.finished(plan)

    def save_end(self, plan: str, why: str) -> None:
        """Note that a version of the plan ended before its last round."""
        self._db.save_end(plan, why)

    def ended(self, plan: str) -> str | None:
        """Why a version of the plan ended before its last round, if it did."""
        return self._db.ended(plan)

    def earlier_manifest(self, plan: str) -> bytes | None:
        """The manifest of an earlier version of the plan."""
        found = [each.to_json() for each in earlier_versions(self._root) if each.plan_hash == plan]
        return found[0] if found else None

    def save_model(self, closed_round: int, weights: Weights, total: RingVector | None) -> None:
        """Keep a round's model and sum, fsynced; then drop what is older, but for the first model.

        The newest round that is written down as closed keeps its own, however often a later one fails to be.
        """
        if total is not None:
            save_vector(self._path("sum", closed_round), total)
        save_vector(self._path("model", closed_round), weights)
        closed = [row.round for row in self._db.rounds() if row.state == "closed" and not row.evaluation][-1:]
        for kind in ("model", "sum"):
            kept = {self._path(kind, number) for number in (0, *closed)}
            # The names sort by round; void rounds leave gaps, so the newest two are counted, not computed.
            for path in sorted(self._rounds.glob(f"{kind}-*.npy"))[:-KEPT]:
                if path not in kept:
                    path.unlink()

    def load_model(self, closed_round: int) -> Weights:
        """The model that a round made."""
        return load_model_vector(self._path("model", closed_round))

    def load_total(self, closed_round: int) -> RingVector:
        """The sum of a round."""
        return load_ring_vector(self._path("sum", closed_round))

    def save_best(self, weights: Weights, model: str) -> None:
        """Keep the best model, of that hash, fsynced, and the one before: its round may yet fail to be written down."""
        save_vector(self._best(model), weights)
        for path in sorted(self._rounds.glob("best-*.npy"), key=lambda path: path.stat().st_mtime_ns)[:-KEPT]:
            path.unlink()

    def load_best(self, model: str) -> Weights:
        """The best model, or the one before, by its hash."""
        return load_model_vector(self._best(model))

    def _best(self, model: str) -> Path:
        return self._rounds / f"best-{model[:16]}.npy"

    def _path(self, kind: str, closed_round: int) -> Path:
        return self._rounds / f"{kind}-{closed_round:05d}.npy"


def require_room(folder: Path, needed: int) -> None:
    """Refuse to start where the disk has less room than the work needs.

    Raises:
        StorageError: saying how much is free and how much is needed.
    """
    with storage_errors(folder):
        free = shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(
            f"the disk has {free / 1e6:.0f} MB free, {needed / 1e6:.0f} MB are needed",
            where=str(folder),
            hint="free some space, or use a folder on another disk; nothing was started",
        )
