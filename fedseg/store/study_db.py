"""The coordinator's book of a study (SQLite): invites, sites, rounds, and what sites claim of their ledgers.

No scan, no update and no key is in it. `study invite` may write while `server start` runs.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedseg.errors import InviteError, StorageError
from fedseg.store.files import storage_errors

SCHEMA = """
CREATE TABLE IF NOT EXISTS invites (
  id TEXT PRIMARY KEY, site TEXT NOT NULL, ca_certificate BLOB NOT NULL, expires_at REAL NOT NULL, used_at REAL
) STRICT;
CREATE TABLE IF NOT EXISTS sites (
  name TEXT PRIMARY KEY, fingerprint TEXT NOT NULL UNIQUE, protocol_key BLOB NOT NULL, enrolled_at REAL NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS rounds (
  round INTEGER NOT NULL, attempt INTEGER NOT NULL, state TEXT NOT NULL, model_hash TEXT NOT NULL,
  contributors TEXT NOT NULL, lost TEXT NOT NULL, next_model TEXT, started_at REAL NOT NULL, ended_at REAL,
  bytes_received INTEGER NOT NULL, session BLOB NOT NULL, signature BLOB NOT NULL, relative_error REAL, score REAL,
  released TEXT, total BLOB NOT NULL,
  PRIMARY KEY (round, attempt)
) STRICT;
CREATE TABLE IF NOT EXISTS finished (site TEXT NOT NULL, plan TEXT NOT NULL, PRIMARY KEY (site, plan)) STRICT;
CREATE TABLE IF NOT EXISTS ended (plan TEXT PRIMARY KEY, why TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS claims (
  number INTEGER PRIMARY KEY, site TEXT NOT NULL, rounds INTEGER NOT NULL, steps INTEGER NOT NULL, head TEXT NOT NULL,
  plan TEXT NOT NULL, round INTEGER NOT NULL, attempt INTEGER NOT NULL, signature BLOB NOT NULL, UNIQUE (site, head)
) STRICT;
"""

RoundState = Literal["open", "unmasking", "closed", "abandoned", "void"]


@dataclass(frozen=True)
class InviteRow:
    """An invite as the server knows it: never its secret.

    Attributes:
        id: The invite's identifier, a hash of its secret.
        site: Who may enrol with it.
        ca_certificate: PEM; what the invite's bearer proves to have.
        expires_at: Seconds since 1970.
        used_at: When it was traded for a certificate, or None.
    """

    id: str
    site: str
    ca_certificate: bytes
    expires_at: float
    used_at: float | None


@dataclass(frozen=True)
class SiteRow:
    """An enrolled site."""

    name: str
    fingerprint: str
    protocol_key: bytes


@dataclass(frozen=True)
class RoundRow:
    """One attempt at a round.

    Attributes:
        round: Number, from 1.
        attempt: 1 or 2.
        state: `open` while it runs, `unmasking` once shares may have been released; `closed` with a sum, `abandoned`
            without one, `void` without one and with no other attempt allowed.
        model_hash: The model it started from.
        contributors: Whose updates are in the sum.
        lost: Site to the phase and reason it was lost with.
        next_model: Hash of the model it made, None unless closed.
        started_at: Seconds since 1970.
        ended_at: Seconds since 1970, None while it runs.
        bytes_received: Size of all uploads.
        session: sid of the sum (sid0 in plain mode); empty without one.
        signature: The server's over what it published; empty without a sum.
        relative_error: What rounding has moved the sum by, about: L2 norm over that of the sum.
        score: Mean validation Dice of the model it started from, where the study keeps scores.
        released: In an evaluation, hash of the weights that are scored: those of the model file. None in a round that
            trains.
        total: In an evaluation with a sum, that sum, as little-endian uint32.
    """

    round: int
    attempt: int
    state: RoundState
    model_hash: str
    contributors: tuple[str, ...]
    lost: dict[str, str]
    next_model: str | None
    started_at: float
    ended_at: float | None
    bytes_received: int
    session: bytes = b""
    signature: bytes = b""
    relative_error: float | None = None
    score: float | None = None
    released: str | None = None
    total: bytes = b""

    @property
    def evaluation(self) -> bool:
        """Whether this is a round that measures, and leaves the model as it is."""
        return self.released is not None


@dataclass(frozen=True)
class ClaimRow:
    """What a site, by its name, has said of its ledger in this study, as the server countersigned it.

    Attributes:
        site: Its name: a site that enrols anew goes on after its own claims.
        rounds: Rounds charged, under all versions of the plan.
        steps: Private steps charged, likewise.
        head: Hash of its ledger's newest charge, in hex.
        plan: Hash of the version of the plan.
        round: The round that was charged last.
        attempt: Its attempt.
        signature: The server's.
    """

    site: str
    rounds: int
    steps: int
    head: str
    plan: str = ""
    round: int = 0
    attempt: int = 0
    signature: bytes = b""


class StudyDb:
    """Access to one study's book. Every call opens and closes its own connection, so any thread may call."""

    def __init__(self, path: Path) -> None:
        """Open, or make, the book at `path` (mode 0600).

        Raises:
            StorageError: if the file is no such book or cannot be written.
        """
        self._path = path
        with storage_errors(path):
            if not path.exists():
                path.touch(mode=0o600)
        with self._connect() as db:
            db.executescript(SCHEMA)

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        try:
            connection = sqlite3.connect(self._path, timeout=30.0)
        except sqlite3.Error as error:
            raise StorageError(f"cannot be opened: {error}", where=str(self._path)) from None
        try:
            connection.execute("PRAGMA synchronous = FULL")
            with connection:
                yield connection
        except sqlite3.DatabaseError as error:
            raise StorageError(f"the study's book cannot be used: {error}", where=str(self._path)) from None
        finally:
            connection.close()

    def add_invite(self, invite: InviteRow) -> None:
        """Remember a new invite; an unused earlier one of the same site no longer holds."""
        with self._connect() as db:
            db.execute("DELETE FROM invites WHERE site = ? AND used_at IS NULL", (invite.site,))
            db.execute(
                "INSERT INTO invites VALUES (?, ?, ?, ?, NULL)",
                (invite.id, invite.site, invite.ca_certificate, invite.expires_at),
            )

    def invites(self) -> list[InviteRow]:
        """All invites, used and expired ones included (so that the server can say so)."""
        with self._connect() as db:
            return [InviteRow(*row) for row in db.execute("SELECT * FROM invites ORDER BY id")]

    def enrol(self, invite_id: str, site: SiteRow, *, now: float) -> None:
        """Use up an invite and write down the site's certificate: both or neither.

        Raises:
            InviteError: if the invite is unknown, used or expired at `now`.
        """
        with self._connect() as db:
            db.execute("BEGIN IMMEDIATE")
            row = db.execute("SELECT used_at, expires_at FROM invites WHERE id = ?", (invite_id,)).fetchone()
            if row is None:
                raise InviteError("this invite is not known to the server")
            if row[0] is not None:
                raise InviteError("this invite has been used")
            if row[1] < now:
                raise InviteError("this invite has expired")
            db.execute("UPDATE invites SET used_at = ? WHERE id = ?", (now, invite_id))
            db.execute(
                "INSERT OR REPLACE INTO sites VALUES (?, ?, ?, ?)",
                (site.name, site.fingerprint, site.protocol_key, now),
            )

    def sites(self) -> list[SiteRow]:
        """All enrolled sites by name."""
        with self._connect() as db:
            rows = db.execute("SELECT name, fingerprint, protocol_key FROM sites ORDER BY name")
            return [SiteRow(*row) for row in rows]

    def enrolled_at(self) -> dict[str, float]:
        """When each enrolled site did so last, by name: seconds since 1970."""
        with self._connect() as db:
            return dict(db.execute("SELECT name, enrolled_at FROM sites ORDER BY name"))

    def site_of(self, fingerprint: str) -> str | None:
        """The enrolled site whose certificate has this fingerprint."""
        with self._connect() as db:
            row = db.execute("SELECT name FROM sites WHERE fingerprint = ?", (fingerprint,)).fetchone()
        return row[0] if row else None

    def save_round(self, row: RoundRow) -> None:
        """Write or rewrite one attempt at a round."""
        values = (
            row.round, row.attempt, row.state, row.model_hash, json.dumps(row.contributors), json.dumps(row.lost),
            row.next_model, row.started_at, row.ended_at, row.bytes_received, row.session, row.signature,
            row.relative_error, row.score, row.released, row.total,
        )  # fmt: skip
        with self._connect() as db:
            db.execute("INSERT OR REPLACE INTO rounds VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values)

    def rounds(self) -> list[RoundRow]:
        """All attempts at all rounds, in order."""
        with self._connect() as db:
            rows = list(db.execute("SELECT * FROM rounds ORDER BY round, attempt"))
        return [
            RoundRow(number, attempt, state, model, tuple(json.loads(there)), json.loads(lost), *rest)
            for number, attempt, state, model, there, lost, *rest in rows
        ]

    def save_finished(self, site: str, plan: str) -> None:
        """Note that a site holds the final model of a version of the plan, by its hash."""
        with self._connect() as db:
            db.execute("INSERT OR REPLACE INTO finished VALUES (?, ?)", (site, plan))

    def finished(self, plan: str) -> set[str]:
        """Sites that hold the final model of a version of the plan."""
        with self._connect() as db:
            return {row[0] for row in db.execute("SELECT site FROM finished WHERE plan = ?", (plan,))}

    def save_end(self, plan: str, why: str) -> None:
        """Note that a version of the plan ended before its last round."""
        with self._connect() as db:
            db.execute("INSERT OR REPLACE INTO ended VALUES (?, ?)", (plan, why))

    def ended(self, plan: str) -> str | None:
        """Why a version of the plan ended before its last round, if it did."""
        with self._connect() as db:
            row = db.execute("SELECT why FROM ended WHERE plan = ?", (plan,)).fetchone()
        return row[0] if row else None

    def save_claim(self, claim: ClaimRow) -> None:
        """Keep a claim after the site's earlier ones; one that is there stays as it is."""
        values = (
            claim.site, claim.rounds, claim.steps, claim.head, claim.plan, claim.round, claim.attempt, claim.signature,
        )  # fmt: skip
        with self._connect() as db:
            db.execute("INSERT OR IGNORE INTO claims VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?)", values)

    def all_claims(self) -> list[ClaimRow]:
        """Every claim, in order."""
        with self._connect() as db:
            return [ClaimRow(*row[1:]) for row in db.execute("SELECT * FROM claims ORDER BY number")]

    def claims(self) -> dict[str, ClaimRow]:
        """The newest claim of every site that made one, by name."""
        newest = {claim.site: claim for claim in self.all_claims()}
        return {site: newest[site] for site in sorted(newest)}
