"""The running sum of one session, the same for masked vectors and for plain ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from fedseg.errors import SiteFault
from fedseg.secagg.messages import MaskedInput, Phase, SessionHeader, input_digest
from fedseg.secagg.roster import Roster


class RingSum:
    """The running sum of the contributions to one session, in the ring Z/2^32.

    Args:
        header: The session.
        session: What contributions are bound to: sid, or sid0 in plain mode.
        members: Who may contribute, sorted.
        roster: Their keys.
    """

    def __init__(self, header: SessionHeader, session: bytes, members: tuple[str, ...], roster: Roster) -> None:
        """Begin at zero."""
        self._session = session
        self._members = members
        self._roster = roster
        self._inputs: dict[str, MaskedInput] = {}
        self.total: NDArray[np.uint32] = np.zeros(header.length, dtype=np.uint32)

    @property
    def contributors(self) -> tuple[str, ...]:
        """Whose vector is in the sum, sorted."""
        return tuple(sorted(self._inputs))

    @property
    def inputs(self) -> Mapping[str, MaskedInput]:
        """What was said of each vector in the sum, by site."""
        return dict(sorted(self._inputs.items()))

    def add(self, message: MaskedInput, vector: NDArray[np.uint32]) -> bool:
        """Add a whole vector once its digest and signature are verified: it could not be taken out again.

        Returns:
            False where this contribution is in the sum already.

        Raises:
            SiteFault: Not a member, not signed, a second contribution that differs, a vector of another type or
                shape, or one that its digest doesn't fit.
        """
        site = message.site
        check_member(site, self._members, Phase.MASKED_INPUT)
        if site in self._inputs:
            check_repeat(site, Phase.MASKED_INPUT, self._inputs[site] == message)
            return False
        message.verify(self._session, self._roster)
        if vector.dtype != np.uint32 or vector.shape != self.total.shape:
            wrong = f"sent {vector.dtype} of {vector.shape} instead of uint32 of {self.total.shape}"
            raise SiteFault(site, Phase.MASKED_INPUT, wrong)
        if input_digest(self._session, site, self._members, vector) != message.digest:
            raise SiteFault(site, Phase.MASKED_INPUT, "the vector does not fit its digest")
        np.add(self.total, vector, out=self.total)
        self._inputs[site] = message
        return True


def check_member(site: str, members: Collection[str], phase: Phase) -> None:
    """Raise a `SiteFault` where `site` is not one of `members`."""
    if site not in members:
        raise SiteFault(site, phase, "it does not take part in this step")


def check_repeat(site: str, phase: Phase, same: bool) -> None:
    """Raise a `SiteFault` where a message came again and is not the `same`."""
    if not same:
        raise SiteFault(site, phase, "it sent a second message that differs from its first")
