"""The books of a unified KV cache: who covers which cells, what is free, what can be let go.

Running requests hold a native sequence each; what they have computed is published in a radix tree per realm, from
which later requests of the same realm borrow. Everything that must happen in the real cache is written down as an
effect, in order. Invariants: `used` never exceeds `capacity` as long as callers `reserve` before they `compute`; no
realm borrows from another; a cell of a running request is never evicted.
"""

from __future__ import annotations

from collections.abc import Hashable

import msgspec
from lathe.engine.scheduler.radix import Node, RadixTree
from lathe.engine.scheduler.spill import OWN, WORTH, Spill

LATER = 512
"""Idle cells above the limit that are let go after the next first token instead of before it."""
Realm = Hashable
"""Requests of one realm may share cells: same principal, same adapters."""


class Share(msgspec.Struct, frozen=True):
    """Let `target` cover positions [start, end) of `source` as well."""

    source: int
    target: int
    start: int
    end: int


class Drop(msgspec.Struct, frozen=True):
    """Take positions from `start` to `end` (None: all that follow) from a sequence."""

    sequence: int
    start: int = 0
    end: int | None = None


class Save(msgspec.Struct, frozen=True):
    """Copy a whole sequence to main memory, as `entry`."""

    sequence: int
    entry: int


class Restore(msgspec.Struct, frozen=True):
    """Replace what a sequence covers by a copy of `entry`, in cells of its own."""

    entry: int
    sequence: int


class Discard(msgspec.Struct, frozen=True):
    """Forget an entry."""

    entry: int


Effect = Share | Drop | Save | Restore | Discard


class Hold:
    """A running request's place in the cache."""

    __slots__ = ("computed", "node", "published", "realm", "sequence")

    def __init__(self, realm: Realm, sequence: int, node: Node) -> None:
        self.realm = realm
        self.sequence = sequence
        self.node = node
        self.published: int = node.end
        """How many tokens of it are in the tree."""
        self.computed: int = node.end
        """How many of its tokens have cells."""


