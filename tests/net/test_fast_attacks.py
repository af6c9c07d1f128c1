"""Each attack on the fast multiplexer, against a whole node: it lives, holds little, and names whom it throws out."""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio
from libp2p.network.stream.exceptions import StreamError
from net_rig import assert_serves, inject, pair, socket_of, start, until

from converge_p2p.core import limits
from converge_p2p.core.errors import NetworkError
from converge_p2p.net import Network, Transport
from converge_p2p.net.fast import frames, yamux
from converge_p2p.net.fast.frames import DATA, PING, RST, SYN, WINDOW_UPDATE, encode_header
from converge_p2p.net.fast.yamux import FastYamux, Patience
from converge_p2p.net.names import raw_peer_id

pytestmark = pytest.mark.network

ECHO, MUTE = "/echo/1", "/mute/1"


@pytest.fixture(autouse=True)
async def _in_time():
    with trio.fail_after(60):
        yield


def connection_of(network: Network, peer: Network) -> FastYamux:
    (connection,) = network._host.get_network().get_connections(raw_peer_id(peer.peer_id))
    return connection.muxed_conn


def serve(network: Network) -> None:
    """One protocol that sends back what comes, and one that reads nothing."""

    async def echo(stream):
        with suppress(StreamError):
            while True:
                await stream.write(await stream.read(65_536))

    async def mute(_stream):
        await trio.sleep_forever()

    network._host.set_stream_handler(ECHO, echo)
    network._host.set_stream_handler(MUTE, mute)


async def stream_to(attacker: Network, victim: Network, protocol: str):
    return await attacker._host.new_stream(raw_peer_id(victim.peer_id), [protocol])


def opening(number: int) -> bytes:
    return encode_header(WINDOW_UPDATE, SYN, number, 0)


VIOLATIONS = {
    "yamux_bad_header": b"\xff" * 12,
    "yamux_frame_too_long": encode_header(DATA, 0, 1, 2**32 - 1),
    "yamux_wrong_parity": encode_header(WINDOW_UPDATE, SYN, 1_000_000, 0),
    "yamux_stream_twice": opening(1_000_001) * 2,
    "yamux_credit_overflow": opening(1_000_001) + encode_header(WINDOW_UPDATE, 0, 1_000_001, 2**32 - 1),
    "yamux_ping_flood": encode_header(PING, SYN, 0, 1) * (limits.PINGS_BURST_MAX + 100),
    "yamux_stream_flood": b"".join(
        opening(number) + encode_header(WINDOW_UPDATE, RST, number, 0) for number in range(1_000_001, 1_020_001, 2)
    ),
    "yamux_stray_flood": encode_header(DATA, 0, 999_999, 0) * (limits.STRAY_FRAMES_BURST_MAX + 20_000),
    "stream_window_overrun": b"".join(
        [opening(1_000_001), *[frames.encode_data(1_000_001, bytes(300_000))] * 2]
    ),
}  # fmt: skip


@pytest.mark.parametrize("attacker_transport", list(Transport))
@pytest.mark.parametrize("reason", VIOLATIONS)
async def test_peer_that_breaks_the_protocol_is_named_and_disconnected(reason, attacker_transport, caplog):
    async with start(1) as node, start(2, peers_wanted=0, transport=attacker_transport) as attacker:
        # a stream that nobody reads keeps its number, whatever is sent for it
        serve(node)
        await attacker.connect(node.addresses[0])
        await until(node.peers, "the victim knows the connection")
        (held,) = node._host.get_network().get_connections(raw_peer_id(attacker.peer_id))
        with suppress(Exception):
            await inject(connection_of(attacker, node), VIOLATIONS[reason])
        await until(lambda: held.is_closed and node.counters[reason], "the connection is closed")
        assert node.counters[reason] == 1
        assert node.counters["violations"] == 1
        assert any(attacker.peer_id in record.getMessage() for record in caplog.records if "broke" in record.msg)
        assert held.muxed_conn.machine.streams == {}
        assert held.muxed_conn.machine.buffered == 0
        await assert_serves(node)


async def test_bytes_that_nobody_sealed_end_the_connection():
    async with pair(peers_wanted=0) as (node, _, attacker, _):
        socket = socket_of(connection_of(attacker, node))
        await socket.send(b"\x00\x40" + bytes(64))
        await until(lambda: node.counters["noise_bad_record"] == 1 and not node.peers(), "the connection is closed")
        assert node.counters["violations"] == 1
        await assert_serves(node)


async def test_peer_that_goes_on_flooding_is_banned():
    async with start(1) as node, start(2, peers_wanted=0) as attacker:
        for _ in range(limits.VIOLATIONS_MAX):
            await attacker.connect(node.addresses[0])
            await until(node.peers, "the victim knows the connection")
            with suppress(Exception):
                await inject(connection_of(attacker, node), b"\xff" * 12)
            await until(lambda: not node.peers() and not attacker.peers(), "the connection is closed")
        assert node.counters["peers_banned"] == 1
        with pytest.raises(NetworkError):
            await node.connect(attacker.addresses[0])


