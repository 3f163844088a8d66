"""A study without torch: a linear model that each site pulls towards its own target."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from fedseg.document import Document
from fedseg.federation.exchange import Enrolled
from fedseg.federation.strategy import Strategy
from fedseg.federation.vector import Layout, Weights, model_hash
from fedseg.plan.manifest import Manifest
from fedseg.plan.study import StudyPlan, parse_plan
from fedseg.privacy.distributed import NoiseShare
from fedseg.runtime.resolution import FirstModel
from fedseg.runtime.session import check_aggregation, encoding_of, roster_of
from fedseg.secagg.encoding import Encoding
from fedseg.secagg.roster import Identity, Roster
from fedseg.secagg.signing import public_half
from tests.secagg.helpers import key

SIZE = 1000
LAYOUT = Layout((("bias", (10,)), ("weight", (99, 10))))
INITIAL = np.zeros(SIZE, dtype=np.float32)
FIRST = FirstModel(INITIAL, {"preset": "toy"})

PLAN = """
name: toy
seed: 7
privacy: {mode: off}
aggregation: {mode: MODE}
schedule: {rounds: ROUNDS, deadline_s: 20, absent_after_s: ABSENT}
sites: {SITES}
"""


def plan(
    sites: tuple[str, ...] = ("a", "b", "c"),
    *,
    mode: str = "secure",
    rounds: int = 3,
    absent_s: float = 5,
    more: str = "",
) -> Document[StudyPlan]:
    text = PLAN.replace("MODE", mode + (", " + more if more else "")).replace("ROUNDS", str(rounds))
    text = text.replace("ABSENT", str(absent_s)).replace("SITES", ", ".join(f"{site}: {{}}" for site in sites))
    return parse_plan(text, "toy.yaml")


def manifest(document: Document[StudyPlan], trained: tuple[tuple[int, int], ...] = ((0, SIZE),)) -> Manifest:
    first = Strategy.for_plan(document.content, SIZE, trained).first(INITIAL)
    return Manifest(
        study="ab" * 16,
        plan=document.content,
        quorum=check_aggregation(document),
        noise_multiplier=None,
        architecture={"preset": "toy"},
        parameters=SIZE,
        trained=trained,
        initial_model=model_hash(first),
        code_version="0",
    )


def code(study: Manifest) -> Encoding:
    """The code of a study's updates."""
    encoding = encoding_of(study)
    assert isinstance(encoding, Encoding)
    return encoding


def moved(study: Manifest, state: Weights, mean: Weights, round_number: int = 1) -> Weights:
    """The state that a mean update makes."""
    return Strategy.of(study).move(state, mean, round_number)


def enrolled(study: Manifest) -> Enrolled:
    """Everybody has enrolled."""
    return Enrolled(public_half(key("server")), {site: public_half(key(site)) for site in study.plan.site_names})


def roster(study: Manifest) -> Roster:
    return roster_of(study, enrolled(study))


def identity(site: str, study: Manifest) -> Identity:
    """A site that has confirmed the roster of the study."""
    return Identity(site, key(site), roster(study))


class PullTrainer:
    """Moves every weight halfway towards the site's target; a model scores what it is told to."""

    def __init__(
        self,
        target: float,
        *,
        before: Callable[[int], None] = lambda _: None,
        score: Callable[[Mapping[str, NDArray[np.float32]]], float | None] = lambda _: None,
    ) -> None:
        self.target, self.before, self._score = target, before, score
        self.trained: list[int] = []

    def score(self, weights: Mapping[str, NDArray[np.float32]], *, should_stop: Callable[[], bool]) -> float | None:
        return self._score(weights)

    def update(
        self,
        weights: Mapping[str, NDArray[np.float32]],
        round_number: int,
        *,
        entropy: Callable[[int], bytes],
        on_step: Callable[[int, int], None],
        should_stop: Callable[[], bool],
        correction: Mapping[str, NDArray[np.float32]] | None = None,
        towards: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> dict[str, NDArray[np.float32]]:
        self.before(round_number)
        self.trained.append(round_number)
        on_step(1, 1)
        return {name: (np.float32(self.target) - value) / np.float32(2) for name, value in weights.items()}

    def gradient_sum(
        self,
        weights: Mapping[str, NDArray[np.float32]],
        share: NoiseShare,
        *,
        entropy: Callable[[int], bytes],
        on_step: Callable[[int, int], None],
        should_stop: Callable[[], bool],
    ) -> dict[str, NDArray[np.int64]]:
        """One subject, whose gradient points from its target to the weights, and noise from the entropy."""
        self.before(len(self.trained) + 1)
        self.trained.append(len(self.trained) + 1)
        away = {name: value.astype(np.float64) - self.target for name, value in weights.items()}
        norm = np.sqrt(sum(float(np.sum(value**2)) for value in away.values()))
        factor = share.scale * min(1.0, share.max_grad_norm * (1 - 1e-6) / norm) if norm else 0.0
        rng = np.random.default_rng(int.from_bytes(entropy(16), "big"))
        spread = np.sqrt(2 * share.rate)
        on_step(1, 1)
        return {
            name: np.trunc(value * factor).astype(np.int64)
            + np.rint(rng.normal(0, spread, value.shape)).astype(np.int64)
            for name, value in sorted(away.items())
        }
