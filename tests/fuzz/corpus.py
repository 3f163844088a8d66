"""Valid bytes for every target, made afresh: a format that changes takes its corpus along."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from fedseg.federation.exchange import (
    Best,
    Confirm,
    Enrolled,
    Finished,
    Head,
    Instruction,
    Join,
    Paused,
    Published,
    ShareKeys,
    Submit,
    Unmask,
    Wait,
)
from fedseg.plan.manifest import Manifest
from fedseg.plan.study import parse_plan
from fedseg.privacy import chain
from fedseg.rpc import certificates, codec
from fedseg.rpc.invites import Invite
from fedseg.secagg.roster import Identity
from fedseg.secagg.state import Joined, dump, ended
from fedseg.secagg.thresholds import Thresholds
from fedseg.store.checkpoints import ModelCard, save_model
from fedseg.store.vectors import save_vector
from tests.secagg.helpers import (
    after_advertise,
    after_confirm,
    after_mask,
    after_share,
    after_unmask,
    identity,
    inputs_of,
    roster,
    session,
)

SAMPLES = Path(__file__).parents[2] / "sample_configs"
HEADER = session(3, accept_two=True)
LARGE = session(10)
SITE = "brno"
HASH = "0f" * 32


@cache
def _states() -> list[Any]:
    """One state of each kind, of one site, in a session that lost a site."""
    inputs = inputs_of(HEADER)
    runs = (
        after_advertise(HEADER)[1],
        after_share(HEADER)[1],
        after_mask(HEADER, inputs, ["cluj"])[1],
        after_confirm(HEADER, inputs, ["cluj"])[1],
        after_unmask(HEADER, inputs, ["cluj"])[1],
    )
    return [run[SITE] for run in runs]


def states_of(kind: str) -> Any:
    """The state of that name."""
    return next(state for state in _states() if type(state).__name__ == kind)


def _messages(place: int) -> list[bytes]:
    return [_states()[place].message.to_bytes()]


def advertisements() -> list[bytes]:
    return _messages(0)


def envelopes() -> list[bytes]:
    return [*_messages(1), after_share(LARGE)[1][SITE].message.to_bytes()]


def masked_inputs() -> list[bytes]:
    return _messages(2)


def consistencies() -> list[bytes]:
    return _messages(3)


def shares() -> list[bytes]:
    return [*_messages(4), after_unmask(LARGE, inputs_of(LARGE), ["jena"])[1][SITE].message.to_bytes()]


def single_shares() -> list[bytes]:
    return [_states()[2].held[SITE].seed_share.to_bytes()]


def headers() -> list[bytes]:
    plain = session(thresholds=Thresholds.plain(3, 2))
    return [each.to_bytes() for each in (HEADER, LARGE, plain)]


def rosters() -> list[bytes]:
    return [roster(n).to_bytes() for n in (1, 3, 10)]


def identity_of_states() -> Identity:
    return identity(SITE, HEADER)


def states() -> list[bytes]:
    return [dump(state) for state in (*_states(), Joined(HEADER), ended(_states()[4]))]


@cache
def invites() -> list[bytes]:
    ca = certificates.create_study_ca("atlas", now=1_750_000_000.0)
    return [Invite("fed.example.org:8443", SITE, 1_750_100_000, bytes(range(16)), ca.cert_pem).encode().encode()]


def instructions() -> list[bytes]:
    advertised = tuple(state.message for state in after_advertise(HEADER)[1].values())
    head = Head(HASH, 4, HASH, Best(HASH, 0.5))
    sealed = {"amiens": bytes(86), "cluj": bytes(86)}
    listed: list[Instruction] = [
        Wait("the others are at work"),
        Join(HEADER, head),
        ShareKeys(HEADER.sid0(), advertised),
        Submit(HEADER.sid0(), HEADER.sites, sealed),
        Confirm(HEADER.sid0(), HEADER.sites),
        Unmask(HEADER.sid0(), dict.fromkeys(HEADER.sites, bytes(64))),
        Finished(head, ((1, HEADER.sites), (2, HEADER.sites))),
        Paused("until tomorrow"),
    ]
    return [codec.encode_instruction(each).SerializeToString(deterministic=True) for each in listed]


def enrolled() -> list[bytes]:
    pinned = roster()
    message = codec.encode_enrolled(Enrolled(pinned.server_key, pinned.keys))
    return [message.SerializeToString(deterministic=True)]


def uploads() -> list[bytes]:
    return [codec.encode_upload(HEADER.sid0(), _states()[2].message, 24).SerializeToString(deterministic=True)]


def published() -> list[bytes]:
    total = np.zeros(3, np.uint32)
    closed = Published(3, HEADER.sites, total, HEADER.sid0(), HASH, bytes(64))
    return [codec.encode_published(closed).SerializeToString(deterministic=True)]


def plans() -> list[bytes]:
    return [path.read_bytes() for path in sorted(SAMPLES.glob("*.yaml")) if path.stem != "policy"]


def policies() -> list[bytes]:
    return [(SAMPLES / "policy.yaml").read_bytes()]


def manifests() -> list[bytes]:
    first = sorted(path for path in SAMPLES.glob("*.yaml") if path.stem != "policy")[0]
    plan = parse_plan(first.read_text(), first.name).content
    made = Manifest(
        study="0f" * 16,
        plan=plan,
        quorum=3,
        noise_multiplier=None,
        architecture={"preset": "small", "channels": [8, 16]},
        parameters=100,
        trained=((0, 100),),
        initial_model=HASH,
        code_version="0.1.0",
    )
    return [made.to_json()]


def records() -> list[bytes]:
    first = chain.seal(None, "begin", {"role": "site", "party": SITE}, "2025-01-02T03:04:05Z")
    second = chain.seal(first, "closed", {"round": 1, "score": 0.5, "sites": ["a", "b"]}, "2025-01-02T03:04:06Z")
    return [first.line()[:-1], second.line()[:-1]]


def logs() -> list[bytes]:
    return [b"".join(line + b"\n" for line in records())]


def bodies() -> list[bytes]:
    sites, signature = list(HEADER.sites), "0f" * 64
    closed = {
        "round": 1,
        "session": HASH,
        "contributors": sites,
        "base_model": HASH,
        "next_model": HASH,
        "weight": 3,
        "sum": HASH,
        "relative_error": 1e-5,
        "score": None,
        "rolled_back": False,
        "signature": signature,
    }
    listed: list[tuple[str, dict[str, object]]] = [
        ("begin", {"role": "site", "party": SITE, "key": roster().keys[SITE].hex(), "study": "atlas"}),
        ("session", {"header": HEADER.to_bytes().hex(), "session": HEADER.sid0().hex()}),
        ("confirmed", {"session": HASH, "sid": HASH, "u2": sites, "u3": sites, "signature": signature}),
        ("unmask", {"session": HASH, "sid": HASH, "u2": sites, "u3": sites, "signatures": {SITE: signature}}),
        (
            "received",
            {"session": HASH, "sid": HASH, "u2": sites, "inputs": {SITE: {"digest": HASH, "signature": signature}}},
        ),
        ("closed", closed),
        ("aborted", {"session": HASH, "why": "too few sites"}),
    ]
    return [json.dumps(each).encode() for each in listed]


def _files(*writers: Any) -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for write in writers:
            path = Path(folder) / "file"
            write(path)
            found.append(path.read_bytes())
        return found


def model_vectors() -> list[bytes]:
    return _files(lambda path: save_vector(path, np.linspace(-1, 1, 5, dtype=np.float32)))


def ring_vectors() -> list[bytes]:
    return _files(lambda path: save_vector(path, np.arange(5, dtype=np.uint32)))


def model_files() -> list[bytes]:
    arrays = {"head.bias": np.array([1.5, 2.5], np.float32), "head.weight": np.ones((2, 3), np.float32)}
    card = ModelCard(
        architecture={"preset": "small", "channels": [8, 16]},
        task="feta",
        tissues=("white_matter",),
        spacing_mm=1.6,
        patch=(64, 64, 64),
        normalisation={"kind": "zscore"},
        study="atlas",
        plan_hash=HASH,
        rounds=2,
        contributors=((1, ("crl", "wu")),),
        privacy={"mode": "off"},
        code_version="0.1.0",
    )
    return _files(lambda path: save_model(path, arrays, card))
