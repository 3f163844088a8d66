from __future__ import annotations

from collections.abc import Iterator

import pytest
from google.protobuf.descriptor import Descriptor

from fedseg.federation.outgoing import OUTGOING, leaving
from fedseg.plan.sections import Evaluation
from fedseg.rpc._pb import federation_pb2 as pb
from tests.runtime import toy
from tests.runtime.private import private_plan

SERVICE = pb.DESCRIPTOR.services_by_name["Federation"]


def fields(kind: Descriptor) -> Iterator[str]:
    """Every field below a message that holds a value, as `Message.field`."""
    for field in kind.fields:
        if field.message_type is None:
            yield f"{kind.name}.{field.name}"
        else:
            yield from fields(field.message_type)


SENT = {name for method in SERVICE.methods for name in fields(method.input_type)}


def test_every_field_that_a_site_sends_is_classified_and_nothing_else() -> None:
    listed = {each.name for each in OUTGOING if not each.name.startswith(("connection.", "document."))}
    assert listed == SENT


def test_fields_of_messages_within_messages_count() -> None:
    assert "UploadHeader.digest" in SENT
    assert "UploadPart.header" not in SENT


def test_what_can_be_seen_beside_the_messages_is_told() -> None:
    beside = {each.name for each in OUTGOING if each.name.startswith("connection.")}
    assert beside == {f"connection.{what}" for what in ("certificate", "address", "time", "size")}


def test_what_a_person_may_hand_on_is_told() -> None:
    handed_on = {each.name: each.classification for each in OUTGOING if each.name.startswith("document.")}
    assert handed_on == {
        "document.privacy_report": "declared",
        "document.ledger_export": "declared",
        "document.audit_log": "declared",
        "document.audit": "nothing personal",
    }


def test_leaving_for_want_of_budget_is_declared_with_its_reason() -> None:
    (found,) = [each for each in OUTGOING if each.name == "WithdrawRequest.reason"]
    assert found.classification == "declared"
    assert "may hinge on one subject: under a lifetime limit on one of an earlier study" in found.why


def test_a_field_is_told_once_for_each_kind_of_study() -> None:
    told = [(each.name, each.where) for each in OUTGOING]
    assert len(told) == len(set(told))
    for each in OUTGOING:
        assert each.what
        assert each.why


@pytest.mark.parametrize("name", ["UploadPart.chunk", "UploadHeader.digest"])
def test_an_update_is_accounted_for_in_private_studies_and_declared_in_others(name: str) -> None:
    private = [each for each in leaving(private_plan().content) if each.name == name]
    assert [each.classification for each in private] == ["accounted"]
    plain = [each for each in leaving(toy.plan().content) if each.name == name]
    assert [each.classification for each in plain] == ["declared"]


def test_a_score_leaves_only_where_the_plan_rolls_back() -> None:
    scored = [each for each in leaving(toy.plan(more="rollback: {drop: 0.1}").content) if each.where == "scored"]
    assert [(each.name, each.classification) for each in scored] == [("UploadPart.chunk", "declared")]
    assert not [each for each in leaving(toy.plan().content) if each.where == "scored"]


def test_scores_on_kept_back_subjects_are_declared_where_the_plan_publishes_them() -> None:
    plan = toy.plan().content
    assert not [each for each in leaving(plan) if each.where == "evaluated"]
    asked = plan.model_copy(update={"evaluation": Evaluation(federated=True)})
    (found,) = [each for each in leaving(asked) if each.where == "evaluated"]
    assert (found.name, found.classification) == ("UploadPart.chunk", "declared")
    assert "how many test subjects" in found.what
    assert "where all other contributors collude, or have no such subjects, they know this site's" in found.why


def test_without_a_ledger_nothing_is_claimed_of_one() -> None:
    def claims(names: set[str]) -> set[str]:
        return {name for name in names if name.startswith("ClaimLedgerRequest.")}

    assert claims({each.name for each in leaving(toy.plan().content)}) == set()
    assert claims({each.name for each in leaving(private_plan().content)}) == claims(SENT)


def test_every_field_is_sent_in_some_study() -> None:
    open_study = toy.plan(more="rollback: {drop: 0.1}").content
    evaluated = open_study.model_copy(update={"evaluation": Evaluation(federated=True)})
    plans = (private_plan().content, evaluated)
    assert {each for plan in plans for each in leaving(plan)} == set(OUTGOING)
