"""js-libp2p, another implementation by other people: whoever dials, everything that we speak means the same there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
import trio
from js_peer import JsPeer, install
from libp2p.host.ping import PingService
from libp2p.network.stream.exceptions import StreamError

from converge_p2p.net import Network, NetworkConfig, Transport, open_network
from converge_p2p.net.names import raw_peer_id

pytestmark = pytest.mark.network

OURS = "/converge/sync/1.0.0"
ECHO = "/test/echo/1"
THEIR_ECHO = "/bench/echo/1"


class Numbers:
    """Records are numbers in decimal; the higher replaces the lower."""

    def rank(self, key: str, value: bytes) -> int | None:
        return int(value) if value.isdigit() else None


class Quiet:
    """A handler that wants nothing."""

    def peer_up(self, peer):
        """Not of interest."""

    peer_down = peer_up

    def frame(self, peer, payload):
        """Not of interest."""

    async def request(self, peer, payload):
        return payload


@pytest.fixture(scope="module", autouse=True)
def _installed():
    if why := install():
        pytest.skip(f"js-libp2p cannot be had: {why}")


@pytest.fixture(params=list(Transport))
async def node(request) -> AsyncIterator[Network]:
    config = NetworkConfig(
        listen=("/ip4/127.0.0.1/tcp/0",), transport=request.param, validators={"number": Numbers()}, peers_wanted=0
    )
    async with open_network(config, seed=bytes([7]) * 32, handler=Quiet()) as network:
        network._host.set_stream_handler(ECHO, echo)
        yield network


@pytest.fixture
async def other() -> AsyncIterator[JsPeer]:
    async with JsPeer.open() as peer:
        yield peer


async def echo(stream) -> None:
    with suppress(StreamError):
        while True:
            await stream.write(await stream.read(65_536))


async def until(condition, what: str) -> None:
    """Wait in real time for something inside the transport library, or in another process."""
    with trio.move_on_after(20):
        while not condition():  # noqa: ASYNC110 - it has no event
            await trio.sleep(0.02)
        return
    raise AssertionError(f"not in time: {what}")


@pytest.mark.parametrize("we_dial", [True, False])
async def test_everything_means_the_same_to_js_libp2p(node: Network, other: JsPeer, we_dial: bool):
    them = raw_peer_id(other.id)
    with trio.fail_after(120):
        if we_dial:
            await node.connect(other.address)
        else:
            await other.do("connect", address=node.addresses[0])
        await until(node.peers, "the connection stands")
        await identify_and_ping(node, other, them)
        await streams(node, other, them)
        await topics(node, other)
        await records(node, other)
        assert node.counters["violations"] == 0
        assert node.counters["gossip_send_dropped"] == 0
        assert [info.peer_id for info in node.peers()] == [other.id]
        assert (await other.do("peers"))["peers"] == [node.peer_id]


async def identify_and_ping(node: Network, other: JsPeer, them) -> None:
    told = (await other.do("identified", id=node.peer_id, protocol=OURS))["protocols"]
    assert {OURS, "/meshsub/1.1.0", "/converge/kad/1.0.0"} <= set(told)
    book = node._host.get_peerstore()

    def known() -> bool:
        with suppress(Exception):
            return "/meshsub/1.2.0" in book.get_protocols(them)
        return False

    await until(known, "identify has told what the peer speaks")
    assert len(await PingService(node._host).ping(them, ping_amt=3)) == 3
    assert (await other.do("ping", address=node.addresses[0]))["ms"] >= 0


async def streams(node: Network, other: JsPeer, them) -> None:
    # more than a window, so that either side has to give credit
    size = 1_500_000
    assert (await other.do("echo", address=node.addresses[0], size=size))["same"]
    stream = await node._host.new_stream(them, [THEIR_ECHO])
    sent, got = bytes(number % 251 for number in range(size)), bytearray()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.write, sent)
        while len(got) < size:
            got += await stream.read(65_536)
    assert bytes(got) == sent
    await stream.close()


async def topics(node: Network, other: JsPeer) -> None:
    heard: list[bytes] = []
    await node.subscribe("talk", lambda _peer, data: heard.append(data))
    await other.do("subscribe", topic="talk")
    await other.do("subscribers", topic="talk")
    await until(lambda: node._gossip.router.mesh.get("talk"), "the mesh stands")
    said = [f"{number}" * (1 + number * 300) for number in range(20)] + ["x" * 200_000]
    for each in said:
        await other.do("say", topic="talk", said=each)
        await node.publish("talk", f"we say {each}".encode())
    await until(lambda: len(heard) == len(said), "their messages come")
    assert {data.decode() for data in heard} == set(said)
    theirs = await other.do("heard", topic="talk", count=len(said))
    assert set(theirs["heard"]) == {f"we say {each}" for each in said}


async def records(node: Network, other: JsPeer) -> None:
    await other.do("table")
    await until(lambda: node._dht.peers, "the table is filled")
    await node.put_record("/number/ours", b"7")
    assert (await other.do("get", key="/number/ours"))["value"] == "7"
    put = await other.do("put", key="/number/theirs", value="8")
    assert (put["failed"], put["accepted"]) == (None, [node.peer_id])
    assert await node.get_record("/number/theirs") == b"8"
    # what is no number is stored nowhere
    refused = node.counters["dht_records_refused"]
    forced = await other.do("force", key="/number/theirs", value="junk", address=node.addresses[0])
    assert not forced["answered"]
    assert node.counters["dht_records_refused"] == refused + 1
    assert await node.get_record("/number/theirs") == b"8"


async def test_a_farewell_is_understood_in_both_directions(node: Network, other: JsPeer):
    """Either side may dial again at once, so that it is the connection that is looked at, and not the peer."""

    def held():
        return node._host.get_network().get_connections(raw_peer_id(other.id))

    with trio.fail_after(60):
        await node.connect(other.address)
        await other.do("identified", id=node.peer_id, protocol=OURS)
        (ours,), theirs = held(), set((await other.do("connections"))["connections"])
        await node.disconnect(other.id)
        assert ours.is_closed
        while theirs & set((await other.do("connections"))["connections"]):
            await trio.lowlevel.checkpoint()

        await other.do("connect", address=node.addresses[0])
        await until(held, "it stands again")
        (ours,) = held()
        await other.do("disconnect")
        await until(lambda: ours.is_closed, "it is closed here, too")
        assert node.counters["violations"] == 0
