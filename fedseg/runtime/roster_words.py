"""A roster's fingerprint as people compare it: words to read aloud, hexadecimal digits to type in."""

from __future__ import annotations

import hashlib
import re
from functools import cache

from mnemonic import Mnemonic

from fedseg.errors import UsageError

WORD_BYTES = 24
WORDS_A_LINE = 6
DIGITS = 64


@cache
def _bip39() -> Mnemonic:
    return Mnemonic("english")


def words(fingerprint: bytes) -> tuple[str, ...]:
    """18 words of BIP-39's English list for the first 24 bytes of a fingerprint, a checksum of 6 bits included.

    Two rosters with the same words take about 2^96 tries; a second one for a given roster about 2^192.
    """
    return tuple(_bip39().to_mnemonic(fingerprint[:WORD_BYTES]).split())


def lines(fingerprint: bytes) -> tuple[str, ...]:
    """The words, six a line."""
    said = words(fingerprint)
    return tuple(" ".join(said[at : at + WORDS_A_LINE]) for at in range(0, len(said), WORDS_A_LINE))


def short_key(key: bytes) -> str:
    """A protocol key for tables: 16 hexadecimal digits of its SHA-256. What people compare are the words."""
    digits = hashlib.sha256(key).hexdigest()
    return " ".join(digits[at : at + 4] for at in range(0, 16, 4))


def parse_fingerprint(text: str) -> bytes:
    """A fingerprint as somebody typed it: 64 hexadecimal digits; spaces and capitals don't matter.

    Raises:
        UsageError: if it is anything else, saying what.
    """
    digits = "".join(text.split()).lower()
    hint = "`fedseg study roster DIR` prints it at the coordinator's: 64 hexadecimal digits"
    wrong = re.search(r"[^0-9a-f]", digits)
    if wrong and digits.isalpha():
        raise UsageError("these are words, not a fingerprint", where="--fingerprint", hint=hint)
    if wrong:
        raise UsageError(f"{wrong[0]!r} is no hexadecimal digit", where="--fingerprint", hint=hint)
    if len(digits) != DIGITS:
        what = f"a fingerprint has {DIGITS} hexadecimal digits, this one {len(digits)}"
        raise UsageError(what, where="--fingerprint", hint=hint)
    return bytes.fromhex(digits)
