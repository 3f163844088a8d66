"""What leaves a site, in one list: what it sends, what can be seen of it beside, and what a person may hand on.

`accounted`: depends on subjects' data, and in a private study the privacy ledger bounds what it tells of any one of
them. `declared`: may tell something of the hospital or its data that no ledger bounds, so it is told here and in the
privacy report. `nothing personal`: follows from public constants, random keys and what others have sent.

A document is listed as the program writes it. What stands on a site's own screen is in none of them: the number of
subjects, what single ones have spent, what other studies have cost, scores on its scans.

`tests/rpc/test_outgoing.py` compares the list with the protocol's request messages: a new field fails until it is here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from fedseg.plan.study import StudyPlan

Classification = Literal["accounted", "declared", "nothing personal"]


@dataclass(frozen=True)
class Outgoing:
    """One thing that leaves a site.

    Attributes:
        name: A field of the protocol, `Message.field`; or `connection.` and what can be seen beside the messages; or
            `document.` and what a person may hand on.
        what: What it is, in words.
        classification: See this module.
        why: Why it has that classification.
        where: In which studies it is sent at all.
    """

    name: str
    what: str
    classification: Classification
    why: str
    where: Literal["all", "private", "not private", "scored", "evaluated"] = "all"


_SESSION = "the name of the round's session: a hash of what the server itself has offered"
_SESSIONS = ("the site repeats what it was told",)

OUTGOING: tuple[Outgoing, ...] = (
    Outgoing(
        "UploadPart.chunk",
        "the update, or in distributed mode the noised sum of gradients; under secure aggregation masked, so that the "
        "server sees only sums",
        "accounted",
        "clipped for each subject, noised, and charged to the ledger before it is computed; masks come on top",
        "private",
    ),
    Outgoing(
        "UploadPart.chunk",
        "the update; under secure aggregation masked, so that the server sees only sums",
        "declared",
        "privacy is off: no bound holds on what a model, or a sum, tells of one subject",
        "not private",
    ),
    Outgoing(
        "UploadPart.chunk",
        "inside the sum: the mean Dice of the round's first model over this site's validation subjects",
        "declared",
        "it depends on validation subjects and is not noised; only plans that roll back have it, and no private one",
        "scored",
    ),
    Outgoing(
        "UploadPart.chunk",
        "once, at the end, and in an upload of its own: how many test subjects there are, and sums of their Dice, HD95 "
        "and volume similarity; under secure aggregation masked, so that only sums over sites are seen, by all",
        "declared",
        "it depends on subjects that never trained and is not noised; where all other contributors collude, or have no "
        "such subjects, they know this site's; only plans with federated evaluation have it, and no private one",
        "evaluated",
    ),
    Outgoing(
        "UploadHeader.digest",
        "a hash of session, sender, contributors and the vector as it is sent",
        "accounted",
        "it follows from the vector, and tells no more than that",
        "private",
    ),
    Outgoing(
        "UploadHeader.digest",
        "a hash of session, sender, contributors and the vector as it is sent",
        "declared",
        "it follows from the vector, and tells no more than that",
        "not private",
    ),
    Outgoing(
        "UploadHeader.signature",
        "this site's signature over that hash",
        "nothing personal",
        "made from the hash with the site's own key",
    ),
    Outgoing("UploadHeader.session", _SESSION, "nothing personal", *_SESSIONS),
    Outgoing("UploadHeader.size", "the length of the vector", "nothing personal", "a constant of the plan"),
    Outgoing(
        "ClaimLedgerRequest.rounds",
        "how many rounds the ledger has charged to this study",
        "nothing personal",
        "counts what the server has asked for and this site has computed; no subject and no other study",
        "private",
    ),
    Outgoing(
        "ClaimLedgerRequest.steps",
        "how many private steps the ledger has charged to this study",
        "nothing personal",
        "rounds times a constant of the plan",
        "private",
    ),
    Outgoing(
        "ClaimLedgerRequest.head",
        "hash of the ledger's newest charge",
        "declared",
        "a hash that hides what is in the ledger; but it changes with every record, so a server of two studies could "
        "see that one hospital is in both, and whoever is given the ledger can check it",
        "private",
    ),
    Outgoing(
        "ClaimLedgerRequest.previous",
        "the newest head that the server has countersigned",
        "nothing personal",
        "the site repeats what it was told",
        "private",
    ),
    Outgoing(
        "ClaimLedgerRequest.round",
        "the round that was charged",
        "nothing personal",
        "the server has opened it",
        "private",
    ),
    Outgoing(
        "ClaimLedgerRequest.attempt",
        "the attempt at it",
        "nothing personal",
        "the server has opened it",
        "private",
    ),
    Outgoing("AdvertiseKeysRequest.session", _SESSION, "nothing personal", *_SESSIONS),
    Outgoing(
        "AdvertiseKeysRequest.advertisement",
        "this site's name, two public keys for this one round, and a signature",
        "nothing personal",
        "random keys; in plain mode it is empty, and says only that the site takes part",
    ),
    Outgoing("ShareKeysRequest.session", _SESSION, "nothing personal", *_SESSIONS),
    Outgoing(
        "ShareKeysRequest.envelopes",
        "shares of this round's random keys, each sealed for one other site",
        "nothing personal",
        "random numbers, of one size for all sites",
    ),
    Outgoing("ConfirmContributorsRequest.session", _SESSION, "nothing personal", *_SESSIONS),
    Outgoing(
        "ConfirmContributorsRequest.consistency",
        "a signature over who takes part in the sum",
        "nothing personal",
        "over names that the server has sent",
    ),
    Outgoing("UnmaskRequest.session", _SESSION, "nothing personal", *_SESSIONS),
    Outgoing(
        "UnmaskRequest.shares",
        "shares of other sites' random keys, with which masks come off the sum, and off nothing else",
        "nothing personal",
        "random numbers; what they reveal is the sum, which is classified as the update is",
    ),
    Outgoing("WithdrawRequest.session", _SESSION, "nothing personal", *_SESSIONS),
    Outgoing(
        "WithdrawRequest.reason",
        "why the site leaves a round: budget, interrupted, refused or failed",
        "declared",
        "one of four words, no free text; but that training failed may depend on the data, and in which round a budget "
        "ends may hinge on one subject: under a lifetime limit on one of an earlier study, under any on one with "
        "several ids. Who knows what the earlier study cost then learns that such a subject is in this one",
    ),
    Outgoing(
        "PollRequest.session",
        "the session that the site holds keys for, or nothing",
        "declared",
        "the site repeats what it was told; but it shows when it has restarted",
    ),
    Outgoing(
        "GetManifestRequest.plan_hash",
        "an earlier version of the plan, by its hash",
        "nothing personal",
        "the server has made it",
    ),
    Outgoing(
        "DownloadModelRequest.model_hash", "the model that is fetched", "nothing personal", "the server has named it"
    ),
    Outgoing(
        "DownloadSumRequest.round", "the round whose sum is fetched", "nothing personal", "the server has named it"
    ),
    Outgoing(
        "HoldModelRequest.model_hash",
        "that the final model is stored here",
        "nothing personal",
        "the server has named it",
    ),
    Outgoing(
        "EnrolRequest.certificate_request",
        "a request for a certificate: the site's name in the plan and a public key, signed",
        "declared",
        "the name is the coordinator's, the key random; with it the server knows the hospital in every later call",
    ),
    Outgoing(
        "EnrolRequest.protocol_key", "the public half of the key that the site signs with", "nothing personal", "random"
    ),
    Outgoing(
        "connection.certificate",
        "the site's certificate, at first that of its invite (made from the invite's token, which never leaves)",
        "declared",
        "it names the hospital to the server in every call; the protocol hides nobody's taking part",
    ),
    Outgoing(
        "connection.address",
        "the site's network address, and gRPC's name and version",
        "declared",
        "the server and the network between see it; use the hospital's usual gateway where that matters",
    ),
    Outgoing(
        "connection.time",
        "when the site is there, when it answers and how long it takes",
        "declared",
        "not protected: how long training takes may depend on the machine, the number of scans read, and in "
        "principle on who was drawn for a step",
    ),
    Outgoing(
        "connection.size",
        "how many bytes are sent and how often",
        "nothing personal",
        "every message has a size that follows from plan and roster; none depends on a subject",
    ),
    Outgoing(
        "document.privacy_report",
        "the privacy report as JSON and as a page (annex)",
        "declared",
        "epsilon in it is that of the charges, whoever was in their frames; but their number may hinge on a budget, as "
        "WithdrawRequest.reason does; its head is that of the newest charge, as in ClaimLedgerRequest.head; it dates "
        "them to the day, as finer times would tell how long training took; and it shows the hospital's own limits",
        "private",
    ),
    Outgoing(
        "document.ledger_export",
        "the ledger for auditors: every charge of each study, with its day and hash",
        "declared",
        "no subject, no number of subjects, nothing composed for any one of them; but it names all studies of the "
        "hospital and the charges of each, whose number may hinge on a budget",
        "private",
    ),
    Outgoing(
        "document.audit_log",
        "this site's log of the protocol: keys, signatures, hashes, who was in which round, when and why it left one",
        "declared",
        "no scan and no update; of an evaluation the published sums over its contributors, among them how many "
        "subjects they scored; what it says of rounds and times tells no less than WithdrawRequest.reason and "
        "connection.time",
    ),
    Outgoing(
        "document.audit",
        "audit.json of fedseg privacy-audit",
        "nothing personal",
        "made of the plan and of made-up subjects; the membership test on real ones is on the screen alone",
        "private",
    ),
)


def leaving(plan: StudyPlan) -> Iterator[Outgoing]:
    """What leaves a site of one study."""
    sent = {
        "all": True,
        "private": plan.private,
        "not private": not plan.private,
        "scored": plan.aggregation.rollback is not None,
        "evaluated": plan.evaluation.federated,
    }
    return (each for each in OUTGOING if sent[each.where])
