"""A radix tree over tokens: which prefixes are in the KV cache, and which native sequence covers each.

    root --"You are a helpful"--> n1 --" cat"--> n2  {sequence 3}
                                    '-" dog"--> n3  {sequence 5}

A native sequence covers the whole path from the root to the node that it *ends* in, so any sequence that ends at or
below a node can lend the node's cells. Invariants, checked by `audit`: no two children of a node begin with the same
token; in a leaf either running sequences end or one is kept for the cache, and nowhere else is one kept; `size` is the
number of tokens on all edges, which is the number of cells that the tree accounts for.
"""

from __future__ import annotations

from collections.abc import Iterator


def common_prefix(left: list[int], right: list[int], left_from: int = 0, right_from: int = 0) -> int:
    """Count equal tokens from the given starts, by comparing slices: the interpreter sees few of the tokens."""
    limit = min(len(left) - left_from, len(right) - right_from)
    same, step = 0, 32

    def equal(start: int, end: int) -> bool:
        return left[left_from + start : left_from + end] == right[right_from + start : right_from + end]

    while same < limit:
        step = min(step, limit - same)
        if equal(same, same + step):
            same += step
            step *= 2
            continue
        while step > 1:  # the first difference is among the next `step` tokens
            half = step // 2
            if equal(same, same + half):
                same += half
                step -= half
            else:
                step = half
        return same
    return same


class Node:
    """A run of tokens on the edge that leads here, and what ends here."""

    __slots__ = ("children", "kept", "parent", "running", "start", "tokens", "used_at")

    def __init__(self, parent: Node | None, tokens: list[int], used_at: int) -> None:
        self.parent = parent
        self.tokens = tokens
        self.start: int = 0 if parent is None else parent.end
        """Depth in tokens of the beginning of the edge."""
        self.children: dict[int, Node] = {}
        self.running: set[int] = set()
        """Native sequences of running requests that end exactly here."""
        self.kept: int | None = None
        """The native sequence that holds this leaf for the cache."""
        self.used_at = used_at

    @property
    def end(self) -> int:
        """Depth in tokens of the end of the edge."""
        return self.start + len(self.tokens)


class RadixTree:
    """The prefixes of one realm: one principal, one set of adapters."""

    def __init__(self) -> None:
        self.root = Node(None, [], 0)
        self.size = 0
        self.users = 0
        """Running requests of the realm."""

    def match(self, tokens: list[int], end: int, node: Node | None = None) -> tuple[Node, int]:
        """Follow `tokens[:end]` down from `node`, which must lie on their path.

        Returns:
            The last node touched, and how many tokens matched: a depth inside or at the end of that node.
        """
        node = node or self.root
        depth = node.end
        while depth < end:
            child = node.children.get(tokens[depth])
            if child is None:
                break
            same = min(common_prefix(child.tokens, tokens, 0, depth), end - depth)
            node, depth = child, depth + same
            if same < len(child.tokens):
                break
        return node, depth

    @staticmethod
    def lender(node: Node) -> int:
        """A sequence that covers `node`."""
        while not node.running and node.kept is None:
            node = next(iter(node.children.values()))
        return next(iter(node.running)) if node.kept is None else node.kept

    @staticmethod
    def other_lender(node: Node, sequence: int) -> int | None:
        """A sequence that covers `node`, besides the one given; None without any."""
        stack = [node]
        while stack:
            below = stack.pop()
            for one in below.running:
                if one != sequence:
                    return one
            if below.kept is not None:
                return below.kept
            stack.extend(below.children.values())
        return None

    @staticmethod
    def path(node: Node) -> list[int]:
        """All tokens from the root to the end of a node."""
        parts: list[list[int]] = []
        above: Node | None = node
        while above is not None:
            parts.append(above.tokens)
            above = above.parent
        return [token for part in reversed(parts) for token in part]

    @staticmethod
    def split(node: Node, depth: int) -> Node:
        """Return the node that ends at `depth`, which is within `node`'s edge; make it if need be."""
        keep = depth - node.start
        if keep == len(node.tokens):
            return node
        parent = node.parent
        assert parent is not None
        assert 0 < keep < len(node.tokens)
        upper = Node(parent, node.tokens[:keep], node.used_at)
        parent.children[upper.tokens[0]] = upper
        node.tokens = node.tokens[keep:]
        node.start = depth
        node.parent = upper
        upper.children[node.tokens[0]] = node
        return upper

    def reach(self, node: Node, tokens: list[int], end: int) -> Node:
        """Follow `tokens[:end]` down from `node` and return the last node that lies on them in full."""
        last, depth = self.match(tokens, end, node)
        return self.split(last, depth) if depth > last.start else last

    def grow(self, node: Node, tokens: list[int], end: int, sequence: int, used_at: int) -> Node:
        """Append `tokens[node.end:end]` below a node that `reach` returned; the caller moves its `sequence` there.

        Returns:
            The node where the path now ends: the same one, grown, where nothing but `sequence` ends in or below it.
        """
        added = tokens[node.end : end]
        if not added:
            return node
        self.size += len(added)
        if not node.children and node.running == {sequence}:
            node.tokens += added
            return node
        leaf = Node(node, added, used_at)
        node.children[added[0]] = leaf
        return leaf

    def trim(self, leaf: Node, keep: int) -> None:
        """Shorten a leaf's edge to its first `keep` tokens, at least one."""
        assert not leaf.children
        assert 0 < keep <= len(leaf.tokens)
        self.size -= len(leaf.tokens) - keep
        del leaf.tokens[keep:]

    def remove(self, leaf: Node) -> Node:
        """Take a leaf off the tree; return its parent."""
        parent = leaf.parent
        assert parent is not None
        assert not leaf.children
        self.size -= len(leaf.tokens)
        del parent.children[leaf.tokens[0]]
        return parent

    def tidy(self, node: Node) -> None:
        """Join a node in which nothing ends with its only child."""
        parent = node.parent
        if parent is None or node.running or len(node.children) != 1:
            return
        (child,) = node.children.values()
        child.tokens = node.tokens + child.tokens
        child.start = node.start
        child.used_at = max(child.used_at, node.used_at)
        child.parent = parent
        parent.children[child.tokens[0]] = child

    def nodes(self) -> Iterator[Node]:
        """Every node but the root, parents before their children."""
        stack = list(self.root.children.values())
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

    def audit(self) -> None:
        """Check the invariants; for tests."""
        size = 0
        for node in self.nodes():
            assert node.tokens
            assert node.parent is not None
            assert node.start == node.parent.end
            assert node.parent.children[node.tokens[0]] is node
            assert node.children or node.running or node.kept is not None
            assert node.kept is None or not (node.children or node.running)
            size += len(node.tokens)
        assert size == self.size
