from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from fedseg.errors import Interrupted, RosterError, Unreachable, UsageError
from fedseg.federation.exchange import Enrolled
from fedseg.runtime import events, pinning, roster_words
from fedseg.runtime.pinning import Confirmed, Incomplete, Offer, Unconfirmed, await_roster, check_offer
from fedseg.secagg.roster import Roster
from fedseg.secagg.signing import public_half
from tests.runtime import toy

MANIFEST = toy.manifest(toy.plan())
PRIVATE = {site: bytes([number]) * 32 for number, site in enumerate(("a", "b", "c"), 1)}
KEYS = {site: public_half(key) for site, key in PRIVATE.items()}
SERVER_KEY, MINTED = public_half(b"S" * 32), public_half(b"M" * 32)


def enrolled(*absent: str, server: bytes = SERVER_KEY, **changed: bytes) -> Enrolled:
    """What an honest server says, less the absent sites, with changed keys."""
    return Enrolled(server, {site: key for site, key in {**KEYS, **changed}.items() if site not in absent})


def roster(**changed: bytes) -> Roster:
    return Roster(MANIFEST.study, bytes.fromhex(MANIFEST.plan_hash), SERVER_KEY, {**KEYS, **changed})


def offer(said: Enrolled, *, pinned: Roster | None = None, approved: bytes | None = None) -> Offer:
    return check_offer(said, MANIFEST, "a", key=KEYS["a"], pinned=pinned, approved=approved)


def refusal(said: Enrolled, *, pinned: Roster | None = None, approved: bytes | None = None) -> RosterError:
    with pytest.raises(RosterError) as caught:
        offer(said, pinned=pinned, approved=approved)
    return caught.value


# One offer.


def test_a_roster_is_whole_once_all_have_enrolled() -> None:
    assert offer(enrolled("b", "c")) == Incomplete(("b", "c"))
    assert offer(enrolled("b")) == Incomplete(("b",))
    assert offer(enrolled()) == Unconfirmed(roster())


def test_what_was_pinned_or_approved_is_confirmed() -> None:
    assert offer(enrolled(), pinned=roster()) == Confirmed(roster())
    assert offer(enrolled(), approved=roster().fingerprint) == Confirmed(roster())
    # An approval of another roster doesn't unpin this one.
    assert offer(enrolled(), pinned=roster(), approved=bytes(32)) == Confirmed(roster())


def test_a_minted_site_is_refused_until_approved() -> None:
    error = refusal(enrolled(b=MINTED), pinned=roster())
    new = roster(b=MINTED)
    assert error.what == (
        "the roster is not the one that was confirmed here: b has another key (it enrolled again, or somebody speaks "
        f"in its name); confirmed {roster().fingerprint.hex()}, offered {new.fingerprint.hex()}"
    )
    assert error.hint is not None
    assert "nothing was sent under it; ask whoever changed" in error.hint
    assert "fedseg client approve-roster --state DIR --fingerprint HEX" in error.hint
    assert offer(enrolled(b=MINTED), pinned=roster(), approved=new.fingerprint) == Confirmed(new)


def test_the_approval_of_one_change_is_not_that_of_another() -> None:
    wrong = roster(c=MINTED).fingerprint
    error = refusal(enrolled(b=MINTED), pinned=roster(), approved=wrong)
    assert "b has another key" in error.what
    assert f", approved since {wrong.hex()}" in error.what
    # The approval of the roster that is pinned says nothing of the change.
    assert "approved since" not in refusal(enrolled(b=MINTED), pinned=roster(), approved=roster().fingerprint).what


def test_going_back_to_an_earlier_roster_is_a_change() -> None:
    newer = roster(b=MINTED)
    error = refusal(enrolled(), pinned=newer, approved=newer.fingerprint)
    assert "b has another key" in error.what


