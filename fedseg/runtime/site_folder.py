"""A site's state on its own disk: who it is, what it agreed to, and what it must not compute twice."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedseg.errors import StorageError, UsageError
from fedseg.federation.vector import Weights
from fedseg.plan import Manifest
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
from fedseg.runtime.ports import Standing
from fedseg.store.files import LOCK, storage_errors, write_atomic
from fedseg.store.vectors import load_model_vector, load_ring_vector, save_vector

RingVector = NDArray[np.uint32]


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
    """Paths of a site's files below one folder, and what is done with them; a `runtime.ports.Memory`."""

    root: Path

    @property
    def model(self) -> Path:
        """The study's final model."""
        return self.root / "model.safetensors"

    @property
    def log(self) -> Path:
        """What the client has to say."""
        return self.root / "client.log"

    @property
    def cache(self) -> Path:
        """Prepared scans."""
        return self.root / "cache"

    @property
    def enrolled(self) -> bool:
        """Whether this folder holds a membership."""
        return (self.root / "site.json").is_file()

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
        write_atomic(self.root / "site.json", json.dumps(asdict(member), indent=1).encode())

    @property
    def membership(self) -> Membership:
        """What `enrol` wrote down.

        Raises:
            StorageError: if the file is damaged.
        """
        try:
            return Membership(**json.loads(self._read("site.json")))
        except (ValueError, TypeError):
            raise StorageError("the site's state is damaged", where=str(self.root / "site.json")) from None

    def connect(self, parameters: int = 0) -> RemoteStudy:
        """A connection to the study's server."""
        keys = self.root / "keys"
        with storage_errors(keys):
            identity = KeyPair((keys / "tls.pem").read_bytes(), (keys / "tls.key").read_bytes())
        return RemoteStudy(self.membership.address, self._read("ca.pem"), identity, parameters)

    @property
    def manifest(self) -> Manifest | None:
        """The study that this site's operator accepted; None before."""
        path = self.root / "manifest.json"
        return Manifest.from_json(self._read(path.name)) if path.is_file() else None

    def accept(self, manifest: Manifest) -> None:
        """Write down the study that the operator accepted: from here on no other plan is."""
        write_atomic(self.root / "manifest.json", manifest.to_json())

    # runtime.ports.Memory

    def weights(self) -> Weights | None:
        """The newest model that this site holds."""
        path = self.root / "weights.npy"
        return load_model_vector(path) if path.is_file() else None

    def save_weights(self, weights: Weights) -> None:
        """Keep the newest model."""
        save_vector(self.root / "weights.npy", weights)

    def contribution(self, round_number: int, model: str) -> RingVector | None:
        """The encoded update of that round and model, where it was computed."""
        path = self._contribution(round_number, model)
        return load_ring_vector(path) if path.is_file() else None

    def save_contribution(self, round_number: int, model: str, vector: RingVector) -> None:
        """Keep it, fsynced; earlier ones have served."""
        path = self._contribution(round_number, model)
        for old in self.root.glob("contribution-*.npy"):
            if old != path:
                old.unlink()
        save_vector(path, vector)

    def standing(self) -> Standing:
        """How far this site has gone in the protocol."""
        path = self.root / "standing.json"
        try:
            return Standing(**json.loads(self._read(path.name))) if path.is_file() else Standing()
        except (ValueError, TypeError):
            raise StorageError("the site's standing in the protocol is damaged", where=str(path)) from None

    def save_standing(self, standing: Standing) -> None:
        """Keep it, fsynced."""
        write_atomic(self.root / "standing.json", json.dumps(asdict(standing)).encode())

    def _contribution(self, round_number: int, model: str) -> Path:
        return self.root / f"contribution-{round_number:05d}-{model[:16]}.npy"

    def _read(self, name: str) -> bytes:
        with storage_errors(self.root / name):
            return (self.root / name).read_bytes()
