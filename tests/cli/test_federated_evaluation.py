"""`fedseg evaluate --federated`, and what is said of an evaluation beside it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from fedseg.cli import server
from fedseg.cli.agreement import goes_on
from fedseg.cli.consent import changes, consent, consent_to_extension
from fedseg.cli.event_lines import describe
from fedseg.federation.exchange import Finished, Head, Instruction, Paused, Wait
from fedseg.plan.manifest import Manifest
from fedseg.plan.study import parse_plan
from fedseg.runtime import events
from fedseg.runtime.preparation import training_data
from fedseg.runtime.site_folder import SiteFolder
from fedseg.runtime.study import StudyFolder
from tests.cli.conftest import Command
from tests.cli.test_consent import MEMBER
from tests.runtime import toy
from tests.runtime.bench import Bench
from tests.runtime.measured import SUBJECTS, evaluated
from tests.runtime.test_evaluation import failed, finish
from tests.secagg.helpers import key

TEXT = toy.PLAN.replace("MODE", "secure").replace("ROUNDS", "1").replace("ABSENT", "5")
TEXT = TEXT.replace("SITES", "a: {}, b: {}, c: {}, d: {}") + "evaluation: {federated: true}\n"


def folder(root: Path, text: str = TEXT) -> StudyFolder:
    """A study without torch, whose server has the key that tests know."""
    made = StudyFolder.create(root, parse_plan(text, "toy.yaml"), toy.FIRST, address="localhost:8443", now=time.time())
    (root / "keys" / "audit.key").write_bytes(key("server"))
    return made


@pytest.fixture
def played() -> Bench:
    """The same study in memory to its end; d, which never comes, is not in the evaluation."""
    bench = Bench(toy.manifest(parse_plan(TEXT, "toy.yaml")))
    for site, player in bench.players.items():
        player.subjects = SUBJECTS[site]
    bench.one_round()
    bench.players["d"].bend = _gone
    bench.until("MaskedInputCollection")
    bench.coordinator.withdraw("d", bench.players["d"].header.sid0(), "interrupted")  # type: ignore[union-attr]
    finish(bench, "a", "b", "c")
    return bench


def _gone(_: object) -> Any:
    raise AssertionError("d has left")


@pytest.fixture
def study(tmp_path: Path, played: Bench) -> StudyFolder:
    made = folder(tmp_path / "study")
    for row in played.archive.rounds():
        made.db.save_round(row)
    return made


def test_the_table_says_who_what_and_of_which_model(fedseg: Command, study: StudyFolder, played: Bench) -> None:
    answer = fedseg("evaluate", "--federated", study.root)
    assert answer.code == 0, answer.err
    model = played.archive.rounds()[-1].released
    assert model is not None
    assert "For research use only" in answer.out
    assert f"after 1 rounds, model {model[:16]}: mean Dice 0.750 (standard deviation 0.250)" in answer.out
    assert "over 3 kept-back subjects at 3 sites" in answer.out
    assert "Contributors: a, b, c\nNot in it: d\n" in answer.out
    assert "cortical grey matter" in answer.out
    assert "an HD95 above 100 mm counts as 100" in answer.out
    assert answer.out.endswith(f"\n  fedseg audit verify {study.root}\n")
    assert "has gone on since" not in answer.out


def test_the_document_has_all_of_it(fedseg: Command, study: StudyFolder) -> None:
    answer = fedseg("evaluate", "--federated", study.root, "--json")
    document = json.loads(answer.out)
    assert (document["study"], document["split"], document["use"]) == ("toy", "test", "for research use only")
    (found,) = document["evaluations"]
    assert (found["round"], found["rounds_trained"], found["contributors"], found["sites"]) == (
        2,
        1,
        ["a", "b", "c"],
        3,
    )
    assert (found["subjects"], found["dice"]["mean"]) == (3, 0.75)
    assert found["hd95_mm"]["missing"]["brainstem"] == 1
    assert found["dice"]["tissues"].keys() == found["volume_similarity"]["tissues"].keys()


def test_a_model_that_came_later_is_told_apart(fedseg: Command, study: StudyFolder, played: Bench) -> None:
    first = played.archive.rounds()[0]
    study.db.save_round(replace(first, round=3, next_model="e" * 64))
    assert (
        "The study has gone on since: its newest model is not evaluated."
        in fedseg("evaluate", "--federated", study.root).out
    )


def test_a_changed_book_is_noticed(fedseg: Command, study: StudyFolder) -> None:
    row = study.db.rounds()[-1]
    total = row.total[:4] + b"\1" + row.total[5:]
    study.db.save_round(type(row)(**{**row.__dict__, "total": total}))
    answer = fedseg("evaluate", "--federated", study.root)
    answer.says(answer.code or 1, "the signature of server in Close does not verify")


def test_without_an_evaluation_it_says_how_to_get_one(fedseg: Command, study: StudyFolder, tmp_path: Path) -> None:
    empty = folder(tmp_path / "empty")
    answer = fedseg("evaluate", "--federated", empty.root)
    answer.says(
        2,
        "no evaluation yet: its rounds are not over",
        f"it comes at the end of the study: fedseg server start {empty.root}",
    )
    empty.model.write_text("a model")
    empty.db.save_round(study.db.rounds()[0])
    answer = fedseg("evaluate", "--federated", empty.root)
    answer.says(
        2, "the study is complete without an evaluation of its model",
        f"fedseg server start {empty.root} --evaluate; each of them: fedseg client join --state DIR",
    )  # fmt: skip
    off = folder(tmp_path / "off", TEXT.replace("federated: true", "federated: false"))
    answer = fedseg("evaluate", "--federated", off.root)
    answer.says(2, "plan has no federated evaluation", f"fedseg study extend {off.root} --rounds 0 --evaluate")
    answer = fedseg("server", "start", off.root, "--evaluate")
    answer.says(2, "plan has no federated evaluation")
    fedseg("server", "start", study.root, "--evaluate").says(2, "the study's newest model is evaluated already")


def test_a_sites_folder_is_told_from_the_studys_and_left_alone(fedseg: Command, tmp_path: Path) -> None:
    (tmp_path / "site.json").write_text("{}")
    answer = fedseg("evaluate", "--federated", tmp_path)
    answer.says(2, "this is the folder of a site", str(tmp_path), "fedseg study create")
    assert [path.name for path in tmp_path.iterdir()] == ["site.json"]


def test_a_study_can_be_extended_by_an_evaluation_alone(fedseg: Command, tmp_path: Path) -> None:
    off = folder(tmp_path / "off", TEXT.replace("federated: true", "federated: false"))
    fedseg("study", "extend", off.root, "--rounds", "0").says(1, "an extension by no round changes nothing")
    answer = fedseg("study", "extend", off.root, "--rounds", "0", "--evaluate")
    assert answer.code == 0, answer.err
    assert off.manifest.plan.evaluation.federated
    assert "evaluates on     no subject -> the test subjects, at the end" in answer.out
    assert ("evaluates on", "no subject") in [each[:2] for each in changes(off.versions[0], off.manifest)]


def test_an_evaluation_is_not_counted_among_the_rounds_begun(study: StudyFolder) -> None:
    study.extend(2)
    assert (
        "rounds",
        "1",
        "3 to be closed in all; the next has the number 3 (evaluations are numbered too, not counted)",
    ) in (changes(study.versions[0], study.manifest))


def test_the_servers_end_tells_of_it(
    study: StudyFolder, played: Bench, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    server._print_evaluation(study, asked=False)
    told = capsys.readouterr().out
    assert "mean Dice 0.750" in told
    assert f"see it by tissue: fedseg evaluate --federated {study.root}" in told
    study.db.save_round(failed(played, 2, "void"))
    server._print_evaluation(study, asked=False)
    assert f"To try again: fedseg server start {study.root} --evaluate" in capsys.readouterr().out
    server._print_evaluation(study, asked=True)
    assert "no evaluation could be closed; the log says why" in capsys.readouterr().out
    server._print_evaluation(folder(tmp_path / "off", TEXT.replace("federated: true", "federated: false")), asked=False)
    assert capsys.readouterr().out == ""


def test_screens_say_what_goes_on() -> None:
    said = "begins: each site scores the model on its kept-back subjects"
    assert describe(events.EvaluationStarted(3, 1)) == f"evaluation {said}"
    assert describe(events.EvaluationStarted(3, 2)) == f"evaluation, attempt 2 {said}"
    assert describe(events.Evaluated(3, ("a", "b"), 7, 0.5)) == "evaluation: mean Dice 0.500 over 7 subjects of 2 sites"
    assert describe(events.Evaluated(3, ("a", "b"), 0, None)) == "evaluation: none of 2 sites has kept-back subjects"
    assert describe(events.Scoring(1, 2)) is None


def test_an_evaluation_is_no_round_and_its_steps_have_names() -> None:
    assert describe(events.PhaseStarted(3, "MaskedInputCollection", ("a", "b"), True)) == (
        "evaluation, step 3, computing and sending: a, b"
    )
    assert describe(events.PhaseStarted(2, "AdvertiseKeys", ("a",))) == "round 2, step 1, joining: a"
    assert describe(events.SiteLost(3, "a", "withdrew (failed) in Unmasking", True)) == (
        "evaluation: lost a: withdrew (failed) in step 5, taking the masks off"
    )
    assert describe(events.RoundAbandoned(3, 1, "1 of 3 sites in ShareKeys", True)) == (
        "evaluation, attempt 1 abandoned: 1 of 3 sites in step 2, exchanging keys"
    )
    assert describe(events.RoundStarted(6, 5, 1, 3)) == "round 6 begins; 3 of 5 are closed"
    assert describe(events.RoundStarted(6, 5, 2)) == "round 6, attempt 2 begins"
    assert describe(events.Waiting("round 1, ConsistencyCheck: a")) == (
        "waiting: round 1, step 4, agreeing on the contributors: a"
    )


# At a site.


class Remote:
    def __init__(self, manifest: Manifest, instruction: Instruction) -> None:
        self.study, self.instruction = manifest, instruction

    def __enter__(self) -> Remote:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        pass

    def manifest(self) -> bytes:
        return self.study.to_json()

    def poll(self, session: bytes | None) -> Instruction:
        assert session is None
        return self.instruction


OVER = Finished(Head("a" * 64, 1, "b" * 64), ())


@pytest.mark.parametrize(
    ("asks", "instruction", "expected"),
    [(True, Wait("the others"), True), (True, OVER, False), (True, Paused("lunch"), False), (False, Wait("x"), False)],
)
def test_a_complete_site_goes_on_where_its_model_is_to_be_evaluated(
    asks: bool, instruction: Instruction, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = toy.manifest(toy.plan())
    manifest = evaluated(plain) if asks else plain
    site = SiteFolder(tmp_path)
    site.accept(manifest)
    monkeypatch.setattr(SiteFolder, "connect", lambda _: Remote(manifest, instruction))
    assert goes_on(site) is expected


def shown(manifest: Manifest, scans: Path, capsys: pytest.CaptureFixture[str]) -> str:
    consent(manifest, MEMBER, training_data(scans, manifest.plan, None), yes=True)
    return " ".join(capsys.readouterr().err.split())


def test_consent_names_what_leaves_and_who_can_know_it(
    make_bids: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    scans = make_bids(3, participants="participant_id\tsplit\nsub-01\ttrain\nsub-02\ttest\nsub-03\ttest\n")
    text = shown(evaluated(toy.manifest(toy.plan())), scans, capsys)
    assert (
        "evaluates on 2 test, at the end: their number and scores, added up over at least 3 sites, are published; if "
        "all others collude, or have none, they know this site's"
    ) in text
    assert "count; at the end, how many test subjects, and their scores, only inside a sum ledger" in text
    plain = shown(evaluated(toy.manifest(toy.plan(mode="plain"))), scans, capsys)
    assert "evaluates on 2 test, at the end; PLAIN: the server sees how many they are, and their mean scores" in plain
    assert "evaluates on" not in shown(toy.manifest(toy.plan()), scans, capsys)


def test_an_extension_that_brings_an_evaluation_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    plain = toy.manifest(toy.plan())
    consent_to_extension(plain, evaluated(plain), MEMBER, yes=True)
    text = " ".join(capsys.readouterr().err.split())
    assert "evaluates on no subject the test subjects, at the end" in text
    assert "and what leaves here beside those scores." in text
    consent_to_extension(plain, plain, MEMBER, yes=True)
    assert "and what leaves here. Rounds so far" in " ".join(capsys.readouterr().err.split())
