"""Gossip among simulated nodes: at once in the mesh, later by asking beside it.

Knows: gossipsub's rules and the size of its messages. Must not know: what operations mean.
Source: gossipsub 1.2 as `net.gossip` and `net.fast.pubsub` run it: degrees, a heartbeat each second, ids of the last
three heartbeats told beside the mesh, messages kept for five. Meshes do not change while links stay.
"""

from __future__ import annotations

from collections.abc import Callable

from converge_node.sim.network import VirtualNetwork
from converge_p2p.core import limits

HEARTBEAT_MS = 1000
WINDOW = 3
HISTORY = 5

ENVELOPE_BYTES = 206
"""Around what is published: author, number, topic, signature, and the length on the stream."""
IHAVE_BYTES, IWANT_BYTES, IDONTWANT_BYTES = 90, 6, 6
"""A control message without ids."""
ID_BYTES, RAW_ID_BYTES = 94, 48
"""An id in ihave and iwant, which carry it in hexadecimal, and in idontwant."""


class Message:
    """A gossiped message, shared by all nodes.

    Attributes:
        seen: by node, 1 if it was taken there.
        unwanted: by node and neighbour, `node * nodes + neighbour`: the neighbour has it already.
    """

    __slots__ = ("author", "operations", "seen", "size", "spares", "unwanted")

    def __init__(self, author: int, operations: tuple[bytes, ...], data_bytes: int, nodes: int) -> None:
        self.author = author
        self.operations = operations
        self.size = data_bytes + ENVELOPE_BYTES
        self.spares = data_bytes >= limits.GOSSIP_IDONTWANT_BYTES_MIN
        self.seen = bytearray(nodes)
        self.unwanted: set[int] = set()


class Gossip:
    """Gossip of one topic, at all nodes.

    Attributes:
        copies: how many messages arrived.
        duplicates: how many of these were there already.
    """

    def __init__(
        self, network: VirtualNetwork, nodes: int, take: Callable[[int, int, tuple[bytes, ...]], bool]
    ) -> None:
        """Make it.

        Args:
            network: carries the messages.
            nodes: how many there are.
            take: gives a node operations from a neighbour; says whether they may be passed on.
        """
        self._network = network
        self._nodes = nodes
        self._take = take
        self._caches: list[list[list[Message]] | None] = [None] * nodes
        self.copies = 0
        self.duplicates = 0

    def publish(self, author: int, operations: tuple[bytes, ...], data_bytes: int) -> None:
        """Publish operations."""
        message = Message(author, operations, data_bytes, self._nodes)
        message.seen[author] = 1
        self._pass_on(author, author, message)

    def _pass_on(self, node: int, forwarder: int, message: Message) -> None:
        cache = self._caches[node]
        if cache is None:
            cache = self._caches[node] = [[] for _ in range(HISTORY)]
            calendar = self._network.calendar
            # the heartbeats of the nodes are spread over the second
            wait_ms = HEARTBEAT_MS - (calendar.now_ms - node * 37) % HEARTBEAT_MS
            calendar.at(calendar.now_ms + wait_ms, self._heartbeat, node)
        cache[0].append(message)
        up = self._network.up[node]
        neighbours = [each for each in self._network.graph.mesh[node] if each in up]
        if message.spares and node != message.author:
            for other in neighbours:
                if other not in (forwarder, message.author):
                    self._network.send(node, other, IDONTWANT_BYTES + RAW_ID_BYTES, self._spare, other, node, message)
        for other in neighbours:
            if other not in (forwarder, message.author) and node * self._nodes + other not in message.unwanted:
                self._network.send(node, other, message.size, self._receive, other, node, message)

    def _spare(self, node: int, sender: int, message: Message) -> None:
        message.unwanted.add(node * self._nodes + sender)

    def _receive(self, node: int, sender: int, message: Message) -> None:
        self.copies += 1
        if message.seen[node]:
            self.duplicates += 1
        elif self._take(node, sender, message.operations):
            message.seen[node] = 1
            self._pass_on(node, sender, message)

    # ------------------------------------------------------------ beside the mesh

    def _heartbeat(self, node: int) -> None:
        cache = self._caches[node]
        assert cache is not None
        window = tuple(message for part in cache[:WINDOW] for message in part)
        up = self._network.up[node]
        for other in self._network.graph.lazy[node] if window else ():
            if other in up:
                size = IHAVE_BYTES + ID_BYTES * len(window)
                self._network.send(node, other, size, self._told, other, node, window)
        cache.pop()
        cache.insert(0, [])
        if any(cache):
            calendar = self._network.calendar
            calendar.at(calendar.now_ms + HEARTBEAT_MS, self._heartbeat, node)
        else:
            self._caches[node] = None

    def _told(self, node: int, sender: int, messages: tuple[Message, ...]) -> None:
        wanted = tuple(message for message in messages if not message.seen[node])
        if wanted:
            size = IWANT_BYTES + ID_BYTES * len(wanted)
            self._network.send(node, sender, size, self._asked, sender, node, wanted)

    def _asked(self, node: int, sender: int, messages: tuple[Message, ...]) -> None:
        cache = self._caches[node] or ()
        held = {id(message) for part in cache for message in part}
        for message in messages:
            if id(message) in held:
                self._network.send(node, sender, message.size, self._receive, sender, node, message)
