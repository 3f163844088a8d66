"""What `fedseg audit verify` makes of logs with an evaluation in them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedseg.federation.exchange import CLOSE, SERVER, closing_statement
from fedseg.runtime.audit import Audit, load, verify
from fedseg.runtime.evidence import session_entry
from fedseg.secagg.messages import SessionHeader
from fedseg.secagg.signing import sign
from fedseg.secagg.statistics import StatisticsCode
from fedseg.store.audit_log import AuditLog
from fedseg.store.audit_records import Evaluated
from tests.runtime import toy
from tests.runtime.measured import evaluated, scorers
from tests.runtime.threads import Study
from tests.secagg.helpers import key

Logs = dict[str, list[tuple[str, dict[str, Any]]]]
SITES = ("a", "b", "c", "d")
STUDY = evaluated(toy.manifest(toy.plan(SITES, rounds=1)))


@pytest.fixture(scope="module")
def whole() -> Logs:
    """One round and an evaluation, by the protocol itself; d is lost before its scores leave."""
    study = Study(STUDY, {site: toy.PullTrainer(1.0) for site in SITES}, ("d", "upload", 2, 1))
    study.scorers = scorers(*SITES)
    outcome = study.run()
    assert study.errors == {}
    return {party: [(kind, dict(body)) for kind, body in log.entries()] for party, log in outcome.logs.items()}


@pytest.fixture
def logs(whole: Logs) -> Logs:
    """To be tampered with."""
    return copy.deepcopy(whole)


def audit(logs: Logs, folder: Path, *parties: str) -> Audit:
    for party in parties or logs:
        role = "server" if party == "server" else "site"
        with AuditLog.create(folder / f"{party}.jsonl", key(party), role, party, STUDY.study) as log:  # type: ignore[arg-type]
            for kind, body in logs[party]:
                log.append(kind, body)
    return verify([load(folder / f"{party}.jsonl") for party in parties or logs])


def found(logs: Logs, folder: Path, *parties: str) -> list[str]:
    return [f"{each.party}: {each.what}" for each in audit(logs, folder, *parties).findings]


def body_of(logs: Logs, party: str, kind: str = "evaluated") -> dict[str, Any]:
    return next(body for each, body in logs[party] if each == kind)


def signature(body: Mapping[str, Any], total: str, model: str) -> str:
    statement = closing_statement(body["round"], tuple(body["contributors"]), bytes.fromhex(total), model)
    return sign(key("server"), CLOSE, bytes.fromhex(body["session"]), SERVER, statement).hex()


def sign_again(body: dict[str, Any], **changes: Any) -> None:
    """Change a published evaluation, signed by the server as if it were so."""
    body.update(changes)
    body["signature"] = signature(body, Evaluated.model_validate(body, strict=False).sum, body["model"])


def test_honest_logs_agree_and_the_evaluation_is_told(logs: Logs, tmp_path: Path) -> None:
    told = audit(logs, tmp_path)
    assert told.findings == ()
    assert told.notes == ()
    trained, evaluation = told.rounds
    assert not trained.evaluation
    assert (evaluation.evaluation, evaluation.round, evaluation.contributors) == (True, 2, ("a", "b", "c"))
    assert evaluation.base_model == evaluation.next_model == trained.next_model
    assert [each.party for each in evaluation.witnesses if each.logged] == [
        "server", "site a", "site b", "site c", "site d",
    ]  # fmt: skip


def test_published_statistics_that_the_server_did_not_sign(logs: Logs, tmp_path: Path) -> None:
    body_of(logs, "server")["statistics"][1] += 1
    says = found(logs, tmp_path)
    assert "server: round 2: the server's signature of its close is not valid" in says


def test_another_aggregate_than_the_sites_were_told(logs: Logs, tmp_path: Path) -> None:
    body = body_of(logs, "server")
    sign_again(body, statistics=[body["statistics"][0], body["statistics"][1] - 1, *body["statistics"][2:]])
    (says,) = found(logs, tmp_path)
    assert says.startswith("server: round 2: the server signed two closes of one round: sum ")


def test_statistics_that_no_sites_can_make(logs: Logs, tmp_path: Path) -> None:
    body = body_of(logs, "server")
    sign_again(body, statistics=[1, *body["statistics"][1:]])
    (says,) = found(logs, tmp_path, "server")
    assert "round 2, attempt 1: its statistics cannot be: the sum of the scores is none that honest sites" in says


@pytest.mark.parametrize("dimension", range(1, 61))
def test_a_session_of_whatever_many_statistics_is_a_finding_and_no_crash(
    logs: Logs, tmp_path: Path, dimension: int
) -> None:
    code = StatisticsCode(4, dimension, 1000, 100.0)
    opened = [body for kind, body in logs["d"] if kind == "session"][1]
    header = replace(SessionHeader.from_bytes(bytes.fromhex(opened["header"])), dimension=dimension)
    body = copy.deepcopy(body_of(logs, "server"))
    session = header.sid0().hex()
    masked = {"session": session, "sid": "1" * 64, "u2": list(SITES), "digest": "2" * 64, "signature": "3" * 128}
    sign_again(body, session="1" * 64, contributors=list(SITES), statistics=[0] * dimension + [4 * code.site_scale])
    logs["d"] = [each for each in logs["d"] if each[0] == "roster"]
    logs["d"] += [("session", session_entry(header)), ("masked", masked), ("evaluated", body)]
    says = [each for each in found(logs, tmp_path, "d") if "its statistics cannot be" in each]
    assert says == [
        f"site d: round 2, attempt 1: its statistics cannot be: an evaluation of {dimension} statistics, which no "
        "label scheme has"
    ] * (dimension not in (16, 22, 28, 34, 40, 46, 52, 58))


def test_an_evaluation_before_the_rounds_of_the_plan_are_closed(logs: Logs, tmp_path: Path) -> None:
    for party in logs:
        body_of(logs, party, "roster")["rounds"] = 2
    early = "round 2, attempt 1: it is an evaluation, where at most 1 of the plan's 2 rounds are closed"
    assert found(logs, tmp_path) == [f"server: {early}", *(f"site {site}: {early}" for site in SITES)]


def test_rounds_that_a_site_missed_may_be_closed_and_those_between_two_it_followed_are_not(
    logs: Logs, tmp_path: Path
) -> None:
    body_of(logs, "d", "roster")["rounds"] = 2
    trained = logs["d"].index(("closed", body_of(logs, "d", "closed")))
    taken = {"round": 2, "base_model": "1" * 64, "model": "2" * 64}
    logs["d"][trained] = ("fetched", taken)
    early = "site d: round 2, attempt 1: it is an evaluation, where at most 1 of the plan's 2 rounds are closed"
    assert early not in found(logs, tmp_path, "d")
    taken["round"] = 1
    (tmp_path / "again").mkdir()
    assert found(logs, tmp_path / "again", "d") == [early]


def test_two_logs_with_two_numbers_of_rounds_in_one_plan(logs: Logs, tmp_path: Path) -> None:
    body_of(logs, "c", "roster")["rounds"] = 1
    assert found(logs, tmp_path, "a", "c") == []
    body = body_of(logs, "c", "roster")
    logs["c"].insert(1, ("roster", body | {"rounds": 3}))
    (tmp_path / "one").mkdir()
    assert f"site c: plan {body['plan_hash'][:16]} has two numbers of rounds" in found(logs, tmp_path / "one", "c")
    logs["c"].pop(1)
    body["rounds"] = 3
    (tmp_path / "two").mkdir()
    says = found(logs, tmp_path / "two", "a", "c")
    assert f": site a has 1 rounds in plan {body['plan_hash'][:16]}, site c has 3" in says


def test_an_evaluation_with_other_contributors_than_those_who_signed(logs: Logs, tmp_path: Path) -> None:
    body = body_of(logs, "server")
    sign_again(body, contributors=["a", "b", "c", "d"])
    says = found(logs, tmp_path, "server")
    assert "server: round 2, attempt 1: it was closed with a, b, c, d, before that they were a, b, c" in says


def test_an_evaluation_that_moved_the_model(logs: Logs, tmp_path: Path) -> None:
    body = body_of(logs, "server")
    total, moved = Evaluated.model_validate(body, strict=False).sum, "f" * 64
    closed = {name: body[name] for name in ("round", "session", "contributors")}
    closed |= {"base_model": body["model"], "next_model": moved, "weight": 3, "sum": total}
    closed |= {"relative_error": 0.0, "score": None, "rolled_back": False, "signature": signature(body, total, moved)}
    logs["server"] = [("closed", closed) if kind == "evaluated" else (kind, each) for kind, each in logs["server"]]
    alone = found(logs, tmp_path, "server")
    assert "server: round 2, attempt 1: its session is an evaluation, it was closed as a round that trains" in alone
    (tmp_path / "all").mkdir()
    assert any(
        "the server signed two closes of one round: next model" in each for each in found(logs, tmp_path / "all")
    )


def test_a_round_that_trained_closed_as_an_evaluation(logs: Logs, tmp_path: Path) -> None:
    closed = body_of(logs, "server", "closed")
    said = {name: closed[name] for name in ("round", "session", "contributors", "signature")}
    said |= {"model": closed["base_model"], "released": closed["base_model"], "statistics": [1, 2]}
    sign_again(said)
    logs["server"] = [("evaluated", said) if kind == "closed" else (kind, each) for kind, each in logs["server"]]
    says = found(logs, tmp_path, "server")
    assert "server: round 1, attempt 1: its session is a round that trains, it was closed as an evaluation" in says


def test_a_second_evaluation_of_one_model_with_other_contributors(logs: Logs, tmp_path: Path) -> None:
    again = copy.deepcopy(body_of(logs, "d"))
    sign_again(again, round=3, session="1" * 64, contributors=["a", "b", "c"])
    logs["d"].append(("evaluated", again))
    assert found(logs, tmp_path, "d") == []
    sign_again(again, contributors=["a", "b"])
    (tmp_path / "others").mkdir()
    assert found(logs, tmp_path / "others", "d") == [
        "site d: round 3: it is a second evaluation of the model of round 2, of a, b where that one was of a, b, c"
    ]


def test_another_model_file_than_the_others_scored(logs: Logs, tmp_path: Path) -> None:
    body_of(logs, "a")["released"] = "f" * 64
    says = found(logs, tmp_path)
    assert says and all("have the same sum, but another released to it" in each for each in says)


def test_a_log_without_its_evaluation(logs: Logs, tmp_path: Path) -> None:
    logs["server"].pop()
    says = found(logs, tmp_path)
    assert any("the log lacks the close of round 2, which the server has signed" in each for each in says)