def test_every_change_is_named() -> None:
    other = public_half(b"T" * 32)
    said = refusal(enrolled("c", server=other, b=MINTED), pinned=roster()).what
    assert "the server has another key (it was set up anew, or it is another server)" in said
    assert "b has another key (it enrolled again, or somebody speaks in its name)" in said
    assert "c is gone (the server has lost its enrolment, or hides it)" in said


def test_a_part_of_a_roster_cannot_be_approved() -> None:
    part = Roster(MANIFEST.study, bytes.fromhex(MANIFEST.plan_hash), SERVER_KEY, enrolled("c").keys)
    assert offer(enrolled("c"), approved=part.fingerprint) == Incomplete(("c",))
    assert "c is gone" in refusal(enrolled("c"), pinned=roster(), approved=part.fingerprint).what


def test_the_first_roster_must_be_the_approved_one() -> None:
    approved = roster(b=MINTED).fingerprint
    error = refusal(enrolled(), approved=approved)
    assert error.what.startswith(
        f"the server offers roster {roster().fingerprint.hex()}, approved here is {approved.hex()}: "
    )
    assert "somebody may have put a site of their own in a hospital's place" in error.what
    assert error.hint is not None
    assert "fedseg client approve-roster --state DIR --fingerprint HEX" in error.hint


def test_a_stranger_is_refused_even_when_approved() -> None:
    error = refusal(enrolled(z=MINTED), approved=roster(z=MINTED).fingerprint)
    assert error.what == "the server's roster holds z, whom the plan does not name"
    assert "nothing was sent; talk to the coordinator" in (error.hint or "")


@pytest.mark.parametrize("absent", [(), ("b", "c")])
def test_another_key_for_this_site_is_refused_even_when_approved_and_at_once(absent: tuple[str, ...]) -> None:
    error = refusal(enrolled(*absent, a=MINTED), approved=roster(a=MINTED).fingerprint)
    assert error.what == "the server gives this site, a, a key that is not its own"
    assert "somebody speaks in its name" in (error.hint or "")


def test_a_roster_without_this_site_is_refused() -> None:
    error = refusal(enrolled("a"))
    assert error.what == "the server's roster does not hold this site, a, though it has enrolled"


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (enrolled(b=KEYS["c"]), "two parties of the roster have one key"),
        (enrolled(server=KEYS["b"]), "two parties of the roster have one key"),
        (enrolled(b=bytes(32)), "a point of low order"),
        (enrolled(b=b"short"), "32 bytes, not 5"),
    ],
)
def test_a_roster_that_cannot_be_is_refused(said: Enrolled, why: str) -> None:
    error = refusal(said)
    assert error.what.startswith("the server offers a roster that cannot be: ")
    assert why in error.what
    assert error.hint == "nothing was sent; talk to the coordinator"


def test_another_plan_is_another_roster() -> None:
    other = toy.manifest(toy.plan(rounds=4))
    there = check_offer(enrolled(), other, "a", key=KEYS["a"], pinned=None, approved=None)
    assert isinstance(there, Unconfirmed)
    assert there.roster.fingerprint != roster().fingerprint


# Waiting, as `client join` does.


@dataclass
class Pins:
    protocol_key: bytes = PRIVATE["a"]
    roster: Roster | None = None
    approved: bytes | None = None

    def pin_roster(self, roster: Roster) -> None:
        self.roster = roster


@dataclass
class Scene:
    """One site that waits; what its server says comes from a list, the last of it for good."""

    pins: Pins = field(default_factory=Pins)
    stop: threading.Event = field(default_factory=threading.Event)
    lines: list[str] = field(default_factory=list)
    asked: list[Roster] = field(default_factory=list)

    def notify(self, event: events.Event) -> None:
        assert isinstance(event, events.Waiting)
        self.lines.append(event.reason)

    def wait(
        self, *said: Enrolled | Callable[[], Enrolled], answer: Callable[[Roster], bool] = lambda _: False
    ) -> Roster:
        script = list(said)

        def fetch() -> Enrolled:
            step = script.pop(0) if len(script) > 1 else script[0]
            return step() if callable(step) else step

        def ask(offered: Roster) -> bool:
            self.asked.append(offered)
            return answer(offered)

        return await_roster(self.pins, MANIFEST, "a", fetch, ask=ask, notify=self.notify, stop=self.stop)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinning, "POLL_S", 0.001)


