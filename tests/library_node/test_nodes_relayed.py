"""Nodes that listen on nothing and work together through a relay: messages, receipts, what others find of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import trio
from node_library_kit import QUICK, linked, real_node, until

from converge_p2p import Agent
from converge_p2p.core.model.message import Message
from converge_p2p.core.model.query import CapabilityNeed, DiscoveryQuery
from converge_p2p.net import RelayBounds, RelayUse
from converge_p2p.node import NodeConfig

pytestmark = pytest.mark.network


def with_network(**changes: Any) -> NodeConfig:
    """Quick settings with others of the network."""
    assert QUICK.network is not None
    return replace(QUICK, network=replace(QUICK.network, **changes))


class Listener(Agent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.got: list[Any] = []

    def decide(self, messages: Any, tasks: Any) -> list[Any]:
        self.got += [message.payload for message in messages]
        return []


async def test_messages_and_descriptors_go_between_nodes_that_only_a_relay_joins() -> None:
    serving, using = with_network(relay_service=RelayBounds()), with_network(relay_client=RelayUse.ON)
    with trio.fail_after(60):
        async with (
            real_node(1, config=serving) as relay,
            real_node(2, relay, listen=(), config=using) as one,
            real_node(3, relay, listen=(), config=using) as other,
        ):
            await linked(one, other)
            assert all(peer.relayed for peer in one.peers() if peer.peer_id == other.peer_id)
            listener = Listener()
            await other.host(listener)
            sent, receipt = await one.deliver(Message.create(one.id, "hello", recipient=other.id))
            assert receipt.proves(sent)
            await until(lambda: listener.got == ["hello"], "the message to be taken once")
            # what is said of the node leads through the relay, also where it was said before there was a place
            await other.discovery.register(capabilities=["translate"])

            def found() -> bool:
                descriptors = one.discovery.find(DiscoveryQuery(capabilities=(CapabilityNeed("translate"),)))
                return [descriptor.addresses for descriptor in descriptors] == [other.addresses]

            await until(found, "the descriptor with the relayed address")
            assert all("/p2p-circuit/" in address for address in other.addresses)
