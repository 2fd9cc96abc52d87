"""The radix tree: which token sequences have their KV in pages of the pool.

A node is one whole page of tokens and holds one page per KV group. Keys are token ids packed as 32-bit integers, so a
step down is one slice and one comparison of bytes. Each namespace (weights, adapter, cache salt) is a tree of its own.

Locks. A request locks the deepest node of its path; the ancestors are pinned through it, and eviction takes leaves
first, so nothing on the path can go. Pages of window groups are locked apart from that, node by node, because a
request needs only those of its last window: the others may go while the path stays, and the node is then "hollow".
A hit counts only as far as the last window before its end is whole.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from typing import Protocol

import xxhash

from baton_serving.errors import InternalError
from baton_serving.kv.allocator import PageOwner, PagePool
from baton_serving.kv.eviction import LruQueue
from baton_serving.kv.layout import NULL_PAGE, KVLayout

TOKEN_BYTES = 4


def pack(tokens: Sequence[int]) -> bytes:
    """Token ids as the tree's key."""
    return array("i", tokens).tobytes()


def common_tokens(a: bytes, b: bytes) -> int:
    """Length of the common prefix of two keys, in tokens."""
    low, high = 0, min(len(a), len(b)) // TOKEN_BYTES
    while low < high:
        middle = (low + high + 1) // 2
        if a[low * TOKEN_BYTES : middle * TOKEN_BYTES] == b[low * TOKEN_BYTES : middle * TOKEN_BYTES]:
            low = middle
        else:
            high = middle - 1
    return low


def block_hash(above: str | int, key: bytes) -> int:
    """Name of a block, one page of tokens: `above` is the block above it, or the namespace of a first block."""
    head = above.encode() if isinstance(above, str) else above.to_bytes(8, "little")
    return xxhash.xxh3_64_intdigest(head + key)


