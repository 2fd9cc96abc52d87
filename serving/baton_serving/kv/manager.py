"""Page lists of requests over one pool and one radix tree: the only door through which scheduling touches pages.

What a request's page list holds, by page index, in every KV group:

    index            page of       kept by
    [0, shared)      the tree      the path lock on `node` (full groups), the locks on `window_nodes` (window groups)
    [shared, count)  the request   its ownership in the pool

A request that comes to publish a page of tokens that the tree got from another request meanwhile keeps its own page
and publishes no further until it leaves: it never pins a page that it does not read, so its footprint is what it was
admitted for. When it leaves, what the tree lacks goes to the tree and the rest is freed.

In window groups, entries below `window_start` are NULL_PAGE: nothing reads them any more.
"""

from __future__ import annotations

from collections import deque

from baton_serving.errors import InternalError
from baton_serving.kv.allocator import NOBODY, RADIX, PageOwner, PagePool, Quarantine
from baton_serving.kv.layout import NULL_PAGE, KVLayout
from baton_serving.kv.radix import TOKEN_BYTES, CacheObserver, Hit, Node, RadixCache


class RequestPages(PageOwner):
    """The pages of one request, from admission until it is released. `pages[g][i]` is page index i in KV group g."""

    __slots__ = (
        "capacity",
        "count",
        "namespace",
        "node",
        "pages",
        "shared",
        "slide_at",
        "window_nodes",
        "window_start",
    )

    def __init__(self, name: str, namespace: str, groups: int) -> None:
        super().__init__(name)
        self.namespace = namespace
        self.pages: list[list[int]] = [[] for _ in range(groups)]
        self.shared = 0  # leading page indices whose pages belong to the tree
        self.count = 0  # page indices covered, the same in all groups
        self.capacity = 0  # tokens that fit: count × page size
        self.node: Node | None = None  # deepest tree node of the path, locked
        self.window_nodes: deque[tuple[int, Node]] = deque()  # tree nodes whose window pages are read, by page index
        self.window_start = 0
        self.slide_at = 0  # number of computed tokens at which the next window page falls out of sight