class Ledger:
    """Cells, native sequences and the prefixes they hold."""

    def __init__(
        self,
        capacity: int,
        sequences: int,
        *,
        share: bool = True,
        evict_at_least: int = 64,
        idle_tokens: int | None = None,
        spill_tokens: int = 0,
        cut: bool | None = None,
    ) -> None:
        """Start with an empty cache.

        Args:
            capacity: cells.
            sequences: native sequences, numbered from 0; at least as many as requests run at once.
            share: whether prefixes may be shared; recurrent states cannot be cut.
            evict_at_least: tokens taken off a long leaf at a time, so that a full cache is not searched for every one.
            idle_tokens: cells that may wait for a next request while others compute (None: all).
            spill_tokens: how many tokens of evicted prefixes main memory may hold.
            cut: whether of a prefix that comes back the beginning alone is of use; None: as for sharing.
        """
        self.capacity = capacity
        self.effects: list[Effect] = []
        """To be carried out before the next batch, in order; whoever does takes them."""
        self._share = share
        self._evict_at_least = evict_at_least
        self._idle_tokens = capacity if idle_tokens is None else idle_tokens
        self._spill = Spill(spill_tokens, whole=not (share if cut is None else cut))
        self._free = list(range(sequences - 1, -1, -1))
        self._trees: dict[Realm, RadixTree] = {}
        self._cooled = True
        """Nothing has ended since the idle were counted."""
        self._private = 0
        """Computed cells of running requests that are not in a tree."""
        self._clock = 0

    # -- what is there -------------------------------------------------------------------------------------------
    @property
    def used(self) -> int:
        """Cells that hold something."""
        return self._private + self.cached

    @property
    def cached(self) -> int:
        """Tokens in all trees, borrowed or not."""
        return sum(tree.size for tree in self._trees.values())

    @property
    def nodes(self) -> int:
        """Runs of tokens in all trees."""
        return sum(1 for tree in self._trees.values() for _ in tree.nodes())

    def known(self, realm: Realm, tokens: list[int], limit: int) -> int:
        """How many of the first `limit` tokens could be borrowed."""
        tree = self._trees.get(realm)
        here = 0 if tree is None or not self._share else tree.match(tokens, limit)[1]
        return max(here, self._spill.find(realm, tokens, limit)[1])

    def room_for(self, realm: Realm, tokens: list[int], limit: int) -> tuple[int, int]:
        """What a new request would find.

        Returns:
            How many of its first `limit` tokens it could borrow, and how many cells could be had for the others:
            free ones and those of prefixes that neither a running request nor this one covers.
        """
        known, available = 0, self.capacity - self.used
        for of, tree in self._trees.items():
            uncovered = _uncovered(tree)
            available += sum(len(node.tokens) for node in uncovered)
            if of == realm and self._share:
                node, known = tree.match(tokens, limit)
                for above in _path(node):
                    if above in uncovered:
                        available -= min(above.end, known) - above.start
        return known, available

    # -- holds ---------------------------------------------------------------------------------------------------
    def open(self, realm: Realm, tokens: list[int], limit: int) -> Hold:
        """Begin a request: borrow what is known of its first `limit` tokens."""
        tree = self._trees.setdefault(realm, RadixTree())
        tree.users += 1
        hold = self._borrow(realm, tree, tokens, limit if self._share else 0)
        self._recall(hold, tokens, limit)
        return hold

    def _borrow(self, realm: Realm, tree: RadixTree, tokens: list[int], limit: int) -> Hold:
        """Share what is in the cache."""
        self._touch(tree.match(tokens, limit)[0])  # before leaves make way: what is borrowed goes last
        while not self._free:
            node, depth = tree.match(tokens, limit)
            oldest = self._oldest()
            assert oldest is not None, "more requests run than there are native sequences"
            if node.kept is not None and (depth == node.end or oldest[1] is node):
                self._trim(tree, node, depth - node.start)
                break
            self._evict(*oldest)
        node = tree.reach(tree.root, tokens, limit)
        if node.kept is not None:
            sequence, node.kept = node.kept, None
        else:
            sequence = self._free.pop()
            if node.parent is not None:
                self.effects.append(Share(tree.lender(node), sequence, 0, node.end))
        if node.parent is not None:
            node.running.add(sequence)
            self._touch(node)
        return Hold(realm, sequence, node)

    def _recall(self, hold: Hold, tokens: list[int], limit: int) -> None:
        """Bring back from main memory what the cache no longer has."""
        entry, matched = self._spill.find(hold.realm, tokens, limit)
        known = hold.computed
        if entry is None or matched - known < WORTH or not self.reserve(len(entry.tokens)):
            return
        self._spill.touch(entry)
        self.effects.append(Restore(entry.number, hold.sequence))
        if matched < len(entry.tokens):
            self.effects.append(Drop(hold.sequence, matched))
        lender = self._trees[hold.realm].other_lender(hold.node, hold.sequence) if known else None
        if lender is not None:
            self.effects.append(Drop(hold.sequence, 0, known))
            self.effects.append(Share(lender, hold.sequence, 0, known))
        hold.computed = matched
        self._private += matched - known
        self.publish(hold, tokens)

    def compute(self, hold: Hold, count: int) -> None:
        """Note that the next `count` tokens of a request now have cells."""
        hold.computed += count
        self._private += count

    def rewind(self, hold: Hold, computed: int) -> None:
        """Give back the cells of unpublished tokens from `computed` on."""
        assert hold.published <= computed <= hold.computed
        if computed < hold.computed:
            self.effects.append(Drop(hold.sequence, computed))
            self._private -= hold.computed - computed
            hold.computed = computed

    def undo(self, hold: Hold) -> None:
        """Clear what a batch that failed midway may have left behind the computed tokens."""
        self.effects.append(Drop(hold.sequence, hold.computed))

    def publish(self, hold: Hold, tokens: list[int]) -> None:
        """Offer everything computed so far to others of the realm."""
        if not self._share or hold.computed == hold.published:
            return
        tree = self._trees[hold.realm]
        before, start, end = hold.node, hold.published, hold.computed
        reached = tree.reach(before, tokens, end)
        if reached.end > start:
            # Someone computed the same tokens meanwhile: cover those cells instead of our own copies.
            self.effects.append(Drop(hold.sequence, start, reached.end))
            self.effects.append(Share(tree.lender(reached), hold.sequence, start, reached.end))
        node = tree.grow(reached, tokens, end, hold.sequence, self._clock)
        self._private -= end - start
        hold.published = end
        if node is not before:
            for held in (reached, node):
                if held.kept is not None:  # now a running sequence ends in or below it
                    self._release(held.kept)
                    held.kept = None
            node.running.add(hold.sequence)
            hold.node = node
            before.running.discard(hold.sequence)
            tree.tidy(before)
        self._touch(node)

    def close(self, hold: Hold, tokens: list[int]) -> None:
        """End a request; its tokens stay for others of the realm until their cells are needed."""
        tree = self._trees[hold.realm]
        tree.users -= 1
        if not self._share:
            self._private -= hold.computed
            self._save(hold.realm, hold.sequence, tokens[: hold.computed])
            self._release(hold.sequence)
        else:
            self.publish(hold, tokens)
            node = hold.node
            node.running.discard(hold.sequence)
            if node.parent is not None and not node.children and not node.running:
                node.kept = hold.sequence
            else:
                self._release(hold.sequence)
                tree.tidy(node)
        self._discard_if_empty(hold.realm)
        self._cooled = False

    def forget(self, realm: Realm) -> None:
        """Let go of everything of a realm that no running request uses."""
        tree = self._trees.pop(realm, None)
        if tree is not None:
            assert not tree.users
            for node in tree.nodes():
                if node.kept is not None:
                    self._release(node.kept)
        self.effects.extend(map(Discard, self._spill.forget(realm)))

    # -- room ----------------------------------------------------------------------------------------------------
    def reserve(self, cells: int) -> bool:
        """Make room for `cells` more, by evicting what was used longest ago; False when that is not enough."""
        while self.capacity - self.used < cells:
            oldest = self._oldest()
            if oldest is None:
                return False
            realm, leaf = oldest
            if self._spills(leaf):
                self._evict(realm, leaf)
                continue
            keep = len(leaf.tokens) - max(cells - (self.capacity - self.used), self._evict_at_least)
            if keep > 0:
                self._trim(self._trees[realm], leaf, keep)
            else:
                self._evict(realm, leaf)
        return True

    def lend(self, cells: int, sequences: int) -> list[int] | None:
        """Native sequences for a computation that leaves nothing behind and ends before the next plan is made.

        Returns:
            Sequences, for `take_back`; None where so many, or so many cells, cannot be had.
        """
        if not self.reserve(cells):
            return None
        while len(self._free) < sequences:
            oldest = self._oldest()
            if oldest is None:
                return None
            self._evict(*oldest)
        return [self._free.pop() for _ in range(sequences)]

    def take_back(self, sequences: list[int]) -> None:
        """End a loan; whoever borrowed has emptied the sequences."""
        self._free += reversed(sequences)

    def cool(self, *, hurry: bool = False) -> None:
        """Let go of what has waited longest, when more waits than may: every batch of others pays for it.

        A conversation that is alone thus keeps its cells from turn to turn.

        Args:
            hurry: all that run wait for their first token, and copying to main memory takes milliseconds: some more
                may wait until later.
        """
        if self._cooled:
            return
        most = self._idle_tokens + LATER if hurry else self._idle_tokens
        idle = self._idle()
        while idle > most and (oldest := self._oldest()) is not None:
            self._evict(*oldest)
            idle = self._idle()
        self._cooled = idle <= self._idle_tokens or not hurry

    def _oldest(self) -> tuple[Realm, Node] | None:
        """The leaf of the cache that was used longest ago."""
        oldest: tuple[Realm, Node] | None = None
        for realm, tree in self._trees.items():
            for node in tree.nodes():
                if node.kept is not None and (oldest is None or node.used_at < oldest[1].used_at):
                    oldest = realm, node
        return oldest

    def _trim(self, tree: RadixTree, leaf: Node, keep: int) -> None:
        """Free the end of a leaf of the cache."""
        assert leaf.kept is not None
        if keep < len(leaf.tokens):
            tree.trim(leaf, keep)
            self.effects.append(Drop(leaf.kept, leaf.end))

    def _evict(self, realm: Realm, leaf: Node) -> None:
        """Free a leaf of the cache; a parent that becomes one inherits its sequence."""
        tree, sequence = self._trees[realm], leaf.kept
        assert sequence is not None
        if self._spills(leaf):
            self._save(realm, sequence, tree.path(leaf))
        parent = tree.remove(leaf)
        if parent.parent is not None and not parent.children and not parent.running:
            self.effects.append(Drop(sequence, parent.end))
            parent.kept = sequence
        else:
            self._release(sequence)
            tree.tidy(parent)
        self._discard_if_empty(realm)

    def _spills(self, leaf: Node) -> bool:
        """Whether a leaf goes to main memory: enough of its path must be its own, for the whole path is copied."""
        return self._spill.takes(leaf.end) and len(leaf.tokens) >= WORTH and OWN * len(leaf.tokens) >= leaf.end

    def _save(self, realm: Realm, sequence: int, tokens: list[int]) -> None:
        entry, gone = self._spill.add(realm, tokens)
        self.effects.extend(map(Discard, gone))
        if entry is not None:
            self.effects.append(Save(sequence, entry))

    def _idle(self) -> int:
        """Cells of trees that no running request covers."""
        return sum(len(node.tokens) for tree in self._trees.values() for node in _uncovered(tree))

    def _discard_if_empty(self, realm: Realm) -> None:
        tree = self._trees[realm]
        if not tree.users and not tree.size:
            del self._trees[realm]

    def _release(self, sequence: int) -> None:
        self.effects.append(Drop(sequence))
        self._free.append(sequence)

    def _touch(self, node: Node) -> None:
        self._clock += 1
        for above in _path(node):
            above.used_at = self._clock


def _uncovered(tree: RadixTree) -> set[Node]:
    """Nodes that no running request covers."""
    nodes = set(tree.nodes())
    for node in list(nodes):
        if node.running:
            nodes.difference_update(_path(node))
    return nodes


def _path(node: Node) -> list[Node]:
    """The node and all above it."""
    path = [node]
    while node.parent is not None:
        node = node.parent
        path.append(node)
    return path