def test_a_site_waits_for_the_others_and_pins_what_is_confirmed() -> None:
    scene = Scene()
    found = scene.wait(enrolled("b", "c"), enrolled("c"), enrolled(), answer=lambda _: True)
    assert found == scene.pins.roster == roster()
    assert scene.lines == ["b, c to enrol", "c to enrol"]
    assert scene.asked == [roster()]


def test_where_nobody_can_be_asked_an_approval_is_waited_for() -> None:
    scene = Scene()

    def approve() -> Enrolled:
        scene.pins.approved = roster().fingerprint
        return enrolled()

    assert scene.wait(enrolled(), enrolled(), approve) == scene.pins.roster == roster()
    assert scene.asked == [roster()]
    assert scene.lines == ["this site's operator to approve the roster"] * 2


def test_a_roster_that_changes_before_it_is_confirmed_is_shown_again() -> None:
    scene = Scene()
    changed = roster(b=MINTED)
    scene.wait(enrolled(), enrolled(b=MINTED), answer=lambda offered: offered == changed)
    assert scene.asked == [roster(), changed]
    assert scene.pins.roster == changed


def test_a_wrong_approval_ends_the_waiting() -> None:
    scene = Scene()

    def approve() -> Enrolled:
        scene.pins.approved = bytes(32)
        return enrolled()

    with pytest.raises(RosterError, match=f"approved here is {'00' * 32}"):
        scene.wait(enrolled(), approve)
    assert scene.pins.roster is None


def test_a_pinned_roster_asks_nobody() -> None:
    scene = Scene(Pins(roster=roster()))
    assert scene.wait(enrolled()) == roster()
    assert scene.asked == []


def test_a_changed_roster_is_never_asked_about() -> None:
    scene = Scene(Pins(roster=roster()))
    with pytest.raises(RosterError, match="b has another key"):
        scene.wait(enrolled(b=MINTED), answer=lambda _: True)
    assert (scene.asked, scene.pins.roster) == ([], roster())
    scene.pins.approved = roster(b=MINTED).fingerprint
    assert scene.wait(enrolled(b=MINTED)) == scene.pins.roster == roster(b=MINTED)


def test_no_is_not_yes_later() -> None:
    scene = Scene()

    def refuse(_: Roster) -> bool:
        raise RosterError("the roster was not confirmed")

    with pytest.raises(RosterError, match="not confirmed"):
        scene.wait(enrolled(), answer=refuse)
    assert scene.pins.roster is None


@pytest.mark.parametrize("said", [enrolled("b"), enrolled()])
def test_waiting_is_stopped_cleanly(said: Enrolled) -> None:
    scene = Scene()

    def last() -> Enrolled:
        scene.stop.set()
        return said

    with pytest.raises(Interrupted, match="stopped before a roster was confirmed: nothing was computed or sent"):
        scene.wait(last)
    assert scene.pins.roster is None


def test_a_server_that_is_away_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedseg.runtime.patience.FIRST_PAUSE_S", 0.001)
    scene = Scene()

    def away() -> Enrolled:
        raise Unreachable("no server answers")

    assert scene.wait(away, enrolled(), answer=lambda _: True) == roster()
    assert scene.lines == ["no server answers; trying again"]


# In mid-study.


