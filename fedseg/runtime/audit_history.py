"""One party's audit log judged by itself: what it says happened, and whether that could have been by the protocol."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fedseg.errors import FedsegError, ProtocolError
from fedseg.runtime import audit_closings, audit_ledgers, audit_reuse
from fedseg.runtime.audit_closings import Closing
from fedseg.runtime.audit_evidence import Entry, Finding, Log
from fedseg.runtime.audit_rounds import Progress
from fedseg.runtime.audit_steps import (
    Attempt,
    Contribution,
    Step,
    Vote,
    name_of,
    order_problems,
    read_step,
)
from fedseg.secagg.messages import SessionHeader
from fedseg.secagg.roster import Roster
from fedseg.store.audit_records import (
    Begin,
    Believed,
    Closed,
    Countersigned,
    Evaluated,
    Extended,
    Fetched,
    Opened,
    Repair,
    Reused,
    RosterPinned,
    Unmask,
)


class History:
    """What one log says happened, and what is wrong with that. Read once, in order, when it is made.

    Attributes:
        findings: What is wrong.
        notes: What is not wrong, but worth saying.
        rosters: As they were pinned.
        attempts: By sid0, as they were opened.
        votes: Valid signatures of step 4.
        contributions: Valid signatures over inputs.
        closings: Closed rounds, validly signed.
        reused: Second sums over one model.
        fetched: Models taken on the server's word.
        believed: Best models so far, taken on the server's word.
        countersigned: Heads of privacy ledgers, validly signed by the server.
        extended: Versions of the plan that go on from another, by plan hash.
        planned: How many rounds each version of the plan has, by plan hash.
    """

    def __init__(self, log: Log) -> None:
        """Judge a log."""
        self.log = log
        self.findings: list[Finding] = list(log.findings)
        self.notes: list[str] = []
        self.rosters: list[Roster] = []
        self.attempts: dict[str, Attempt] = {}
        self.votes: list[Vote] = []
        self.contributions: list[Contribution] = []
        self.closings: list[Closing] = []
        self.reused: list[Reused] = []
        self.fetched: list[Fetched] = []
        self.believed: list[Believed] = []
        self.countersigned: list[Countersigned] = []
        self.extended: dict[str, Extended] = {}
        self.planned: dict[str, int] = {}
        self._progress = Progress(self.is_server)
        self._refused: set[str] = set()
        self._where = log.path
        for entry in log.entries:
            self._read(entry)
        for where, what in audit_reuse.problems(list(self.attempts.values()), self.reused):
            self._where = where
            self._wrong([what])

    @property
    def begin(self) -> Begin:
        """Whose log it is."""
        return self.log.begin

    @property
    def party(self) -> str:
        """Whose log it is, as findings call it."""
        return self.log.party

    @property
    def is_server(self) -> bool:
        """Whether this is the server's log."""
        return self.begin.role == "server"

    @property
    def key(self) -> bytes:
        """The key that signs this log."""
        return bytes.fromhex(self.begin.key)

    def attempt_of(self, sid: str) -> Attempt | None:
        """The attempt in which this party took step 3 of that session."""
        return next((each for each in self.attempts.values() if each.sid == sid), None)

    def _read(self, entry: Entry) -> None:
        self._where = f"{self.log.path}, line {entry.line}"
        match entry.body:
            case Begin():
                self._wrong(["a second opening record"] if entry.line > 1 else [])
            case RosterPinned() as body:
                self._pin(body)
            case Opened() as body:
                self._open(body)
            case (Closed() | Evaluated()) as body:
                self._close(body)
            case Reused() | Fetched() | Believed() | Countersigned() | Extended() as body:
                self._note(body)
            case Repair():
                self.notes.append(f"{self._where}: a crash had cut a record short; it never counted")
            case body:
                self._step(body)

    def _note(self, body: Reused | Fetched | Believed | Countersigned | Extended) -> None:
        """What stands beside the attempts."""
        match body:
            case Reused():
                self.reused.append(body)
            case Fetched():
                self.fetched.append(body)
                self._count(body)
            case Believed():
                self.believed.append(body)
            case Countersigned():
                self._countersign(body)
            case Extended():
                self._extend(body)

    def _countersign(self, body: Countersigned) -> None:
        problems = list(audit_ledgers.problems(body, self.begin, self.rosters, self.countersigned))
        self._wrong(f"ledger of {body.site}, round {body.round}: {problem}" for problem in problems)
        if not problems:
            self.countersigned.append(body)

    def _extend(self, body: Extended) -> None:
        known, newest = self.extended.get(body.plan_hash), self._newest()
        named = f"plan {body.plan_hash[:16]}, which goes on after round {body.last_round},"
        if known is not None:
            self._wrong([f"{named} is announced twice"])
        elif newest is not None and newest.header.round > body.last_round:
            self._wrong([f"{named} is announced after round {newest.header.round}"])
        self.extended.setdefault(body.plan_hash, body)

    def _wrong(self, problems: Iterable[str], proves: str | None = None) -> None:
        blame = f"{self.party} signed this itself: it did not keep to the protocol, or its software does not"
        self.findings += [Finding(self.party, self._where, what, proves or blame) for what in problems]

    # Rosters and attempts.

    def _pin(self, body: RosterPinned) -> None:
        try:
            keys = {site: bytes.fromhex(key) for site, key in body.keys.items()}
            server_key = bytes.fromhex(body.server_key)
            roster = Roster(self.begin.study, bytes.fromhex(body.plan_hash), server_key, keys)
        except ProtocolError as error:
            self._wrong([f"a roster that cannot be: {error.what}"])
            return
        problems = [*self._roster_problems(body, roster), *self._plan_problems(roster)]
        if self.planned.setdefault(body.plan_hash, body.rounds) != body.rounds:
            problems.append(f"plan {body.plan_hash[:16]} has two numbers of rounds")
        self._progress.rounds = body.rounds
        if self.rosters and (changes := self.rosters[-1].differences(roster)):
            self.notes.append(f"{self._where}: {self.party} goes on under another roster: {', '.join(changes)}")
        self.rosters.append(roster)
        self._wrong(problems)

    def _plan_problems(self, roster: Roster) -> Iterator[str]:
        """One plan for the whole study, or extensions of it, each announced."""
        plan, unused = roster.plan_hash.hex(), dict(self.extended)
        before = self.rosters[-1].plan_hash.hex() if self.rosters else plan
        while plan != before:
            version = unused.pop(plan, None)
            if version is None:
                yield f"it goes on under plan {plan[:16]}, of which nothing says that it extends {before[:16]}"
                return
            plan = version.parent

    def _roster_problems(self, body: RosterPinned, roster: Roster) -> Iterator[str]:
        if body.fingerprint != roster.fingerprint.hex():
            yield "the roster's fingerprint is not that of the sites and keys beside it"
        if (roster.server_key if self.is_server else roster.keys.get(self.begin.party)) != self.key:
            yield f"the roster does not hold the key that signs this log as that of {self.party}"

    def _open(self, body: Opened) -> None:
        try:
            header = SessionHeader.from_bytes(bytes.fromhex(body.header))
        except FedsegError as error:
            self._wrong([f"a session's header that cannot be: {error.what}"])
            self._refused.add(body.session)
            return
        self._wrong(f"round {header.round}, attempt {header.attempt}: {each}" for each in self._opening(body, header))
        if not self.rosters or body.session in self.attempts:
            self._refused.add(body.session)
            return
        self.attempts[body.session] = Attempt(header, self.rosters[-1], self._where, {Opened: body})

    def _opening(self, body: Opened, header: SessionHeader) -> Iterator[str]:
        if body.session != header.sid0().hex():
            yield "the session is not the hash of its header"
        yield from self._under_roster(header)
        yield from self._progress.opening_problems(header)
        newest, version = self._newest(), self.extended.get(header.plan_hash.hex())
        if version is not None and header.round <= version.last_round:
            yield f"its plan goes on after round {version.last_round}"
        if newest is not None and (header.round, header.attempt) <= newest.place:
            yield f"it was opened after {newest.name}"
        elif newest is not None and header.round == newest.header.round and Unmask in newest.steps:
            yield f"it was opened after step 5 of attempt {newest.header.attempt}, which ends a round"
        model = header.model_hash.hex()
        yield from audit_closings.other_start(header.round, model, "it starts", self.begin.role, self.closings)

    def _under_roster(self, header: SessionHeader) -> Iterator[str]:
        if not self.rosters:
            yield "it was opened before a roster was pinned"
            return
        pinned = self.rosters[-1]
        if header.roster != pinned.fingerprint:
            yield f"it is under roster {header.roster.hex()[:16]}, pinned is {pinned.fingerprint.hex()[:16]}"
        elif (header.study, header.plan_hash, header.sites) != (pinned.study, pinned.plan_hash, pinned.sites):
            yield "its study, plan or sites are not those of its roster"

    def _newest(self) -> Attempt | None:
        return next(reversed(self.attempts.values()), None)

    # Steps.

    def _step(self, body: Step) -> None:
        attempt = self.attempts.get(body.session)
        if attempt is None:
            # A session whose opening was refused has had its finding.
            what = f"{name_of(body)} stands under a session that this log never opened"
            self._wrong([] if body.session in self._refused else [what])
            return
        problems = list(order_problems(attempt, body, self.begin.role, attempt is self._newest()))
        for told in read_step(attempt, body, self.begin, self._where):
            match told:
                case Vote():
                    self.votes.append(told)
                case Contribution():
                    self.contributions.append(told)
                case problem:
                    problems.append(problem)
        self._wrong(f"{attempt.name}: {problem}" for problem in problems)
        attempt.steps.setdefault(type(body), body)

    def _close(self, body: Closed | Evaluated) -> None:
        attempt = self.attempt_of(body.session)
        roster = attempt.roster if attempt else self.rosters[-1] if self.rosters else None
        if roster is None:
            self._wrong([f"round {body.round} was closed before a roster was pinned"])
            return
        role = self.begin.role
        problems = audit_closings.problems(body, roster, role, self.closings, self.believed)
        self._wrong(f"round {body.round}: {problem}" for problem in problems)
        if attempt is not None:
            problems = audit_closings.attempt_problems(body, attempt, role)
            self._wrong(f"{attempt.name}: {problem}" for problem in problems)
            attempt.steps.setdefault(type(body), body)
        else:
            self._check_stranger(body)
        if audit_closings.is_signed(body, roster):
            self.closings.append(Closing(body, roster, attempt, self._where))
            if isinstance(body, Closed):
                self._count(body)

    def _count(self, body: Closed | Fetched) -> None:
        trained = [each.header.encoding for each in self.attempts.values() if not each.header.evaluation]
        problems = self._progress.take(body, back=all(code.scored for code in trained))
        self._wrong(f"round {body.round}: {problem}" for problem in problems)

    def _check_stranger(self, body: Closed | Evaluated) -> None:
        """A close of a session that this party had no part in."""
        if self.is_server:
            self._wrong([f"round {body.round}: a close of a session whose inputs this log never received"])
        elif self.begin.party in body.contributors:
            what = f"round {body.round}: the close counts {self.begin.party}, whose log has no input to that session"
            proves = f"either {self.party} has cut its log, or the server counts an input that was never given"
            self._wrong([what], proves)