async def test_streams_that_are_opened_and_never_used_are_bounded_and_the_rest_refused():
    async with pair(peers_wanted=0) as (node, _, attacker, _):
        count = limits.STREAMS_INBOUND_MAX + 500
        wire = b"".join(opening(number) for number in range(1_000_001, 1_000_001 + 2 * count, 2))
        await inject(connection_of(attacker, node), wire)
        await until(lambda: node.counters["inbound_stream_refused"] >= 500, "the excess is refused")
        assert len(connection_of(node, attacker).machine.streams) <= limits.STREAMS_INBOUND_MAX + 16
        await assert_serves(node)


async def test_data_that_nobody_reads_is_bounded_over_all_streams():
    async with pair(peers_wanted=0) as (node, _, attacker, _):
        serve(node)
        machine = connection_of(node, attacker).machine
        for _ in range(limits.STREAM_BUFFERS_BYTES_MAX // limits.STREAM_WINDOW_BYTES_MAX + 4):
            stream = await stream_to(attacker, node, MUTE)
            with suppress(StreamError):
                await stream.write(bytes(limits.STREAM_WINDOW_BYTES_MAX - 1000))
            assert machine.buffered <= limits.STREAM_BUFFERS_BYTES_MAX
        await until(lambda: node.counters["streams_overfull"] > 0, "the fullest stream is ended")
        assert sum(len(stream.buffer) for stream in machine.streams.values()) == machine.buffered
        await assert_serves(node)


async def test_slow_reader_costs_its_stream_and_nothing_else(monkeypatch):
    monkeypatch.setattr(yamux, "Patience", lambda: Patience(stream_stall_s=0.3))
    async with pair(peers_wanted=0) as (node, _, attacker, _):
        serve(node)
        stream = await stream_to(attacker, node, ECHO)
        window = limits.STREAM_WINDOW_BYTES_MAX
        with suppress(StreamError):
            # what is sent comes back, and is not read
            await stream.write(bytes(3 * window))
        await until(lambda: node.counters["streams_stalled"] == 1, "the echo gives its stream up")
        assert await attacker.request(node.peer_id, b"still there") == b"ereht llits"


async def test_peer_that_stops_reading_altogether_is_given_up_and_little_is_held_for_it(monkeypatch):
    monkeypatch.setattr(yamux, "Patience", lambda: Patience(connection_stall_s=0.5))
    async with pair(peers_wanted=0, write_timeout_s=20) as (node, _, attacker, _):
        session = connection_of(node, attacker).secured_conn
        connection_of(attacker, node).secured_conn._wire.receive = _nothing
        most = 0
        # what it asks for is answered by nobody, and what it is sent fills one queue
        while node.peers():
            node.send(attacker.peer_id, bytes(60_000))
            await trio.lowlevel.checkpoint()
            most = max(most, session.backlog_bytes)
        assert node.counters["connections_stalled"] == 1
        assert 0 < most <= limits.WRITE_QUEUE_BYTES_MAX + limits.WRITE_QUEUE_CONTROL_BYTES_MAX + 65_536
        await assert_serves(node)


async def _nothing(_bytes_max: int) -> bytes:
    await trio.sleep_forever()
    raise AssertionError


async def test_half_a_frame_and_silence_is_given_up(monkeypatch):
    monkeypatch.setattr(yamux, "Patience", lambda: Patience(keepalive_interval_s=0.2, keepalive_timeout_s=0.4))
    async with pair(peers_wanted=0) as (node, _, attacker, _):
        connection = connection_of(attacker, node)
        held = connection_of(node, attacker)
        # from here on everything that the attacker sends belongs to one frame
        await inject(connection, opening(1_000_001) + encode_header(DATA, 0, 1_000_001, 200_000))
        await held.event_closed.wait()
        assert node.counters["connections_silent"] == 1
        await assert_serves(node)


async def test_cancelled_writers_leave_the_connection_whole():
    async with pair(peers_wanted=0) as (node, _, peer, _):
        serve(node)
        for _ in range(5):
            stream = await stream_to(peer, node, MUTE)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.write, bytes(4 * limits.STREAM_WINDOW_BYTES_MAX))
                await until(lambda stream=stream: not stream.muxed_stream._state.send_window, "the writer is stuck")
                nursery.cancel_scope.cancel()
            assert stream.muxed_stream.is_closed()
        echo = await stream_to(peer, node, ECHO)
        await echo.write(b"whole")
        assert await echo.read(5) == b"whole"
        assert node.counters["violations"] == 0
        assert len(peer.peers()) == 1


async def test_reader_that_is_cancelled_again_and_again_loses_nothing():
    async with pair(peers_wanted=0) as (node, _, peer, _):
        serve(node)
        echo = await stream_to(peer, node, ECHO)
        sent, got = bytes(range(256)) * 2000, b""

        async def read_some(scope):
            nonlocal got
            with scope:
                got += await echo.read(1000)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo.write, sent)
            while len(got) < len(sent):
                scope = trio.CancelScope()
                async with trio.open_nursery() as inner:
                    inner.start_soon(read_some, scope)
                    await trio.lowlevel.checkpoint()
                    scope.cancel()
                await trio.lowlevel.checkpoint()
                got += await echo.read(5000)
        assert got == sent
