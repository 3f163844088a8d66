"""When each site was last heard of."""

from __future__ import annotations

from collections.abc import Callable, Iterable


class Presence:
    """Who is there, by signs of life. One may come from any thread, while others ask.

    Args:
        clock: Seconds, monotonic.
        absent_after_s: Without a sign for so long a site counts as absent.
    """

    def __init__(self, clock: Callable[[], float], absent_after_s: float) -> None:
        self._clock, self._absent_after_s = clock, absent_after_s
        self._born = clock()
        self._seen: dict[str, float] = {}

    def alive(self, site: str) -> None:
        """A sign of life."""
        self._seen[site] = self._clock()

    def unheard(self, sites: Iterable[str]) -> list[str]:
        """Those that have never given a sign."""
        return [site for site in sites if site not in self._seen]

    def absent(self, sites: Iterable[str]) -> frozenset[str]:
        """Those without a sign for too long; one that has never given any is waited for from the start on."""
        oldest = self._oldest
        return frozenset(site for site in sites if self._seen.get(site, self._born) < oldest)

    def there(self) -> list[str]:
        """Sites that have given a sign lately."""
        oldest = self._oldest
        return [site for site, seen in tuple(self._seen.items()) if seen > oldest]

    @property
    def waited_s(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._born

    @property
    def _oldest(self) -> float:
        return self._clock() - self._absent_after_s
