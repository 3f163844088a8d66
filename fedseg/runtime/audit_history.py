"""One party's audit log judged by itself: what it says happened, and whether that could have been by the protocol."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fedseg.errors import FedsegError, ProtocolError
from fedseg.federation.evaluation import aggregate_of
from fedseg.federation.exchange import CLOSE, SERVER, closing_statement
from fedseg.runtime import audit_ledgers
from fedseg.runtime.audit_evidence import Entry, Finding, Log
from fedseg.runtime.audit_steps import (
    Attempt,
    Contribution,
    Step,
    Vote,
    listed,
    name_of,
    order_problems,
    outside,
    read_step,
    too_few,
)
from fedseg.secagg import signing
from fedseg.secagg.messages import SessionHeader
from fedseg.secagg.roster import Roster
from fedseg.secagg.statistics import StatisticsCode
from fedseg.store.audit_records import (
    Begin,
    Believed,
    Closed,
    Confirmed,
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


@dataclass(frozen=True)
class Closing:
    """A closed round, one that trained or an evaluation, with the server's valid signature, in anybody's log.

    Attributes:
        attempt: The attempt that made it, where this log knows it.
    """

    body: Closed | Evaluated
    roster: Roster
    attempt: Attempt | None
    where: str


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
        self._refused: set[str] = set()
        self._where = log.path
        for entry in log.entries:
            self._read(entry)
        self._check_reuse()

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
        newest, version = self._newest(), self.extended.get(header.plan_hash.hex())
        if version is not None and header.round <= version.last_round:
            yield f"its plan goes on after round {version.last_round}"
        if newest is not None and (header.round, header.attempt) <= newest.place:
            yield f"it was opened after {newest.name}"
        elif newest is not None and header.round == newest.header.round and Unmask in newest.steps:
            yield f"it was opened after step 5 of attempt {newest.header.attempt}, which ends a round"
        yield from self._follows(header.round, header.model_hash.hex(), "it starts")

    def _under_roster(self, header: SessionHeader) -> Iterator[str]:
        if not self.rosters:
            yield "it was opened before a roster was pinned"
            return
        pinned = self.rosters[-1]
        if header.roster != pinned.fingerprint:
            yield f"it is under roster {header.roster.hex()[:16]}, pinned is {pinned.fingerprint.hex()[:16]}"
        elif (header.study, header.plan_hash, header.sites) != (pinned.study, pinned.plan_hash, pinned.sites):
            yield "its study, plan or sites are not those of its roster"

    def _follows(self, round_number: int, model: str, it_starts: str) -> Iterator[str]:
        """The server makes every model; a site may have missed rounds in between."""
        last = self.closings[-1].body if self.closings else None
        if last is None or model == last.next_model:
            return
        if self.is_server or round_number == last.round + 1:
            yield f"{it_starts} from model {model[:16]}, where round {last.round} ended with {last.next_model[:16]}"

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
        self._wrong(f"round {body.round}: {problem}" for problem in self._closing_problems(body, roster))
        if attempt is not None:
            self._wrong(f"{attempt.name}: {problem}" for problem in self._attempt_problems(body, attempt))
            attempt.steps.setdefault(type(body), body)
        else:
            self._check_stranger(body)
        if _signed(body, roster):
            self.closings.append(Closing(body, roster, attempt, self._where))

    def _closing_problems(self, body: Closed | Evaluated, roster: Roster) -> Iterator[str]:
        if not _signed(body, roster):
            yield "the server's signature of its close is not valid"
        yield from outside("its contributors", body.contributors, "the roster", roster.sites)
        last = self.closings[-1].body if self.closings else None
        if last is not None and body.round <= last.round:
            yield "it is closed a second time" if body.round == last.round else f"it is closed after round {last.round}"
        yield from self._follows(body.round, body.base_model, "its close starts")
        if isinstance(body, Evaluated):
            yield from self._evaluated_before(body)
            return
        earlier = {each.body.base_model for each in self.closings} | {each.model for each in self.believed}
        if body.rolled_back and body.next_model not in earlier:
            yield f"it goes back to model {body.next_model[:16]}, from which no round before it started"

    def _evaluated_before(self, body: Evaluated) -> Iterator[str]:
        """Two evaluations of one model differ by the scores of the sites that are in one of them alone."""
        for earlier in (each.body for each in self.closings):
            same = isinstance(earlier, Evaluated) and earlier.model == body.model
            if same and earlier.contributors != body.contributors:
                yield (
                    f"it is a second evaluation of the model of round {earlier.round}, of {listed(body.contributors)} "
                    f"where that one was of {listed(earlier.contributors)}"
                )

    def _attempt_problems(self, body: Closed | Evaluated, attempt: Attempt) -> Iterator[str]:
        evaluation = isinstance(body, Evaluated)
        if evaluation != attempt.header.evaluation:
            kinds = ("an evaluation", "a round that trains")
            session, close = kinds if attempt.header.evaluation else kinds[::-1]
            yield f"its session is {session}, it was closed as {close}"
        elif isinstance(body, Evaluated):
            yield from _impossible(body, attempt)
        yield from order_problems(attempt, body, self.begin.role, True)
        if body.round != attempt.header.round:
            yield f"its sum is published as that of round {body.round}"
        if body.base_model != attempt.header.model_hash.hex():
            yield f"it was closed over model {body.base_model[:16]}, not over its own"
        if attempt.u3 is not None and body.contributors != attempt.u3:
            yield f"it was closed with {listed(body.contributors)}, before that they were {listed(attempt.u3)}"
        yield from too_few("the close", body.contributors, attempt)

    def _check_stranger(self, body: Closed | Evaluated) -> None:
        """A close of a session that this party had no part in."""
        if self.is_server:
            self._wrong([f"round {body.round}: a close of a session whose inputs this log never received"])
        elif self.begin.party in body.contributors:
            what = f"round {body.round}: the close counts {self.begin.party}, whose log has no input to that session"
            proves = f"either {self.party} has cut its log, or the server counts an input that was never given"
            self._wrong([what], proves)

    def _check_reuse(self) -> None:
        """A site that confirms a second sum over one model says so, of every earlier one whose members were others."""
        attempts = list(self.attempts.values())
        for number, later in enumerate(attempts):
            earlier = [each for each in attempts[:number] if _same_model(each, later) and Confirmed in each.steps]
            if Confirmed not in later.steps or not earlier:
                continue
            others = [each.header.round for each in earlier if each.u3 != later.u3]
            if later.header.evaluation and others:
                self._where = later.where
                self._wrong([f"{later.name}: a second evaluation of the model of round {others[0]}, of other sites"])
                continue
            said = self._said_of(later, earlier)
            lacking = {each.header.round for each in earlier if each.u3 != later.u3} - said
            if lacking or not said:
                rounds = listed(map(str, sorted(lacking or {each.header.round for each in earlier})))
                self._where = later.where
                self._wrong([f"{later.name}: a second sum over the model of round {rounds}, without a record of it"])

    def _said_of(self, later: Attempt, earlier: Sequence[Attempt]) -> set[int]:
        """The earlier rounds over its model that records of reuse name truly."""
        sum_of = later.header.round, later.header.model_hash.hex(), later.u3
        sums = {(each.header.round, each.u3) for each in earlier}
        told = [each for each in self.reused if (each.round, each.model, each.u3) == sum_of]
        return {each.earlier_round for each in told if (each.earlier_round, each.earlier_u3) in sums}


def _same_model(one: Attempt, other: Attempt) -> bool:
    """Whether two rounds used one model for the same: to train it, or to evaluate it."""
    uses = {(each.header.model_hash, each.header.evaluation) for each in (one, other)}
    return one.header.round != other.header.round and len(uses) == 1


def _impossible(body: Evaluated, attempt: Attempt) -> Iterator[str]:
    """What is wrong with the statistics themselves."""
    code, total = attempt.header.encoding, np.asarray(body.statistics, dtype=np.uint32)
    if isinstance(code, StatisticsCode):
        try:
            aggregate_of(code, total, len(body.contributors))
        except ProtocolError as error:
            yield f"its statistics cannot be: {error.what}"


def _signed(body: Closed | Evaluated, roster: Roster) -> bool:
    statement = closing_statement(body.round, body.contributors, bytes.fromhex(body.sum), body.next_model)
    try:
        signing.verify(
            roster.server_key, CLOSE, bytes.fromhex(body.session), SERVER, statement, bytes.fromhex(body.signature)
        )
    except ProtocolError:
        return False
    return True