def block_hashes(namespace: str, key: bytes, page_size: int) -> list[int]:
    """Names of the blocks that whole pages of `key` make, from the first token on."""
    size = page_size * TOKEN_BYTES
    above: str | int = namespace
    blocks: list[int] = []
    for start in range(0, len(key) // size * size, size):
        above = block_hash(above, key[start : start + size])
        blocks.append(above)
    return blocks


class CacheObserver(Protocol):
    """Told of every block (one page of tokens) that enters or leaves the tree, in the order it happens.

    A block's hash covers its namespace and all tokens up to its end.
    """

    def stored(self, block: int) -> None: ...

    def removed(self, block: int) -> None: ...


class Node:
    """One page of tokens below its parent. Roots have no parent, no tokens and no pages."""

    __slots__ = (
        "block",
        "depth",
        "key",
        "keys",
        "namespace",
        "nodes",
        "pages",
        "parent",
        "refs",
        "serial",
        "used",
        "whole",
        "window_refs",
        "window_used",
    )

    def __init__(self, namespace: str, parent: Node | None, key: bytes, pages: list[int], serial: int) -> None:
        self.namespace = namespace
        self.parent = parent
        self.key = key
        self.pages = pages  # by KV group; NULL_PAGE in the window groups of a hollow node
        self.serial = serial
        self.depth: int = parent.depth + 1 if parent else 0  # pages from the root to the end of this node
        self.keys: list[bytes] = []  # of the children, sorted: exact and nearest look-ups are one bisection
        self.nodes: list[Node] = []
        self.refs = 0  # locks on this node, plus children with refs
        self.window_refs = 0  # requests that still read this node's window pages
        self.whole = True  # window pages are there
        self.used = 0  # tick of the last hit or insertion
        self.window_used = 0  # tick of the last hit whose window reached here, or of an insertion that ended here
        self.block = 0  # hash, when somebody observes

    def child(self, key: bytes) -> Node | None:
        keys = self.keys
        i = bisect_left(keys, key)
        return self.nodes[i] if i < len(keys) and keys[i] == key else None

    def nearest(self, key: bytes) -> tuple[Node | None, int]:
        """The child that shares most leading tokens with `key`, and how many: a neighbour in sorted order."""
        i = bisect_left(self.keys, key)
        best: Node | None = None
        most = 0
        for j in range(max(0, i - 1), min(i + 1, len(self.keys))):
            shared = common_tokens(self.keys[j], key)
            if shared > most:
                best, most = self.nodes[j], shared
        return best, most


class Hit:
    """What the tree holds of a key: whole pages down to `node`, then `tail_tokens` leading tokens of page `tail`.

    `window` are the nodes of the last window before the hit's end, by falling depth (empty without window groups).
    Valid until the tree changes, unless locked.
    """

    __slots__ = ("node", "tail", "tail_tokens", "window")

    def __init__(self, node: Node | None, tail: Node | None, tail_tokens: int, window: list[Node]) -> None:
        self.node = node
        self.tail = tail
        self.tail_tokens = tail_tokens
        self.window = window

    @property
    def page_count(self) -> int:
        return self.node.depth if self.node else 0


class _Leaves(LruQueue[Node]):
    """Leaves that nobody locks: they go whole."""

    __slots__ = ()

    def stamp(self, node: Node) -> int:
        return node.used

    def evictable(self, node: Node) -> bool:
        return node.refs == 0 and not node.nodes and node.parent is not None


class _Windows(LruQueue[Node]):
    """Nodes whose window pages nobody reads: they turn hollow. Pages that served no hit have stamp 0 and go first."""

    __slots__ = ()

    def stamp(self, node: Node) -> int:
        return node.window_used

    def evictable(self, node: Node) -> bool:
        return node.whole and node.window_refs == 0


class RadixCache:
    """The tree over one pool. `evictable` counts the pages that `evict` could free now."""

    def __init__(self, layout: KVLayout, pool: PagePool, observer: CacheObserver | None = None) -> None:
        self._pool = pool
        self._observer = observer
        self._page_size = layout.page_size
        self._page_bytes = layout.page_size * TOKEN_BYTES
        self._full = [g for g, group in enumerate(layout.groups) if group.window is None]
        self._windowed = [g for g, group in enumerate(layout.groups) if group.window is not None]
        self._window = max((group.window or 0 for group in layout.groups), default=0)
        self._roots: dict[str, Node] = {}
        self._tick = 0
        self._serial = 0
        self._leaves = _Leaves()
        self._windows = _Windows()
        self.evictable = 0

    # Look-up

    def match(self, namespace: str, key: bytes, limit: int) -> Hit:
        """The longest usable prefix of `key`, at most `limit` tokens; marks it as used just now."""
        path = self._walk(namespace, key, limit)
        count = self._usable(path)
        root = self._roots.get(namespace)
        node = path[count - 1] if count else root
        tail, shared = None, 0
        if node and count == len(path) and limit > count * self._page_size:
            end = min(limit * TOKEN_BYTES, (count + 1) * self._page_bytes)
            tail, shared = node.nearest(key[count * self._page_bytes : end])
            if tail and not tail.whole:
                tail, shared = None, 0
        first = self.first_needed(count * self._page_size)  # for whoever does without the tail, too
        hit = Hit(node, tail, shared, path[first:count][::-1] if self._windowed else [])
        self._touch(hit)
        return hit

    def match_path(self, namespace: str, key: bytes, limit: int) -> list[Node]:
        """The nodes of the whole-page hit, from the top; marks nothing. For policies that order a queue."""
        path = self._walk(namespace, key, limit)
        return path[: self._usable(path)]

    def first_needed(self, tokens: int) -> int:
        """Index of the first page of which a query at position `tokens` sees anything in a window group."""
        return max(0, tokens - self._window + 1) // self._page_size

    def _walk(self, namespace: str, key: bytes, limit: int) -> list[Node]:
        node = self._roots.get(namespace)
        path: list[Node] = []
        if node is None:
            return path
        size = self._page_bytes
        for start in range(0, min(limit * TOKEN_BYTES, len(key)) // size * size, size):
            node = node.child(key[start : start + size])
            if node is None:
                break
            path.append(node)
        return path

    def _usable(self, path: list[Node]) -> int:
        """How many pages of `path` make a hit: the longest prefix whose last window is whole."""
        if not self._windowed:
            return len(path)
        best = run = 0
        for count, node in enumerate(path, 1):
            run = run + 1 if node.whole else 0
            if run >= count - self.first_needed(count * self._page_size):
                best = count
        return best

    def _touch(self, hit: Hit) -> None:
        self._tick += 1
        node = hit.tail or hit.node
        while node is not None and node.used != self._tick:
            node.used = self._tick
            node = node.parent
        for node in hit.window:
            node.window_used = self._tick
        if hit.tail:
            hit.tail.window_used = self._tick

    # Locks

    def root(self, namespace: str) -> Node:
        """The root of a namespace, made when it is new; it lives while it is locked or has children."""
        root = self._roots.get(namespace)
        if root is None:
            self._serial += 1
            root = self._roots[namespace] = Node(namespace, None, b"", [], self._serial)
        return root

    def lock(self, node: Node) -> None:
        """Pin `node` and the path to it."""
        current: Node | None = node
        while current is not None:
            current.refs += 1
            if current.refs > 1:
                return
            if current.parent is not None:
                self.evictable -= len(self._full)
            current = current.parent

    def unlock(self, node: Node) -> None:
        current: Node | None = node
        while current is not None:
            current.refs -= 1
            if current.refs > 0:
                return
            if current.refs < 0:
                raise InternalError(f"a radix node of {current.namespace!r} was unlocked once too often")
            parent = current.parent
            if parent is not None:
                self.evictable += len(self._full)
            self._settle(current)
            current = parent

    def lock_window(self, node: Node) -> None:
        """Pin the window pages of this one node."""
        if node.window_refs == 0:
            self.evictable -= len(self._windowed)
        node.window_refs += 1

    def unlock_window(self, node: Node) -> None:
        node.window_refs -= 1
        if node.window_refs == 0:
            self.evictable += len(self._windowed)
            self._windows.push(node)

    # Insertion

    def descend(self, node: Node, key: bytes, pages: list[int], owner: PageOwner) -> tuple[Node, bool]:
        """The child of `node` for one page of tokens, made from `owner`'s private `pages` (by group) when it is new.

        Returns it and whether the tree took window pages of `owner`: for a new node, and for a hollow one, whose
        window pages are filled in. Pages that the tree has no use for stay with `owner`.
        """
        self._tick += 1
        child = node.child(key)
        if child is None:
            child = self._add(node, key, pages, owner)
            took = child.whole
        else:
            took = not child.whole and self._has_window(pages)
            if took:
                child.whole = True
                for g in self._windowed:
                    self._pool.cache(pages[g], owner)
                    child.pages[g] = pages[g]
        child.used = self._tick
        if took and self._windowed:
            self.evictable += len(self._windowed)
            self._windows.push(child)
        return child, took and bool(self._windowed)

    def mark_window_used(self, node: Node) -> None:
        """Say that a later hit may well end at `node`: its window pages age from now."""
        node.window_used = self._tick

    def _has_window(self, pages: list[int]) -> bool:
        return all(pages[g] != NULL_PAGE for g in self._windowed)

    def _add(self, parent: Node, key: bytes, pages: list[int], owner: PageOwner) -> Node:
        self._serial += 1
        child = Node(parent.namespace, parent, key, list(pages), self._serial)
        child.whole = self._has_window(pages)
        for g in self._full:
            self._pool.cache(pages[g], owner)
        for g in self._windowed:
            if child.whole:
                self._pool.cache(pages[g], owner)
            else:
                child.pages[g] = NULL_PAGE
        i = bisect_left(parent.keys, key)
        parent.keys.insert(i, key)
        parent.nodes.insert(i, child)
        self.evictable += len(self._full)
        self._leaves.push(child)
        if self._observer:
            child.block = block_hash(child.namespace if parent.parent is None else parent.block, key)
            self._observer.stored(child.block)
        return child

    # Eviction

    def evict(self, count: int) -> int:
        """Free at least `count` pages, least recently used first, or all that can go; returns how many went."""
        free_before = self._pool.free
        while self._pool.free - free_before < count:
            leaf = self._leaves.peek()
            window = self._windows.peek() if self._windowed else None
            if leaf and (window is None or leaf.used <= window.window_used):
                self._leaves.pop()
                parent = leaf.parent
                self._remove(leaf)
                if parent is not None:
                    self._settle(parent)
            elif window:
                self._windows.pop()
                self._hollow(window)
                self._settle(window)
            else:
                break
        return self._pool.free - free_before

    def _hollow(self, node: Node) -> None:
        node.whole = False
        self.evictable -= len(self._windowed)
        for g in self._windowed:
            self._pool.evict(node.pages[g])
            node.pages[g] = NULL_PAGE

    def _remove(self, node: Node) -> None:
        if node.whole and self._windowed:
            self._hollow(node)
        for g in self._full:
            self._pool.evict(node.pages[g])
        self.evictable -= len(self._full)
        parent = node.parent
        assert parent is not None
        i = bisect_left(parent.keys, node.key)
        del parent.keys[i], parent.nodes[i]
        node.parent = None
        if self._observer:
            self._observer.removed(node.block)

    def _settle(self, node: Node) -> None:
        """See to a node that lost its last lock, child or window: a leaf waits for eviction, dead wood goes at once.

        A hollow leaf is dead, since no hit can end there; so is an empty root.
        """
        current: Node | None = node
        while current is not None and not current.refs and not current.nodes:
            parent = current.parent
            if parent is None:
                if self._roots.get(current.namespace) is current:
                    del self._roots[current.namespace]
                return
            if current.whole or self._window == 1:
                self._leaves.push(current)
                return
            self._remove(current)
            current = parent

    # Checks

    def walk(self) -> list[Node]:
        """All nodes but the roots, parents first; O(nodes)."""
        stack = list(self._roots.values())
        found: list[Node] = []
        while stack:
            node = stack.pop()
            stack.extend(node.nodes)
            if node.parent is not None:
                found.append(node)
        return found

    def pages(self) -> list[int]:
        """Every page that a node holds; O(nodes)."""
        return [page for node in self.walk() for page in node.pages if page != NULL_PAGE]

    def locked(self) -> int:
        """How many nodes somebody locks or reads; O(nodes)."""
        roots = sum(root.refs > 0 for root in self._roots.values())
        return roots + sum(node.refs > 0 or node.window_refs > 0 for node in self.walk())
