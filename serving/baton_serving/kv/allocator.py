"""Who owns each KV page. Bookkeeping alone: the tensors live in the executors.

Every page has exactly one owner at a time, which gives the pool its conservation law:

    free + cached + in_use + quarantined == total

free: nobody. cached: the radix tree. in_use: one request, privately. quarantined: nobody may use it yet, because a
remote write may still land on it or a remote reader may not be done.
"""

from __future__ import annotations

from collections.abc import Iterable

from baton_serving.errors import InternalError
from baton_serving.kv.layout import NULL_PAGE


class PageOwner:
    """Whoever holds pages. Compared by identity, so that two attempts of one request are two owners."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class Quarantine(PageOwner):
    """Pages out of reach until their last possible writer or reader is known to be done."""

    __slots__ = ("pages", "reason")

    def __init__(self, name: str, reason: str, pages: list[int]) -> None:
        super().__init__(name)
        self.reason = reason
        self.pages = pages


NOBODY = PageOwner("nobody")
RADIX = PageOwner("radix cache")


class PagePool:
    """Pages 1 … `total`; page 0 is the null page, which nobody owns. All changes of ownership go through here."""

    __slots__ = ("_free", "_owner", "_quarantines", "cached", "in_use", "quarantined", "total")

    def __init__(self, total: int) -> None:
        if total < 1:
            raise ValueError(f"a page pool needs at least one page, not {total}")
        self.total = total
        self.cached = 0
        self.in_use = 0
        self.quarantined = 0
        self._free = list(range(total, NULL_PAGE, -1))
        self._owner = [NOBODY] * (total + 1)
        self._quarantines: dict[Quarantine, None] = {}

    @property
    def free(self) -> int:
        return len(self._free)

    def owner(self, page: int) -> PageOwner:
        return self._owner[page]

    def allocate(self, count: int, owner: PageOwner) -> list[int] | None:
        """`count` free pages now owned by `owner`, or None and no change when fewer are free."""
        free = self._free
        if count > len(free):
            return None
        if count == 1:
            page = free.pop()
            self._owner[page] = owner
            self.in_use += 1
            return [page]
        if count == 0:
            return []
        pages = free[-count:]
        pages.reverse()
        del free[-count:]
        for page in pages:
            self._owner[page] = owner
        self.in_use += count
        return pages

    def release(self, pages: Iterable[int], owner: PageOwner) -> None:
        """Free pages that `owner` holds privately. Raises InternalError when it does not hold one of them."""
        for page in pages:
            self._take(page, owner)
            self._owner[page] = NOBODY
            self._free.append(page)
            self.in_use -= 1

    def cache(self, page: int, owner: PageOwner) -> None:
        """Give a private page of `owner` to the radix tree."""
        self._take(page, owner)
        self._owner[page] = RADIX
        self.in_use -= 1
        self.cached += 1

    def evict(self, page: int) -> None:
        """Free a page of the radix tree."""
        self._take(page, RADIX)
        self._owner[page] = NOBODY
        self._free.append(page)
        self.cached -= 1

    def quarantine(self, pages: list[int], owner: PageOwner, reason: str) -> Quarantine:
        """Put private pages of `owner` out of reach; the result is what `lift` takes."""
        quarantine = Quarantine(owner.name, reason, pages)
        for page in pages:
            self._take(page, owner)
            self._owner[page] = quarantine
        self.in_use -= len(pages)
        self.quarantined += len(pages)
        self._quarantines[quarantine] = None
        return quarantine

    def lift(self, quarantine: Quarantine) -> None:
        """Free quarantined pages: their last possible writer or reader is done. InternalError the second time."""
        if quarantine not in self._quarantines:
            raise InternalError(f"the quarantine of {quarantine.name} was lifted before")
        del self._quarantines[quarantine]
        for page in quarantine.pages:
            self._owner[page] = NOBODY
        self._free.extend(quarantine.pages)
        self.quarantined -= len(quarantine.pages)

    def quarantines(self) -> list[Quarantine]:
        return list(self._quarantines)

    def pages_by_owner(self) -> dict[PageOwner, set[int]]:
        """All pages, by owner; O(total)."""
        owned: dict[PageOwner, set[int]] = {}
        for page in range(1, self.total + 1):
            owned.setdefault(self._owner[page], set()).add(page)
        return owned

    def check(self) -> None:
        """Raise InternalError when the conservation law or a counter does not hold; O(total)."""
        owned = self.pages_by_owner()
        held = {owner: len(pages) for owner, pages in owned.items()}
        free = held.pop(NOBODY, 0)
        cached = held.pop(RADIX, 0)
        quarantined = sum(held.pop(quarantine, 0) for quarantine in self._quarantines)
        counted = (free, cached, sum(held.values()), quarantined)
        stated = (self.free, self.cached, self.in_use, self.quarantined)
        if counted != stated or sum(stated) != self.total or set(self._free) != owned.get(NOBODY, set()):
            raise InternalError(
                f"page pool of {self.total}: (free, cached, in use, quarantined) are {counted} by owner, "
                f"{stated} by counter"
            )

    def _take(self, page: int, owner: PageOwner) -> None:
        if self._owner[page] is not owner:
            raise InternalError(f"page {page} belongs to {self._owner[page].name}, not to {owner.name}")
