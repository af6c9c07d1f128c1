"""What one neighbour in gossip may send and cost, and what of its control messages is looked at.

Knows: gossipsub's control messages. Must not know: topics' meaning, or streams.
Source: libp2p gossipsub specification 1.1; fault B15 below.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any

from libp2p.pubsub.pb import rpc_pb2

from converge_p2p.core import limits
from converge_p2p.net.framing import TokenBucket
from converge_p2p.net.intake import WorkBudget

_BACK_OFF_S_MAX = 600


def reduced_control(control: Any, topics: Container[str]) -> Any:
    """Return what of a control message is of use: a bounded part, and only about topics that are subscribed.

    B15: the library remembers for ever what a peer says of topics that nobody knows, and dials the peers that it
    recommends there.
    """
    reduced = rpc_pb2.ControlMessage()
    room = limits.GOSSIP_CONTROL_IDS_MAX
    for ihave in control.ihave:
        if ihave.topicID in topics:
            reduced.ihave.add(topicID=ihave.topicID, messageIDs=ihave.messageIDs[:room])
            room -= len(ihave.messageIDs[:room])
    for iwant in control.iwant:
        reduced.iwant.add(messageIDs=iwant.messageIDs[:room])
        room -= len(iwant.messageIDs[:room])
    for idontwant in control.idontwant:
        # these are kept for a while, so that their length counts, too
        known = [each for each in idontwant.messageIDs[:room] if len(each) <= limits.GOSSIP_ID_BYTES_MAX]
        reduced.idontwant.add(messageIDs=known)
        room -= len(idontwant.messageIDs[:room])
    # one of each suffices for a topic: the last
    for topic in {graft.topicID: None for graft in control.graft if graft.topicID in topics}:
        reduced.graft.add(topicID=topic)
    for topic, back_off in {prune.topicID: prune.backoff for prune in control.prune if prune.topicID in topics}.items():
        reduced.prune.add(topicID=topic, backoff=min(back_off, _BACK_OFF_S_MAX))
    return reduced


class VisibleTopics:
    """The topics that are subscribed here, as far as one peer may know of them."""

    def __init__(self, topics: Container[str], may_see: Callable[[str], bool]) -> None:
        """Put a filter in front of a set of topics."""
        self._topics = topics
        self._may_see = may_see

    def __contains__(self, topic: object) -> bool:
        return isinstance(topic, str) and topic in self._topics and self._may_see(topic)


def visible_part(rpc: Any, may_see: Callable[[str], bool]) -> Any | None:
    """Return what of an RPC may go to a peer: without a word about topics that it must not know of.

    The library puts control messages for one peer into those of the next, greets everybody with every topic, and
    answers whoever asks for a message by its id. So this is asked at the one place that everything passes on its way
    out.

    Returns:
        The RPC itself, a copy without what is hidden, or None if nothing is left.
    """
    messages_alone = not rpc.HasField("control") and not rpc.subscriptions
    if messages_alone and all(may_see(name) for item in rpc.publish for name in item.topicIDs):
        return rpc
    visible = rpc_pb2.RPC()
    visible.CopyFrom(rpc)
    _keep(visible.subscriptions, lambda item: may_see(item.topicid))
    _keep(visible.publish, lambda item: all(map(may_see, item.topicIDs)))
    if visible.HasField("control"):
        for part in (visible.control.ihave, visible.control.graft, visible.control.prune):
            _keep(part, lambda item: may_see(item.topicID))
        if not visible.control.ByteSize():
            visible.ClearField("control")
    return visible if visible.subscriptions or visible.publish or visible.HasField("control") else None


def _keep(items: Any, wanted: Callable[[Any], bool]) -> None:
    kept = [item for item in items if wanted(item)]
    if len(kept) < len(items):
        del items[:]
        items.extend(kept)


class Allowance:
    """What one neighbour may send and cost."""

    def __init__(self) -> None:
        """Begin with full allowances."""
        self.messages = TokenBucket(limits.GOSSIP_MESSAGES_PER_SECOND_MAX)
        self.bytes = TokenBucket(limits.GOSSIP_BYTES_PER_SECOND_MAX)
        self.work = WorkBudget()