class KVManager:
    """Pool, tree and page lists together. `radix=False` finds and keeps nothing."""

    def __init__(
        self, layout: KVLayout, num_pages: int, radix: bool = True, observer: CacheObserver | None = None
    ) -> None:
        self.page_size = layout.page_size
        self.groups = len(layout.groups)
        self.windowed = [g for g, group in enumerate(layout.groups) if group.window is not None]
        self.full = [g for g, group in enumerate(layout.groups) if group.window is None]
        self.window = max((group.window or 0 for group in layout.groups), default=0)
        self.pool = PagePool(num_pages)
        self.tree = RadixCache(layout, self.pool, observer)
        self._radix = radix
        self._page_bytes = layout.page_size * TOKEN_BYTES
        self._live: dict[RequestPages, None] = {}

    @property
    def available(self) -> int:
        """Pages that `grow` can hand out: free ones and those that the tree would give up."""
        return self.pool.free + self.tree.evictable

    @property
    def live(self) -> list[RequestPages]:
        """All page lists that were opened and not released."""
        return list(self._live)

    def match(self, namespace: str, key: bytes, limit: int) -> Hit:
        """The longest prefix of `key` that the tree holds, at most `limit` tokens."""
        return self.tree.match(namespace, key, limit) if self._radix else Hit(None, None, 0, [])

    # The life of a page list

    def open(self, name: str, namespace: str, hit: Hit) -> RequestPages:
        """A page list that begins with the whole pages of `hit`, locked. Its tail is the caller's to copy."""
        held = RequestPages(name, namespace, self.groups)
        node = hit.node or self.tree.root(namespace)
        self.tree.lock(node)
        held.node = node
        held.count = held.shared = node.depth
        held.capacity = node.depth * self.page_size
        for pages in held.pages:
            pages.extend([NULL_PAGE] * node.depth)
        current = node
        while current.parent is not None:
            for g in self.full:
                held.pages[g][current.depth - 1] = current.pages[g]
            current = current.parent
        for window_node in hit.window:
            self.tree.lock_window(window_node)
            held.window_nodes.appendleft((window_node.depth - 1, window_node))
            for g in self.windowed:
                held.pages[g][window_node.depth - 1] = window_node.pages[g]
        self._set_window_start(held, held.count - len(hit.window))
        self._live[held] = None
        return held

    def pages_for(self, held: RequestPages, tokens: int, window_from: int = 0) -> int:
        """How many pages `grow` with the same arguments would take from the pool."""
        new = -(-tokens // self.page_size) - held.count
        if new <= 0:
            return 0
        hollow = min(new, max(0, window_from - held.count))
        return new * len(self.full) + (new - hollow) * len(self.windowed)

    def grow(self, held: RequestPages, tokens: int, window_from: int = 0) -> bool:
        """Cover `tokens` tokens, evicting as needed; False and no change when the pages are not there.

        In window groups, page indices below `window_from` stay NULL_PAGE.
        """
        new = -(-tokens // self.page_size) - held.count
        if new <= 0:
            return True
        hollow = min(new, max(0, window_from - held.count))
        need = new * len(self.full) + (new - hollow) * len(self.windowed)
        pages = self._allocate(need, held)
        if pages is None:
            return False
        if new == 1 and not hollow:  # the next page of a decoding request
            for group, page in zip(held.pages, pages, strict=True):
                group.append(page)
            held.count += 1
            held.capacity += self.page_size
            return True
        at = 0
        for g in range(self.groups):
            skip = hollow if g in self.windowed else 0
            held.pages[g].extend([NULL_PAGE] * skip)
            held.pages[g].extend(pages[at : at + new - skip])
            at += new - skip
        held.count += new
        held.capacity = held.count * self.page_size
        if hollow:
            self._set_window_start(held, held.count - new + hollow)
        return True

    def publish(self, held: RequestPages, key: bytes, tokens: int, leaving: bool = False) -> bool:
        """Put the whole pages of the first `tokens` tokens of `key` into the tree; their KV must be computed.

        False: the tree had one of them from elsewhere, and this request stopped there. `leaving`: it is the last
        call for this list, which goes past such pages; the next request may go on where this one ends.
        """
        node = held.node
        if not self._radix or node is None:
            return False
        complete = True
        for i in range(node.depth, tokens // self.page_size):
            page_key = key[i * self._page_bytes : (i + 1) * self._page_bytes]
            if not leaving and node.child(page_key) is not None:
                complete = False
                break
            node, took_window = self.tree.descend(node, page_key, [group[i] for group in held.pages], held)
            if took_window:
                self.tree.lock_window(node)
                held.window_nodes.append((i, node))
        if node is not held.node:
            assert held.node is not None
            self.tree.lock(node)
            self.tree.unlock(held.node)
            held.node = node
        if leaving:
            for _, window_node in held.window_nodes:
                self.tree.mark_window_used(window_node)
        else:
            held.shared = node.depth
        return complete

    def slide(self, held: RequestPages, tokens: int) -> tuple[int, int]:
        """Let go of window pages that no query at position `tokens` or later sees.

        Returns the page indices [start, end) that are NULL_PAGE now and were not before. To be called when every
        launched step that reads them is over.
        """
        start, end = held.window_start, min(self.tree.first_needed(tokens), held.count)
        if end <= start:
            return start, start
        for g in self.windowed:
            pages = held.pages[g]
            self.pool.release([page for page in pages[start:end] if self._private(page, held)], held)
            pages[start:end] = [NULL_PAGE] * (end - start)
        while held.window_nodes and held.window_nodes[0][0] < end:
            self.tree.unlock_window(held.window_nodes.popleft()[1])
        self._set_window_start(held, end)
        return start, end

    def release(self, held: RequestPages) -> None:
        """Give everything back: private pages become free, tree pages lose this request's locks."""
        self.pool.release(self.private_pages(held), held)
        self._close(held)

    def quarantine(self, held: RequestPages, reason: str) -> Quarantine:
        """Like `release`, but the private pages stay out of reach until the quarantine is lifted.

        Tree pages are only unlocked: nobody writes to them.
        """
        quarantine = self.pool.quarantine(self.private_pages(held), held, reason)
        self._close(held)
        return quarantine

    def private_pages(self, held: RequestPages) -> list[int]:
        return [page for pages in held.pages for page in pages[held.shared :] if self._private(page, held)]

    def pin(self, node: Node) -> None:
        """Keep one node and all its pages, as the source of a copy, until `unpin`."""
        self.tree.lock(node)
        if self.windowed:
            self.tree.lock_window(node)

    def unpin(self, node: Node) -> None:
        if self.windowed:
            self.tree.unlock_window(node)
        self.tree.unlock(node)

    def flush(self) -> int:
        """Drop everything in the tree that no request uses; returns how many pages became free."""
        return self.tree.evict(self.tree.evictable)

    def check(self) -> None:
        """Raise InternalError, naming the leaking owner, unless every page is where the books say; O(total)."""
        self.pool.check()
        owned = self.pool.pages_by_owner()
        tree_pages = self.tree.pages()
        if set(tree_pages) != owned.get(RADIX, set()) or len(tree_pages) != len(set(tree_pages)):
            raise InternalError("the radix cache holds other pages than the pool says")
        quarantines = set(self.pool.quarantines())
        for owner, pages in owned.items():
            if owner in (NOBODY, RADIX) or owner in quarantines:
                continue
            if owner not in self._live:
                raise InternalError(f"{len(pages)} pages leaked by {owner.name}, which is gone")
        for held in self._live:
            private = self.private_pages(held)
            if set(private) != owned.get(held, set()) or len(private) != len(set(private)):
                raise InternalError(f"{held.name} lists other pages than the pool says it owns")
        if not self._live and self.tree.locked():
            raise InternalError(f"{self.tree.locked()} radix nodes are locked though no request is there")
        if not self._live and self.tree.evictable != len(tree_pages):
            raise InternalError(f"{len(tree_pages)} cached pages, but {self.tree.evictable} counted as evictable")

    def _allocate(self, count: int, owner: PageOwner) -> list[int] | None:
        pages = self.pool.allocate(count, owner)
        if pages is None:
            missing = count - self.pool.free
            if missing <= self.tree.evictable:
                self.tree.evict(missing)
                pages = self.pool.allocate(count, owner)
        return pages

    def _close(self, held: RequestPages) -> None:
        for _, node in held.window_nodes:
            self.tree.unlock_window(node)
        if held.node is not None:
            self.tree.unlock(held.node)
        held.node = None
        held.window_nodes.clear()
        held.pages = [[] for _ in range(self.groups)]
        held.count = held.capacity = 0
        del self._live[held]

    def _private(self, page: int, held: RequestPages) -> bool:
        return self.pool.owner(page) is held

    def _set_window_start(self, held: RequestPages, start: int) -> None:
        held.window_start = start
        held.slide_at = (start + 1) * self.page_size + self.window - 1
