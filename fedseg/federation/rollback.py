"""Back to the best model when a newer one has collapsed: a rule that every site computes from published sums alone.

The validation Dice of model r rides in the sum of the round that trains from model r, so a collapse is seen one round
late, and the model of the last round is never scored.

What a liar can do. In a masked sum nobody sees one site's score, and only the sums are checked (as many scorers as
contributors at most, a mean from 0 to 1): one liar can set the mean to anything in that range, so it can force a
rollback in any round, or hide a collapse. Where the server checks every upload by itself (plain mode), it moves the
mean by 1 / scorers at most: a `drop` above that can't be forced by one. A forced rollback costs the rounds since the
best model and is published; it brings no model that was not the study's own.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedseg.federation.exchange import Best


@dataclass(frozen=True)
class Judgement:
    """What a published sum says about the model that its round started from.

    Attributes:
        best: The best model so far.
        back: The round's sum is discarded and the next model is `best`; else the next model comes of the sum as usual.
    """

    best: Best | None
    back: bool = False


def judge(best: Best | None, base_model: str, score: float | None, drop: float) -> Judgement:
    """Compare the score of a round's base model with the best so far.

    All numbers are float64 made of published integers, so every site comes to the same answer bit for bit.

    A base model that is itself the best was scored before: after a rollback it is trained again. It is never gone
    back from, or a poor second score would discard every sum from then on; its newer score replaces the older, so
    that one score that was set too high by a liar does not make all later models look collapsed. A tie goes to the
    newer model, which has seen more training.

    Args:
        best: The best model before this round; None before the first score.
        base_model: Hash of the model that the round started from.
        score: Its mean Dice over the scorers in this round's sum, 0 to 1; None where there was no scorer, which
            changes nothing.
        drop: `aggregation.rollback.drop` of the plan.
    """
    if score is None:
        return Judgement(best)
    scored = Best(base_model, score)
    if best is None or best.model_hash == base_model or score >= best.score:
        return Judgement(scored)
    return Judgement(best, back=score < best.score - drop)
