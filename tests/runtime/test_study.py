from __future__ import annotations

import stat
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from fedseg import __version__
from fedseg.errors import InviteError, PlanError, ProtocolError, RosterError, StorageError, UsageError
from fedseg.federation.exchange import Enrolled
from fedseg.federation.vector import model_hash
from fedseg.plan.manifest import Manifest
from fedseg.plan.study import parse_plan
from fedseg.privacy.accounting import epsilon
from fedseg.privacy.events import Event
from fedseg.rpc.certificates import certificate_request, fingerprint, new_protocol_key, new_site_key
from fedseg.runtime.resolution import check_manifest, expected_noise_norm, resolve
from fedseg.runtime.study import StudyFolder
from fedseg.secagg.roster import Roster
from fedseg.secagg.signing import public_half
from fedseg.store.audit_log import AuditLog
from tests.runtime import toy
from tests.runtime.private import private_manifest, private_plan

NOW = time.time()
STUDY = "ab" * 16
TOY = {"preset": "toy"}


def create(root: Path) -> StudyFolder:
    return StudyFolder.create(root, toy.plan(), toy.FIRST, address="localhost:8443", now=NOW)


@pytest.fixture
def study(tmp_path: Path) -> StudyFolder:
    return create(tmp_path / "study")


# The plan, resolved.


def test_nothing_is_left_open() -> None:
    manifest = resolve(toy.plan(), toy.FIRST, study=STUDY)
    assert (manifest.study, manifest.quorum, manifest.noise_multiplier) == (STUDY, 3, None)
    assert (manifest.parameters, manifest.initial_model) == (toy.SIZE, model_hash(toy.INITIAL))
    assert (manifest.architecture, manifest.code_version) == (TOY, __version__)
    check_manifest(manifest)


def test_the_noise_is_the_least_that_keeps_the_budget_reserve_included() -> None:
    manifest = private_manifest(rounds=2, reserve=1)
    sigma = manifest.noise_multiplier
    assert sigma is not None
    assert epsilon([Event(sigma, 0.5, 30)], 1e-5) <= 8
    assert epsilon([Event(0.99 * sigma, 0.5, 30)], 1e-5) > 8
    check_manifest(manifest)


def test_a_delta_above_the_cap_is_refused_with_its_line() -> None:
    plan = parse_plan(
        "name: x\nprivacy:\n  mode: local\n  epsilon: 8\n  delta: 1e-3\nschedule: {rounds: 1}\n"
        "sites: {a: {}, b: {public_subjects: 1000}, c: {}}\n",
        "p.yaml",
    )
    with pytest.raises(PlanError) as caught:
        resolve(plan, toy.FIRST, study=STUDY)
    assert str(caught.value) == (
        "p.yaml:5: privacy.delta: 0.001 is too much for 1000 subjects at b (at most 0.0001; 1e-5 is usual)"
    )


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_a_clip_below_the_noise_is_refused_with_its_line(optimiser: str) -> None:
    # Adam moves by rate * sqrt(steps * parameters) = 0.001 * 100, SGD by the noise of a step, stretched by momentum.
    with pytest.raises(PlanError) as caught:
        resolve(private_plan(optimiser=optimiser, clip=0.05), toy.FIRST, study=STUDY)
    error = caught.value
    assert error.where == "private.yaml:12"
    assert "aggregation.clip: 0.05 is less than the norm that noise alone gives an update, about " in error.what
    norm = float(error.what.rpartition(" ")[2])
    assert error.hint == f"set it to {2 * norm:.2g} or more, or lower training.learning_rate"
    assert resolve(private_plan(optimiser=optimiser, clip=2 * norm), toy.FIRST, study=STUDY).noise_multiplier


def test_the_noise_norm_is_that_of_the_noise() -> None:
    document = private_plan(optimiser="sgd")
    plan = document.content
    training, sigma = plan.training, 3.0
    rng = np.random.default_rng(1)
    plain = plan.model_copy(update={"training": training.model_copy(update={"momentum": 0.0})})
    step = training.learning_rate * sigma * plan.privacy.max_grad_norm / (0.5 * 10)
    walk = step * rng.standard_normal((training.steps, 10_000)).sum(axis=0)
    assert expected_noise_norm(plain, sigma, 10_000) == pytest.approx(float(np.linalg.norm(walk)), rel=0.05)
    assert expected_noise_norm(plan, sigma, 10_000) == pytest.approx(10 * expected_noise_norm(plain, sigma, 10_000))


def test_an_impossible_ring_is_refused_with_its_line() -> None:
    text = (
        "name: x\nprivacy: {mode: off}\nschedule: {rounds: 1}\naggregation:\n  clip: 1e300\n"
        "sites: {a: {}, b: {}, c: {}}\n"
    )
    with pytest.raises(PlanError) as caught:
        resolve(parse_plan(text, "p.yaml"), toy.FIRST, study=STUDY)
    assert (caught.value.where, caught.value.hint) == ("p.yaml:5", "a positive number")


