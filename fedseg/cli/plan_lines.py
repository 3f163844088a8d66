"""What a study's plan says, a line each: for whoever makes the study, and for each site that agrees to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedseg.plan.manifest import Manifest

_LAYERS = {"all": "all layers", "head": "the head alone", "norms": "the normalisation layers and the head"}
_AUGMENT = {"none": "as they are", "light": "lightly varied", "strong": "strongly varied"}


def starting_line(manifest: Manifest) -> str:
    """What round 1 starts from, and whether somebody's privacy is at stake in it."""
    if manifest.init is None:
        return "weights drawn from the plan's seed: nobody's data is in them"
    return f"model {manifest.init.model_hash[:16]}, trained on {manifest.init.trained_on}"


def training_line(manifest: Manifest) -> str:
    """Which of the network's parameters train."""
    layers = manifest.plan.training.layers
    named, numbers = _LAYERS.get(layers, f"the {layers} alone"), f"{manifest.dimension:,} of {manifest.parameters:,}"
    if manifest.plan.strategy.name != "fedbn":
        return f"{named}: {numbers} parameters"
    # What stays here trains too; of these layers the head is what does not stay.
    shared = {"norms": "the head alone", "all": "all but normalisation"}.get(layers, "all of it but normalisation")
    return f"{named}; with the other sites {shared}: {numbers} parameters"


def images_line(manifest: Manifest) -> str:
    """What the network sees of the scans."""
    training = manifest.plan.training
    patches = f"patches of the scans, {_AUGMENT[training.augment]} (augment: {training.augment})"
    if not training.made_up:
        return patches
    return f"{patches}; {training.made_up:.0%} of them from images made up of the label maps (made_up)"


def strategy_line(manifest: Manifest) -> str:
    """How rounds move the study, with its numbers, and what of training stays at a site."""
    chosen = manifest.plan.strategy
    optimiser = ", ".join(
        f"{name} {value:g}"
        for name, value in chosen.model_dump(exclude={"name", "proximal"}).items()
        if value is not None
    )
    lines = {
        "fedavg": "fedavg: the mean of the sites' updates is added to the model",
        "fedprox": f"fedprox: training is pulled to each round's first model (mu {chosen.proximal})",
        "scaffold": "scaffold: sites correct the drift of their training; this site's correction stays here",
        "fedbn": "fedbn: scale and shift of normalisation stay here, in a personal model that is never sent",
        "ditto": f"ditto: a personal model is trained here beside the shared one (lambda {chosen.proximal}), in as "
        "many steps again; it is never sent",
    }
    return lines.get(chosen.name, f"{chosen.name}: an optimiser at the server takes the mean update ({optimiser})")


def evaluation_line(manifest: Manifest, subjects: int | None = None) -> str:
    """Whether the study scores its model at the end, on whom, and who can know what of it.

    Args:
        manifest: The study.
        subjects: How many test subjects there are at this site; None: it is not about one site.
    """
    if not manifest.plan.evaluation.federated:
        return "none at the end"
    who = "the test subjects" if subjects is None else f"{subjects} test"
    if manifest.plan.aggregation.mode != "secure":
        return f"{who}, at the end; PLAIN: the server sees how many they are, and their mean scores"
    return (
        f"{who}, at the end: their number and scores, added up over at least {manifest.quorum} sites, are published; "
        "if all others collude, or have none, they know this site's"
    )


def privacy_line(manifest: Manifest) -> str:
    """What bounds what can be learned of a subject."""
    privacy = manifest.plan.privacy
    if not manifest.plan.private:
        return "PRIVACY IS OFF: no differential privacy"
    begun = manifest.parent.last_round if manifest.parent else 0
    rounds = manifest.plan.schedule.rounds + privacy.reserve_rounds - begun
    after = f" after the {begun} that were begun before" if begun else ""
    return (
        f"epsilon {privacy.epsilon:g} at delta {privacy.delta:g} for each subject "
        f"(noise multiplier {manifest.noise_multiplier:g}, calibrated to {rounds} rounds{after})"
    )
