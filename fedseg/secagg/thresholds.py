"""How many sites must answer, share and contribute, as a function of the roster alone.

Bonawitz et al. 2017 (CCS, "Practical secure aggregation"), section 6.2: the variant against an active server.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedseg.errors import PlanError

MIN_SITES = 3
MAX_SITES = 100
MAX_PLAIN_SITES = 10_000


@dataclass(frozen=True)
class Thresholds:
    """The numbers that a session lives by; an instance that exists is valid.

    n counts the study's roster, which each site has pinned, and c is in the plan that each site has agreed to: neither
    is the server's to choose, or it would choose four helpers and a victim. A site that is away is a dropout, and none
    of the numbers shrinks because of it.

    t is the least with `2t > n + c`. Take two sets of t sites each, out of n: they share at least 2t - n > c, so at
    least one honest site. An honest site releases one kind of share for a peer, signs one list of survivors in a
    session, and unmasks one attempt of a round. So a server with c helpers never has t shares of both secrets of one
    site, nor t signatures on two lists, nor t answers to two attempts over one update. And whatever sum it unmasks, t
    sites have signed: at least t - c honest ones are in it.

    m is at least c + 2, so that two honest updates are in every sum after c helpers have subtracted their own, and at
    least 3, because each contributor can subtract its own. m = 2 is possible only at n = 3, c = 0: then each of two
    contributors reads the other's update. With c >= 1 the helper would do that for the server, and with n >= 4,
    t >= 3 sites must contribute anyway. It takes a sentence in the plan and the policy of every site. A plan that asks
    for a larger quorum has that for m.

    `t <= n` and `m <= n` follow from `c <= n - 2`.

    Args:
        n: Sites in the study's roster, taking part in the round or not.
        c: Sites assumed to collude with the server.
        t: Shares that reconstruct a secret; 0 marks the plain mode, where nothing is masked.
        m: The fewest contributors to a sum.

    Raises:
        PlanError: The numbers are not those that `of` or `plain` derive.
    """

    n: int
    c: int
    t: int
    m: int

    def __post_init__(self) -> None:
        """Refuse any numbers but the derived ones, so that no header can carry a threshold of 1."""
        if self.t == 0:
            _check_plain(self)
        else:
            _check_secure(self)

    @classmethod
    def of(cls, n: int, c: int | None = None, accept_two: bool = False, quorum: int | None = None) -> Thresholds:
        """Thresholds of secure aggregation over `n` sites.

        Args:
            n: Sites in the roster, 3 to 100.
            c: Colluding sites, 0 to n - 2; `ceil(n / 3) - 1` when left out.
            accept_two: Let two contributors make a sum; only at n = 3, c = 0.
            quorum: The plan's: where it is above max(t, m), the fewest contributors.

        Raises:
            PlanError: The roster is too small or too large, or `c`, `accept_two` or `quorum` does not fit it.
        """
        _check_roster(n)
        collusion = -(-n // 3) - 1 if c is None else c
        t, m = (n + collusion) // 2 + 1, 2 if accept_two else max(3, collusion + 2)
        return cls(n, collusion, t, m if quorum is None or quorum <= max(t, m) else quorum)

    @classmethod
    def plain(cls, n: int, quorum: int) -> Thresholds:
        """Thresholds of the plain ring sum: no shares, `quorum` contributors.

        Raises:
            PlanError: `n` is outside 1 to 10,000, or `quorum` outside 1 to n.
        """
        return cls(n, 0, 0, quorum)

    @property
    def quorum(self) -> int:
        """The fewest sites with which any step may go on: max(t, m)."""
        return max(self.t, self.m)

    @property
    def secure(self) -> bool:
        """Whether contributions are masked."""
        return self.t > 0


def _check_roster(n: int) -> None:
    if n < MIN_SITES:
        raise PlanError(
            f"secure aggregation needs at least {MIN_SITES} sites, this study has {n}",
            where="sites",
            hint="with two, each reads the other's update out of the sum: add a site, or set aggregation.mode: plain",
        )
    if n > MAX_SITES:
        raise PlanError(
            f"secure aggregation is made for at most {MAX_SITES} sites, this study has {n}",
            where="sites",
            hint="split the study, or set aggregation.mode: plain in a simulation",
        )


def _check_secure(numbers: Thresholds) -> None:
    n, c, t, m = numbers.n, numbers.c, numbers.t, numbers.m
    _check_roster(n)
    if not 0 <= c <= n - 2:
        raise PlanError(
            f"collusion {c} is impossible with {n} sites",
            where="aggregation.collusion",
            hint=f"at least two sites must be honest: 0 to {n - 2}",
        )
    if m == 2 and (n, c) != (3, 0):
        raise PlanError(
            f"two contributors can be accepted only with 3 sites and collusion 0, not with {n} and {c}",
            where="aggregation.accept_two_contributors",
            hint="leave it out: larger studies lose a site without it",
        )
    if t != (n + c) // 2 + 1 or not (m == 2 or max(3, c + 2) <= m <= n):
        raise PlanError(
            f"thresholds t = {t}, m = {m} are not those of {n} sites with collusion {c}",
            where="aggregation",
            hint=f"t = {(n + c) // 2 + 1}, m = {max(3, c + 2)} to {n}",
        )


def _check_plain(numbers: Thresholds) -> None:
    if not 1 <= numbers.n <= MAX_PLAIN_SITES:
        raise PlanError(f"a plain sum takes 1 to {MAX_PLAIN_SITES} sites, not {numbers.n}", where="sites")
    if numbers.c != 0 or not 1 <= numbers.m <= numbers.n:
        raise PlanError(
            f"quorum {numbers.m} is impossible with {numbers.n} sites",
            where="aggregation.quorum",
            hint=f"1 to {numbers.n}",
        )