# A manifest, as a site checks it.


class Lie(NamedTuple):
    manifest: Manifest
    says: str


def _with_plan(manifest: Manifest, section: str, **changes: object) -> Manifest:
    part = getattr(manifest.plan, section).model_copy(update=changes)
    return manifest.model_copy(update={"plan": manifest.plan.model_copy(update={section: part})})


PRIVATE = private_manifest()
OFF = toy.manifest(toy.plan())
SENTENCE = "the hospitals already share these scans"
LIES = {
    "less noise": Lie(
        PRIVATE.model_copy(update={"noise_multiplier": 0.5}),
        "the study's noise does not keep its budget: 30 steps cost epsilon",
    ),
    "more rounds": Lie(
        _with_plan(PRIVATE, "schedule", rounds=20), "the study's noise does not keep its budget: 210 steps cost"
    ),
    "smaller budget": Lie(_with_plan(PRIVATE, "privacy", epsilon=1.0), "the study's noise does not keep its budget"),
    "no budget": Lie(_with_plan(PRIVATE, "privacy", epsilon=None), "does not keep its budget: 30 steps cost epsilon"),
    "no noise": Lie(PRIVATE.model_copy(update={"noise_multiplier": None}), "contradict each other"),
    "noise without privacy": Lie(OFF.model_copy(update={"noise_multiplier": 1.0}), "contradict each other"),
    "delta": Lie(
        _with_plan(
            PRIVATE.model_copy(
                update={
                    "plan": PRIVATE.plan.model_copy(
                        update={
                            "sites": {
                                **PRIVATE.plan.sites,
                                "a": PRIVATE.plan.sites["a"].model_copy(update={"public_subjects": 20000}),
                            }
                        }
                    )
                }
            ),
            "privacy",
        ),
        "privacy.delta: 1e-05 is too much for 20000 subjects at a",
    ),
    "low quorum": Lie(
        OFF.model_copy(update={"quorum": 2}), "the study's quorum is 2, the least that its sites allow is 3"
    ),
    "unasked quorum of two": Lie(
        _with_plan(OFF, "aggregation", accept_two_contributors=SENTENCE).model_copy(update={"quorum": 2}),
        "the study's quorum is 2",
    ),
    "another quorum": Lie(
        toy.manifest(toy.plan(("a", "b", "c", "d", "e"), more="quorum: 5")).model_copy(update={"quorum": 4}),
        "the study's quorum is 4, its plan says 5",
    ),
    "a quorum out of reach": Lie(OFF.model_copy(update={"quorum": 9}), "the study's quorum is 9, its plan says 3"),
    "plain quorum": Lie(
        toy.manifest(toy.plan(mode="plain")).model_copy(update={"quorum": 1}), "the study's quorum is 1"
    ),
    "a coarse ring": Lie(_with_plan(OFF, "aggregation", clip=1e300), "clip 1e+300 is no usable bound"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_manifest_whose_promises_do_not_add_up_is_refused(name: str) -> None:
    with pytest.raises(PlanError) as caught:
        check_manifest(LIES[name].manifest)
    assert LIES[name].says in str(caught.value)


def test_honest_manifests_pass() -> None:
    two = toy.plan(more=f'quorum: 2, accept_two_contributors: "{SENTENCE}"')
    for document in (
        toy.plan(),
        two,
        toy.plan(mode="plain"),
        toy.plan(("a",), mode="plain"),
        toy.plan(mode="plain", more="quorum: 1"),
    ):
        check_manifest(toy.manifest(document))


# The folder.


def test_a_study_is_opened_as_it_was_made(study: StudyFolder) -> None:
    again = StudyFolder.open(study.root)
    assert again.manifest.plan == toy.plan().content
    assert again.address == "localhost:8443"
    np.testing.assert_array_equal(again.archive.load_model(0), toy.INITIAL)
    assert again.archive.rounds() == []
    modes = {
        path.name: stat.S_IMODE(path.stat().st_mode)
        for path in study.root.rglob("*")
        if path.suffix in (".key", ".sqlite")
    }
    assert modes == {"ca.key": 0o600, "server.key": 0o600, "audit.key": 0o600, "study.sqlite": 0o600}
    assert stat.S_IMODE(study.root.stat().st_mode) == 0o700


def test_two_studies_of_one_plan_are_two(study: StudyFolder, tmp_path: Path) -> None:
    other = create(tmp_path / "other")
    assert other.manifest.study != study.manifest.study
    assert other.manifest.plan_hash != study.manifest.plan_hash
    assert other.ca.cert_pem != study.ca.cert_pem


def test_folders_that_are_refused(study: StudyFolder, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"study: the folder is not empty \(name a new folder for the study\)"):
        create(study.root)
    with pytest.raises(UsageError, match="there is no such folder"):
        StudyFolder.open(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="this folder holds no study"):
        StudyFolder.open(tmp_path / "empty")
    assert create(tmp_path / "empty").manifest.plan.name == "toy"
    with pytest.raises(UsageError):
        StudyFolder.create(tmp_path / "new", toy.plan(), toy.FIRST, address="localhost", now=NOW)
    bad = private_plan(clip=0.01)
    with pytest.raises(PlanError):
        StudyFolder.create(tmp_path / "new", bad, toy.FIRST, address="localhost:1", now=NOW)
    assert not (tmp_path / "new").exists()


KEY = public_half(b"A" * 32)


def test_enrolment_by_invite(study: StudyFolder) -> None:
    with pytest.raises(UsageError, match=r"the plan names no site 'd' \(its sites: a, b, c\)"):
        study.invite("d", now=NOW, hours=1)
    invite = study.invite("a", now=NOW, hours=1)
    request = certificate_request(new_site_key(), "a")
    with pytest.raises(InviteError, match="the server does not know this invite"):
        study.enrol("0" * 32, request, KEY, now=NOW)
    with pytest.raises(InviteError, match="this invite has expired"):
        study.enrol(invite.identifier, request, KEY, now=NOW + 3601)
    with pytest.raises(ProtocolError, match="not a PEM certificate request"):
        study.enrol(invite.identifier, b"junk", KEY, now=NOW)
    certificate = study.enrol(invite.identifier, request, KEY, now=NOW)
    assert study.db.site_of(fingerprint(certificate)) == "a"
    with pytest.raises(InviteError, match="this invite has been used"):
        study.enrol(invite.identifier, request, KEY, now=NOW)
    assert invite.ca_certificate()[:27] in study.tls().client_roots_pem
    assert len(study.tls().client_roots_pem.split(b"BEGIN")) == 3


def _enrol(study: StudyFolder, site: str, key: bytes) -> None:
    invite = study.invite(site, now=NOW, hours=1)
    study.enrol(invite.identifier, certificate_request(new_site_key(), site), key, now=NOW)


def test_a_protocol_key_is_its_sites_alone(study: StudyFolder) -> None:
    _enrol(study, "a", KEY)
    for wrong, why in {
        KEY: "this protocol key is another party's",
        study.enrolled().server_key: "this protocol key is another party's",
        bytes(32): "a point of low order",
        b"short": "32 bytes, not 5",
    }.items():
        with pytest.raises(ProtocolError, match=why):
            _enrol(study, "b", wrong)
    assert set(study.enrolled().keys) == {"a"}
    _enrol(study, "a", KEY)
    assert study.enrolled().keys == {"a": KEY}


def test_the_roster_is_there_once_all_have_enrolled(study: StudyFolder) -> None:
    keys = {site: public_half(new_protocol_key()) for site in ("a", "b", "c")}
    assert study.enrolled() == Enrolled(public_half(study.signing_key), {})
    for site in ("a", "c"):
        _enrol(study, site, keys[site])
    with pytest.raises(RosterError) as caught:
        study.roster()
    assert caught.value.what == "b yet to enrol"
    assert caught.value.hint == f"make an invite and send it: fedseg study invite {study.root} b"
    _enrol(study, "b", keys["b"])
    manifest, roster = study.manifest, StudyFolder.open(study.root).roster()
    assert roster == Roster(manifest.study, bytes.fromhex(manifest.plan_hash), public_half(study.signing_key), keys)
    _enrol(study, "b", KEY)
    assert roster.differences(study.roster()) == ["b has another key"]


def test_the_server_has_a_key_and_a_log_from_the_start(study: StudyFolder, tmp_path: Path) -> None:
    assert study.signing_key != create(tmp_path / "other").signing_key
    AuditLog.open(study.audit, study.signing_key).close()
    for damaged in (b"", b"x" * 31, b"x" * 33):
        (study.root / "keys" / "audit.key").write_bytes(damaged)
        with pytest.raises(StorageError, match=r"audit\.key: the server's signing key is damaged"):
            _ = study.signing_key


def test_weights_that_bare_a_site_are_refused() -> None:
    text = "name: x\nprivacy: {mode: off}\nschedule: {rounds: 1}\nsites:\n  a: {}\n  b: {weight: 3}\n  c: {}\n"
    document = parse_plan(text, "p.yaml")
    with pytest.raises(PlanError) as caught:
        resolve(document, toy.FIRST, study=STUDY)
    assert caught.value.where == "p.yaml:6"
    assert "sites.b.weight: 3 outweighs the other 2 contributors of a smallest round" in caught.value.what
    with pytest.raises(PlanError, match=r"sites\.b\.weight: 3 outweighs"):
        check_manifest(toy.manifest(document))
    assert resolve(parse_plan(text.replace("3}", "2}"), "p"), toy.FIRST, study=STUDY).quorum == 3


def test_a_damaged_manifest_is_refused(study: StudyFolder) -> None:
    path = study.root / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"rounds":3', b'"rounds": 9'))
    with pytest.raises(PlanError, match="the study's manifest is not in canonical form"):
        _ = study.manifest