def test_in_mid_study_an_approved_change_is_pinned_and_another_is_refused() -> None:
    pins = Pins(roster=roster())
    assert pinning.roster_in_force(pins, MANIFEST, "a", enrolled()) == roster()
    with pytest.raises(RosterError, match="b has another key"):
        pinning.roster_in_force(pins, MANIFEST, "a", enrolled(b=MINTED))
    pins.approved = roster(b=MINTED).fingerprint
    assert pinning.roster_in_force(pins, MANIFEST, "a", enrolled(b=MINTED)) == pins.roster == roster(b=MINTED)


@pytest.mark.parametrize("said", [enrolled(), enrolled("b")])
def test_in_mid_study_nothing_goes_on_unconfirmed(said: Enrolled) -> None:
    with pytest.raises(RosterError, match=r"nobody at this site has confirmed the roster \(compare it, then: fedseg"):
        pinning.roster_in_force(Pins(), MANIFEST, "a", said)


# Words and digits.


def test_the_words_are_those_of_bip_39() -> None:
    # BIP-39's own test vectors for 24 bytes, by Trezor.
    vectors: Mapping[str, str] = {
        "00" * 24: "abandon " * 17 + "agent",
        "7f" * 24: "legal winner thank year wave sausage worth useful " * 2 + "legal will",
        "80" * 24: "letter advice cage absurd amount doctor acoustic avoid " * 2 + "letter always",
        "ff" * 24: "zoo " * 17 + "when",
    }
    for entropy, words in vectors.items():
        assert roster_words.words(bytes.fromhex(entropy) + bytes(8)) == tuple(words.split())


def test_the_words_stand_for_the_first_24_bytes_in_lines_of_six() -> None:
    fingerprint = roster().fingerprint
    lines = roster_words.lines(fingerprint)
    assert [len(line.split()) for line in lines] == [6, 6, 6]
    assert " ".join(lines).split() == list(roster_words.words(fingerprint))
    for at in (0, 12, 23):
        changed = bytearray(fingerprint)
        changed[at] ^= 1
        assert roster_words.words(bytes(changed)) != roster_words.words(fingerprint)


def test_a_short_key_is_of_the_whole_key() -> None:
    shown = {roster_words.short_key(key) for key in (*KEYS.values(), MINTED, KEYS["a"][:31] + b"\0")}
    assert len(shown) == 5
    assert all(len(each.replace(" ", "")) == 16 for each in shown)


def test_a_fingerprint_is_read_as_people_type_it() -> None:
    fingerprint = bytes(range(32))
    text = fingerprint.hex()
    spaced = " ".join(text[at : at + 8] for at in range(0, 64, 8))
    for typed in (text, text.upper(), spaced, f"  {spaced.upper()}\n"):
        assert roster_words.parse_fingerprint(typed) == fingerprint


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "a fingerprint has 64 hexadecimal digits, this one 0"),
        ("ab" * 31, "a fingerprint has 64 hexadecimal digits, this one 62"),
        ("ab" * 33, "a fingerprint has 64 hexadecimal digits, this one 66"),
        ("12" * 31 + "1g", "'g' is no hexadecimal digit"),
        ("0x" + "ab" * 31, "'x' is no hexadecimal digit"),
        ("HEX", "these are words, not a fingerprint"),
        ("legal winner thank", "these are words, not a fingerprint"),
    ],
)
def test_a_mistyped_fingerprint_is_refused(text: str, what: str) -> None:
    with pytest.raises(UsageError) as caught:
        roster_words.parse_fingerprint(text)
    assert caught.value.what == what
    assert caught.value.where == "--fingerprint"
    assert "`fedseg study roster DIR` prints it" in (caught.value.hint or "")


@pytest.mark.parametrize("known", [{"pinned": roster()}, {"approved": bytes(32)}])
def test_the_hint_of_a_refused_roster_holds_the_words_to_compare(known: dict[str, Any]) -> None:
    hint = refusal(enrolled(b=MINTED), **known).hint or ""
    assert " ".join(roster_words.words(roster(b=MINTED).fingerprint)) in hint
    assert "compare with the other hospitals" in hint
