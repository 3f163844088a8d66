"""What a privacy report says in words: about a plan, before any ledger is read.

Each sentence follows from the manifest alone. None says more than `docs/privacy.md` proves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fedseg.labels import scheme
from fedseg.plan.manifest import Manifest
from fedseg.privacy.accounting import accountant_name
from fedseg.privacy.events import Event
from fedseg.report.facts import Accounting, Mechanism
from fedseg.report.numbers import printed
from fedseg.report.privacy_course import Pretraining
from fedseg.runtime.privacy_trust import Shares
from fedseg.runtime.session import noise_share

UNIT = "one pregnancy (twins together) with all its scans, sessions, slices and patches"
FLAVOUR = "(epsilon, delta)-differential privacy, add or remove one subject"
NOT_COVERED = (
    "that a site takes part, when it answers, and how long it takes; the time of many private steps tells about how "
    "many subjects a site has",
    "failures, refusals and their reasons, from a fixed list that names no patient",
    "the number of subjects in the plan (public_subjects), which is a public, rounded constant",
    "what can be learned about a patient without that patient's own scans: of the population, or of relatives",
    "a patient whose scans come back under another pseudonym and reconstructed anew: neither id nor content is known "
    "again, so what was spent before does not count, unless participants.tsv gives one stable subject_key to both",
    "anything that a person at the site tells or sends by other means, and what its own screen shows",
)
OFF = (
    "Privacy is off: this study trains without differential privacy. The model may remember single subjects, and no "
    "epsilon bounds what can be learned about them."
)
UNKNOWN = (
    "What was spent is not known: a privacy ledger is missing or broken. Nothing is promised until it is restored."
)
TWO_SITES = (
    "A subject treated at two sites is in two ledgers: what both have spent on it composes, and no site can know of it."
)
SEVERAL_IDS = (
    "A subject that a site has under several ids, in one study or found out between two, may have spent more than is "
    "said here, past the plan's budget too. How much shows on that site's own screen alone: it would tell of single "
    "subjects."
)
CLAIMED = (
    "Figures in a study's report are what its sites have told, and at least what the server has seen of them; only a "
    "site can check its own ledger."
)
DISTRIBUTED_SITES = (
    "A subject treated at k sites moves the pooled sum by up to k C, not C: its guarantee is that of noise k times "
    "smaller, and no site can know of it."
)
TUNING = (
    "A trial run for tuning is a study of its own on the same ledger: it is charged like any other, and counts in the "
    "hospital's lifetime figure and not in this study's."
)
VALIDATION = {
    "last": "No score on private subjects is sent or used to choose a model: the last model is released.",
    "average": (
        "No score on private subjects is sent or used to choose a model: the moving average of the models is released."
    ),
    "rollback": (
        "The mean Dice over private validation subjects is summed in each round and may choose the model that training "
        "goes on from; nothing bounds what that tells."
    ),
}
MOVES = "what the sites send, added up, moves the model; nothing that a site trains stays there"
STAYS = {
    "scaffold": "what the sites send, added up, moves the model; each site corrects its steps by what it keeps to "
    "itself, which is made of what it has sent and of published numbers",
    "fedbn": "what the sites send, added up, moves the model, but for scale and shift of normalisation: these train "
    "with all others, in a private study under the same clip and noise, and stay at each site in a personal model that "
    "is never sent",
    "ditto": "what the sites send, added up, moves the model; beside it each site trains a personal model that is "
    "never sent, and that no clip or noise protects",
}
FROM_SEED = "Round 1 starts from random weights, made from the plan's public seed."
FROM_FILE = (
    "what it was trained on, and what protects those patients, are the words of the model file that the coordinator "
    "started from: its hash is checked, its words are the coordinator's, and no site can check them"
)
UNPROTECTED_START = (
    "WARNING: the first model was trained on patients without differential privacy, or its file does not say how. "
    "Every model of this study contains what that one tells of its patients, and no epsilon of this report bounds it: "
    "neither for them, nor for a patient of this study who was among them."
)
UNPROTECTED_RISK = (
    "First model: the released models contain what the model that round 1 started from tells of the patients it was "
    "trained on. Nothing bounds that, whatever epsilon says of those who took part in this study."
)
RANDOMNESS = (
    "Noise, and which subjects a step draws, come from the operating system's entropy (AES-256 in counter mode, keyed "
    "by it). No option sets it, no seed repeats it, none of it is stored.",
)
FLOATING_POINT = (
    "Gaussian noise is floating-point: norm, sum and noise in float64, a clip of C (1 - 1e-6), and a fixed grid before "
    "anything leaves. That mitigates known attacks on floating-point noise; it is no proof against them."
)
INTEGERS = (
    "Skellam noise is added to integers, so the sensitivity is exact and nothing is rounded after. The sampler works "
    "in float64 and is not exact, and no bound is proven for what that costs: epsilon is that of the distribution that "
    "it comes close to."
)
NOT_PROMISED = (
    "That nothing at all can be learned about a patient: epsilon bounds how much, and a large epsilon bounds little.",
    "Whether the model is personal data. That is judged case by case (EDPB Opinion 28/2024); this report is evidence "
    "for that judgement and not its result.",
    "That the law is kept: lawful basis, information of patients and purpose are not the mathematics of this page.",
    "Anything about data that other software, people or studies without this ledger have made of the same scans.",
    "That the model is good or fair: noise costs accuracy, and most where few subjects are alike.",
)
PRIVATE_RISKS = (
    "Membership: the table of attackers says how well the best one can tell whether a patient took part. Where it is "
    "well above the false-positive rate, say so in the assessment.",
    "Failure of the bound: an attacker may gain as much as if, with chance delta, a subject had no protection at all. "
    "Over N0 subjects that is N0 delta of them on average, at most; over more, where a site has more than N0, more.",
    "Figures before the end: what was spent so far is a reading. That a study is stopped, extended or followed by "
    "another is decided by people who have seen its models, and the theorem is of a plan that was fixed before. The "
    "firm figure is the plan's budget.",
    "Software: the figures hold if the program does what it says. The audit tests that on made-up subjects and can "
    "prove errors, not their absence.",
    "A ledger that is set back to an older copy is noticed where a newer head is known: beside the data folder, in the "
    "home folder of whoever runs the client, and at a server that has countersigned one. Who sets back all of these "
    "sets it back unseen.",
)
OFF_RISKS = (
    "The model, each site's updates and their sums may give away single patients (membership, and parts of scans). "
    "Secure aggregation hides updates from the server; it bounds nothing of what sums and models tell.",
)


def claim(manifest: Manifest, whose: str, largest: float | None, shares: Shares | None) -> str:
    """The promise in one sentence.

    Args:
        manifest: The study.
        whose: What was sent and by whom, as in "site leuven".
        largest: The epsilon to name; None where it is not known.
        shares: What a distributed promise hangs on.
    """
    plan = manifest.plan
    if not plan.private:
        return OFF
    if largest is None:
        return UNKNOWN
    condition = "" if shares is None else f", as long as {shares.condition}"
    return (
        f"Whoever sees what {whose} sent in this study, the models included, can tell whether any one subject, known "
        f"there under one id, took part at most as well as epsilon {printed(largest)} at delta {plan.privacy.delta:g} "
        f"allows{condition}; the plan's budget is epsilon {plan.privacy.epsilon:g}."
    )


def notes(versions: Sequence[Manifest], perspective: str, shares: Shares | None) -> tuple[str, ...]:
    """What has to be said beside the claim.

    Args:
        versions: Of the plan, oldest first.
        perspective: Whose report it is.
        shares: What a distributed promise hangs on.
    """
    manifest = versions[-1]
    if not manifest.plan.private:
        return ()
    first = (UNPROTECTED_START,) if manifest.unprotected_start else ()
    several = DISTRIBUTED_SITES if manifest.plan.distributed else TWO_SITES
    beyond = () if shares is None else (shares.beyond,)
    told = (CLAIMED,) if perspective == "study" else ()
    return (*first, *_raised(versions), *beyond, several, SEVERAL_IDS, *told)


def _raised(versions: Sequence[Manifest]) -> tuple[str, ...]:
    budgets = [f"{version.plan.privacy.epsilon:g}" for version in versions]
    if len(set(budgets)) == 1:
        return ()
    return (
        f"The budget was changed by extensions: epsilon {budgets[0]} was agreed to first, then "
        f"{', then '.join(budgets[1:])}, each for all rounds together.",
    )


def mechanism(manifest: Manifest, shares: Shares | None) -> Mechanism | None:
    """How noise gets in; None without privacy.

    Args:
        manifest: The study.
        shares: What a distributed promise hangs on.
    """
    plan, sigma, share = manifest.plan, manifest.noise_multiplier, noise_share(manifest)
    if sigma is None:
        return None
    sampling = (
        "every subject in every step"
        if plan.privacy.sampling_rate == 1
        else "each subject by its own coin in each step (Poisson); an empty step still adds noise and is charged"
    )
    words = _local_words() if share is None else _distributed_words(share.honest)
    return Mechanism(
        **words,
        clipping=(
            f"one subject at a time: the mean gradient of its {plan.training.patches_per_subject} patches, brought to "
            "an L2 norm of at most C over all layers that train; a gradient that is not finite counts as zero"
        ),
        sampling=sampling,
        noise_multiplier=sigma,
        max_grad_norm=plan.privacy.max_grad_norm,
        sampling_rate=plan.privacy.sampling_rate,
        steps=plan.training.steps,
        patches=plan.training.patches_per_subject,
        dimension=manifest.dimension,
        noised=noised(manifest),
        honest_others=None if share is None else share.honest,
        colluders=None if shares is None else shares.colluders,
        tolerated=None if shares is None else shares.tolerated,
        scale=None if share is None else share.scale,
        integer_sensitivity=None if share is None else share.sensitivity,
        epsilon_one_more=None if shares is None else shares.one_more,
        epsilon_alone=None if shares is None else shares.alone,
    )


def _local_words() -> dict[str, str]:
    return {
        "name": "DP-SGD (Abadi et al. 2016) with one subject as the unit, at each site by itself",
        "noise": "Gaussian of standard deviation sigma C on each coordinate of each step's sum, at every site in full",
        "divisor": "q N0, constants of the plan; the true number of subjects enters nothing that leaves",
        "sensitivity": "C: adding or removing one subject moves a step's sum by at most C in L2",
        "several_sites": TWO_SITES,
    }


def _distributed_words(honest: int) -> dict[str, str]:
    return {
        "name": "one pooled DP-SGD step a round, over all sites' subjects",
        "noise": (
            "Skellam (a difference of two Poisson variables) on integers, a share from each site; the shares of any "
            f"{honest} honest sites together have the variance sigma^2 D2^2 that epsilon is computed from"
        ),
        "divisor": "q times the sum of the contributors' N0, constants of the plan",
        "sensitivity": (
            "D2 = S C: a clipped gradient times S, truncated toward zero, moves the integer sum by at most S C in L2"
        ),
        "several_sites": DISTRIBUTED_SITES,
    }


def accounting(events: Iterable[Event], steps: int, cross_check: float | None) -> Accounting:
    """How charges become epsilon.

    Args:
        events: All that were composed; before the first charge, the plan's.
        steps: Charged so far.
        cross_check: Epsilon by Renyi DP; None before the first charge.
    """
    accountant = accountant_name(events)
    pld = accountant == "PLD"
    return Accounting(
        accountant=accountant,
        accountant_description=(
            "privacy loss distributions (dp_accounting), rounded up"
            if pld
            else "Renyi differential privacy: the history holds Skellam noise, for which a Gaussian's loss "
            "distribution proves nothing"
        ),
        cross_check=cross_check,
        cross_check_description=(
            "the same charges by Renyi DP, a looser bound: below the headline it would show an error"
            if pld
            else "the headline itself is Renyi DP"
        ),
        composition=(
            f"all {steps} charged steps: each may depend on what came before, their noise, rate and number as if fixed "
            "in advance. Extensions, later studies and the decision to stop come after models were seen, so what was "
            "spent so far is a reading (an odometer); the firm figure is the plan's budget. A site's ledger composes "
            "for each subject every charge whose sampling frame names it, drawn or not, under whatever id"
        ),
        post_processing=(
            "everything after the noise sees noised sums and constants of the plan only: division, optimiser, "
            "masking, averaging over sites and rounds, the model and whatever is computed from it"
        ),
    )


def randomness(manifest: Manifest) -> tuple[str, ...]:
    """Where random numbers come from, and what is known to be imperfect in them."""
    if not manifest.plan.private:
        return ()
    return (*RANDOMNESS, INTEGERS if manifest.plan.distributed else FLOATING_POINT)


def pretraining(manifest: Manifest) -> Pretraining:
    """Where round 1 started."""
    init = manifest.init
    if init is None:
        return Pretraining(manifest.initial_model, FROM_SEED)
    return Pretraining(init.model_hash, init.trained_on, init.protection, FROM_FILE)


def noised(manifest: Manifest) -> int:
    """How many parameters are clipped and noised together: all that train, with those that stay at a site."""
    plan = manifest.plan
    if plan.strategy.name != "fedbn":
        return manifest.dimension
    from fedseg.training.network import trained_parameters  # noqa: PLC0415  # torch takes seconds, others need none

    return trained_parameters(plan.network.preset, scheme(plan.task).classes, plan.training.layers)


def strategy(manifest: Manifest) -> str:
    """How rounds move the study, and what of training stays at a site."""
    name = manifest.plan.strategy.name
    stays = STAYS.get(name)
    return f"{name}: {MOVES if stays is None else stays}"


def validation(manifest: Manifest) -> str:
    """What scores on private subjects are used for."""
    if manifest.plan.aggregation.rollback is not None:
        return VALIDATION["rollback"]
    return VALIDATION["last" if manifest.plan.training.average is None else "average"]


def risks(manifest: Manifest, shares: Shares | None) -> tuple[str, ...]:
    """What remains, in plain words, for a DPIA; `shares` is what a distributed promise hangs on."""
    if not manifest.plan.private:
        return OFF_RISKS
    others = () if shares is None else (f"Other sites: epsilon holds as long as {shares.condition}. {shares.beyond}",)
    first = (UNPROTECTED_RISK,) if manifest.unprotected_start else ()
    return (*first, *others, *PRIVATE_RISKS)
