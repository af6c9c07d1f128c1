"""Whether others can dial this node: asking, answering, and what follows."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from libp2p.host.autonat.pb.autonat_pb2 import Message
from multiaddr import Multiaddr
from net_rig import linked, start, until

from converge_p2p.core import limits
from converge_p2p.core.types import PeerId
from converge_p2p.net import Network, Reachable, RelayBounds, RelayUse
from converge_p2p.net.addresses import is_local
from converge_p2p.net.names import raw_peer_id
from converge_p2p.net.reach import autonat
from converge_p2p.net.reach.autonat import PROTOCOL, ReachProbe
from converge_p2p.net.reach.messages import encode_message, read_message

pytestmark = pytest.mark.network

DEAD = "/ip4/127.0.0.1/tcp/1"
"""Nobody listens there."""


async def test_a_node_that_others_can_dial_learns_so(transport: Any) -> None:
    async with start(1, autonat=True) as one, start(2, autonat=True) as other:
        await one.connect(other.addresses[0])
        await until(lambda: one.reachability.reachable is Reachable.YES, "the other side to have dialled")
        await until(lambda: other.reachability.reachable is Reachable.YES, "and the other way round")
        # the dial back became no connection
        assert len(one.peers()) == 1
        await linked(one, other)
        assert await one.request(other.peer_id, b"abc") == b"cba"


async def test_a_node_that_others_cannot_dial_learns_so_and_goes_behind_a_relay(transport: Any) -> None:
    settings = {"autonat": True, "announce": (DEAD,), "relay_client": RelayUse.AUTO}
    async with start(1, autonat=True, relay_service=RelayBounds()) as relay, start(2, **settings) as hidden:
        assert not hidden.reachability.wants_relays
        await hidden.connect(relay.addresses[0])
        await until(lambda: hidden.reachability.reachable is Reachable.NO, "the relay not to reach it")
        await until(lambda: hidden.reachability.relays == (relay.peer_id,), "a place at the relay")
        assert relay.reachability.relay_reservations == 1
        async with start(3) as visitor:
            circuit = next(address for address in hidden.addresses if "p2p-circuit" in address)
            await visitor.connect(circuit)
            assert await visitor.request(hidden.peer_id, b"abc") == b"cba"


async def test_a_node_that_listens_on_nothing_needs_nobody_to_tell_it() -> None:
    async with start(1, listen=(), autonat=True) as hidden:
        await until(lambda: hidden.reachability.reachable is Reachable.NO, "the verdict")
        assert hidden.reachability.wants_relays


async def test_relays_are_left_alone_unless_they_are_wanted() -> None:
    settings = {"autonat": True, "announce": (DEAD,), "relay_client": RelayUse.OFF}
    async with start(1, autonat=True, relay_service=RelayBounds()) as relay, start(2, **settings) as hidden:
        await hidden.connect(relay.addresses[0])
        await until(lambda: hidden.reachability.reachable is Reachable.NO, "the relay not to reach it")
        assert not hidden.reachability.wants_relays
        assert relay.counters["relay_reservations_granted"] == 0


async def ask(network: Network, other: Network, *addresses: str, peer: bytes = b"") -> Message:
    """Ask a node to dial these addresses; return its answer."""
    request = Message(type=Message.DIAL)
    request.dial.peer.id = peer or raw_peer_id(network.peer_id).to_bytes()
    request.dial.peer.addrs.extend(Multiaddr(address).to_bytes() for address in addresses)
    return await send(network, other, encode_message(request))


async def send(network: Network, other: Network, data: bytes) -> Message:
    stream = await network._host.new_stream(raw_peer_id(other.peer_id), [PROTOCOL])
    try:
        await stream.write(data)
        with trio.fail_after(15):
            return await read_message(stream, Message)
    finally:
        await stream.reset()


async def test_only_the_host_that_asks_is_dialled_whatever_it_names(transport: Any) -> None:
    async with start(1, autonat=True) as one, start(2) as asker:
        await asker.connect(one.addresses[0])
        port = asker.addresses[0].split("/")[4]
        answer = await ask(asker, one, f"/ip4/192.0.2.1/tcp/{port}")
        # its port, at the host that it is seen at
        assert answer.dialResponse.status == Message.OK
        assert str(Multiaddr(answer.dialResponse.addr)) == f"/ip4/127.0.0.1/tcp/{port}"


@pytest.mark.parametrize(
    "addresses", [(), ("/ip4/127.0.0.1/udp/4001/quic-v1",), ("/dns4/example.org/tcp/0",), ("/ip4/127.0.0.1",)]
)
async def test_a_request_that_names_nothing_to_dial_is_refused(addresses: tuple[str, ...]) -> None:
    async with start(1, autonat=True) as one, start(2) as asker:
        await asker.connect(one.addresses[0])
        answer = await ask(asker, one, *addresses)
        assert answer.dialResponse.status == Message.E_DIAL_REFUSED


async def test_another_node_at_the_address_is_not_the_one_that_asks() -> None:
    async with start(1, autonat=True) as one, start(2) as asker, start(3) as bystander:
        await asker.connect(one.addresses[0])
        answer = await ask(asker, one, bystander.addresses[0].rpartition("/p2p/")[0])
        assert answer.dialResponse.status == Message.E_DIAL_ERROR
        assert bystander.peers() == ()


async def test_nobody_is_dialled_in_the_name_of_another() -> None:
    async with start(1, autonat=True) as one, start(2) as asker, start(3) as victim:
        await asker.connect(one.addresses[0])
        address = victim.addresses[0].rpartition("/p2p/")[0]
        answer = await ask(asker, one, address, peer=raw_peer_id(victim.peer_id).to_bytes())
        assert answer.dialResponse.status == Message.E_DIAL_REFUSED
        assert one.counters["reach_requests_refused"] == 1


async def test_a_host_is_dialled_so_often_and_no_more() -> None:
    async with start(1, autonat=True) as one, start(2) as asker:
        await asker.connect(one.addresses[0])
        burst = limits.REACH_ASKS_PER_HOST_BURST_MAX
        statuses = [(await ask(asker, one, DEAD)).dialResponse.status for _ in range(burst + 4)]
        assert statuses[:burst] == [Message.E_DIAL_ERROR] * burst
        assert statuses[-1] == Message.E_DIAL_REFUSED


@pytest.mark.parametrize("garbage", [b"\x05hello", b"\xff" * 30, b"\x00", encode_message(Message(type=1))])
async def test_garbage_ends_its_stream_and_is_counted(garbage: bytes) -> None:
    async with start(1, autonat=True) as one, start(2) as asker:
        await asker.connect(one.addresses[0])
        stream = await asker._host.new_stream(raw_peer_id(one.peer_id), [PROTOCOL])
        await stream.write(garbage)
        await until(lambda: one.counters["reach_requests_broken"] == 1, "the garbage to be counted")
        assert one.counters["violations"] == 1
        assert (await ask(asker, one, DEAD)).dialResponse.status == Message.E_DIAL_ERROR


async def test_a_peer_that_answers_nonsense_changes_nothing() -> None:
    async with start(1) as liar, start(2, autonat=True) as one:

        async def answer(stream: Any) -> None:
            await stream.write(b"\x05hello")

        liar._host.set_stream_handler(PROTOCOL, answer)
        await one.connect(liar.addresses[0])
        await until(lambda: one.counters["reach_unanswered"] == 1, "the answer to be of no use")
        assert one.reachability.reachable is Reachable.UNKNOWN


class Judge:
    """A probe that answers are put into by hand."""

    def __init__(self) -> None:
        self.changes = 0
        host = SimpleNamespace(get_id=lambda: None)
        self.probe = ReachProbe(
            host, Counter(), own_addresses=lambda: ("/ip4/10.0.0.1/tcp/1",),
            changed=self._changed, write_timeout_s=1.0,
        )  # fmt: skip

    def _changed(self) -> None:
        self.changes += 1

    def hear(self, peer: str, host: str, address: str | None) -> None:
        self.probe._answers[peer] = autonat._Answer(host, address)  # type: ignore[index]
        self.probe._conclude()


def test_the_majority_of_hosts_decides_and_a_tie_is_no() -> None:
    judge = Judge()
    judge.hear("a", "203.0.113.1", None)
    assert judge.probe.verdict is Reachable.NO
    judge.hear("b", "203.0.113.2", "")
    assert judge.probe.verdict is Reachable.NO
    judge.hear("c", "203.0.113.3", "")
    assert judge.probe.verdict is Reachable.YES
    assert judge.changes == 2


def test_many_peers_on_one_host_have_one_voice() -> None:
    judge = Judge()
    for number in range(5):
        judge.hear(f"liar{number}", "203.0.113.1", None)
    for number in range(2):
        judge.hear(f"honest{number}", f"203.0.113.{number + 2}", "")
    assert judge.probe.verdict is Reachable.YES


def test_neighbours_do_not_decide_what_the_world_can_dial() -> None:
    judge = Judge()
    for number in range(3):
        judge.hear(f"neighbour{number}", f"192.168.1.{number}", "/ip4/192.168.1.9/tcp/4001")
    assert judge.probe.verdict is Reachable.YES
    judge.hear("outside", "203.0.113.1", None)
    assert judge.probe.verdict is Reachable.NO
    assert judge.probe.confirmed == ()


def test_an_address_is_told_to_others_once_two_hosts_have_named_it() -> None:
    judge = Judge()
    judge.hear("a", "203.0.113.1", "/ip4/198.51.100.7/tcp/4001")
    judge.hear("b", "203.0.113.1", "/ip4/198.51.100.7/tcp/4001")
    assert judge.probe.confirmed == ()
    judge.hear("c", "203.0.113.3", "/ip4/198.51.100.7/tcp/4001")
    assert judge.probe.confirmed == ("/ip4/198.51.100.7/tcp/4001",)


def test_what_an_answer_names_is_checked() -> None:
    me = PeerId("12D3KooWJWoaqZhDaoEFshF7Rh1bpY9ohihFhzcW6d69Lr2NASuq")
    for bad in (b"", b"\xff\xff", Multiaddr("/ip4/192.0.2.1/udp/1/quic-v1").to_bytes()):
        assert autonat._address_of(bad, me) is None
    assert autonat._address_of(Multiaddr("/ip4/192.0.2.1/tcp/7").to_bytes(), me) == "/ip4/192.0.2.1/tcp/7"


@pytest.mark.parametrize("host", ["10.1.2.3", "192.168.0.1", "172.31.0.1", "127.0.0.1", "::1", "fd00::1", "100.64.0.1"])
def test_local_hosts_are_known_as_such(host: str) -> None:
    assert is_local(host)


@pytest.mark.parametrize("host", ["203.0.113.1", "8.8.8.8", "172.32.0.1", "2001:db8::1", "example.org", ""])
def test_other_hosts_are_not_local(host: str) -> None:
    assert not is_local(host)
