"""Gossip 1.2 without its price: neighbours are told what need not be sent again, but only where that saves anything.

Knows: gossipsub's IDONTWANT and the library's private hooks for it. Must not know: what topics and messages mean.
Source: libp2p gossipsub specification 1.2. The reading, checking, encoding once and writing in one go is that of
`gossip`, which both transports share.

Stock, every message of any size is answered with an IDONTWANT to every neighbour, which triples the frames of small
messages. Here messages from `limits.GOSSIP_IDONTWANT_BYTES_MIN` on are: a copy of such a message costs more than the
few bytes that prevent it.
"""

from __future__ import annotations

from typing import Any

from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V12
from libp2p.pubsub.pb import rpc_pb2

from converge_p2p.core import limits
from converge_p2p.net.gossip import MESH_PROTOCOLS, HardenedGossipSub
from converge_p2p.net.gossip_queue import encode_rpc

FAST_MESH_PROTOCOLS = (TProtocol(PROTOCOL_ID_V12), *MESH_PROTOCOLS)


class FastGossipSub(HardenedGossipSub):
    """The router that speaks 1.2."""

    async def publish(self, msg_forwarder: ID, pubsub_msg: Any) -> None:
        """Forward a message, after telling the neighbours that would send it here, too."""
        if len(pubsub_msg.data) >= limits.GOSSIP_IDONTWANT_BYTES_MIN and msg_forwarder != self.pubsub.my_id:
            self._spare(msg_forwarder, pubsub_msg)
        await super().publish(msg_forwarder, pubsub_msg)

    def _spare(self, forwarder: ID, message: Any) -> None:
        neighbours = {peer for topic in message.topicIDs for peer in self.mesh.get(topic, ())}
        neighbours -= {forwarder, ID(message.from_id)}
        frame: bytes | None = None
        for peer in neighbours:
            queue = self.pubsub.peer_queues.get(peer)
            if queue is None or self.peer_protocol.get(peer) != PROTOCOL_ID_V12:
                continue
            if frame is None:
                rpc = rpc_pb2.RPC()
                rpc.control.idontwant.add(messageIDs=[self.pubsub.get_message_id(message)])
                frame = encode_rpc(rpc)
            # before what waits already, or it comes after the copy that it shall prevent
            if queue.push(frame, priority=True):
                self.counters["gossip_idontwant_sent"] += 1
            else:
                self.counters["gossip_send_dropped"] += 1

    async def handle_idontwant(self, idontwant_msg: Any, sender_peer_id: ID) -> None:
        """Note what a neighbour has. Stock keeps ten ids of any length; they are forgotten with the heartbeat."""
        unwanted = self.dont_send_message_ids.setdefault(sender_peer_id, set())
        for message_id in idontwant_msg.messageIDs:
            if len(unwanted) >= limits.GOSSIP_UNWANTED_IDS_MAX:
                self.counters["gossip_idontwant_dropped"] += 1
                return
            unwanted.add(bytes(message_id))
