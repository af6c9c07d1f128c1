"""Whether others can dial this node: it asks them to try, and tries for them.

Knows: the protocol, whom to ask and how often, and what the answers come to. Must not know: what follows from it.
Source: libp2p specifications, autonat/autonat-v1.md.

An answer is one peer's word. So the majority of the last ones decides, one of each host, and of hosts outside of the
own network if there are any. An address that others are to be told needs the word of two hosts, or one of them could
have everybody dial a third.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.host.autonat.pb.autonat_pb2 import Message
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from converge_p2p.core import limits
from converge_p2p.core.errors import ConfigError, NetworkError, RemoteViolation
from converge_p2p.core.types import PeerId
from converge_p2p.net.addresses import host_of, is_circuit, is_local, observed_address, split_peer_address, tcp_port
from converge_p2p.net.framing import TokenBucket
from converge_p2p.net.hardening import Counters, close_quietly, log, reset_quietly, shielded, write_whole
from converge_p2p.net.names import peer_name
from converge_p2p.net.reach.circuit import directly_connected, host_of_connection, is_relayed
from converge_p2p.net.reach.messages import BAD_MESSAGE, encode_message, read_message

PROTOCOL: Final = TProtocol("/libp2p/autonat/1.0.0")

_DIAL_S: Final = 5.0
_SERVE_S: Final = 15.0
_ASK_S: Final = 30.0
_WANTED_ANSWERS: Final = 3
_FIRST_S: Final = 1.0
_SOON_S: Final = 60.0
_LATER_S: Final = 900.0


class Reachable(StrEnum):
    """Whether others can dial this node."""

    UNKNOWN = "unknown"
    YES = "yes"
    NO = "no"


@dataclass(frozen=True, slots=True)
class _Answer:
    host: str
    address: str | None
    """Where the peer reached this node; None if it did not."""


class ReachProbe:
    """Asks peers to dial this node."""

    def __init__(
        self,
        host: Any,
        counters: Counters,
        *,
        own_addresses: Callable[[], tuple[str, ...]],
        changed: Callable[[], None],
        write_timeout_s: float,
    ) -> None:
        """Begin without an answer.

        Args:
            host: the host.
            counters: where answers are counted.
            own_addresses: returns the transport addresses of the own interfaces.
            changed: is called when `verdict` or `confirmed` are others.
            write_timeout_s: a peer that takes nothing for longer is disconnected.
        """
        self._host = host
        self._counters = counters
        self._own_addresses = own_addresses
        self._told = changed
        self._write_timeout_s = write_timeout_s
        self._answers: OrderedDict[ID, _Answer] = OrderedDict()
        self._next_ask: dict[ID, float] = {}
        self._look = trio.Event()
        self._verdict = Reachable.UNKNOWN
        self._confirmed: tuple[str, ...] = ()

    @property
    def verdict(self) -> Reachable:
        """What most of the last answers say; a tie is no."""
        return self._verdict

    @property
    def confirmed(self) -> tuple[str, ...]:
        """Transport addresses at which peers on at least two hosts have dialled this node."""
        return self._confirmed

    def start(self, nursery: trio.Nursery) -> None:
        """Begin to ask."""
        nursery.start_soon(self._run)

    def connection_up(self, raw: ID) -> None:
        """A peer came: it is asked in a moment, when what both have to say first is said."""
        self._next_ask.setdefault(raw, trio.current_time() + _FIRST_S)
        self._look.set()
        self._look = trio.Event()

    def connection_down(self, raw: ID) -> None:
        """The last connection to a peer closed."""
        self._next_ask.pop(raw, None)

    async def _run(self) -> None:
        while True:
            look, now = self._look, trio.current_time()
            if self._own_addresses():
                for raw in [raw for raw, due in self._next_ask.items() if due <= now]:
                    # one after the other: what all say at once is no better
                    await self._ask(raw)
            else:
                self._conclude()
            with trio.move_on_at(min(self._next_ask.values(), default=now + _LATER_S)):
                await look.wait()

    async def _ask(self, raw: ID) -> None:
        if raw not in self._next_ask or not directly_connected(self._host, raw):
            self._next_ask.pop(raw, None)
            return
        settled = self._verdict is not Reachable.UNKNOWN and len(self._answers) >= _WANTED_ANSWERS
        if settled and raw not in self._answers:
            # enough others are asked already
            self._postpone(raw, _LATER_S)
            return
        try:
            with trio.fail_after(_ASK_S):
                answer = await self._answer_of(raw)
        except (NetworkError, RemoteViolation, trio.TooSlowError) as error:
            self._counters["reach_unanswered"] += 1
            log.debug("%s does not say whether it can dial this node: %r", raw, error)
            self._postpone(raw, _LATER_S)
            return
        if answer is None:
            self._postpone(raw, _SOON_S)
            return
        self._counters["reach_answers"] += 1
        self._answers[raw] = answer
        self._answers.move_to_end(raw)
        if len(self._answers) > limits.REACH_ANSWERS_HELD_MAX:
            self._answers.popitem(last=False)
        self._conclude()
        calm = self._verdict is Reachable.YES and len(self._answers) >= _WANTED_ANSWERS
        self._postpone(raw, _LATER_S if calm else _SOON_S)

    def _postpone(self, raw: ID, pause_s: float) -> None:
        if raw in self._next_ask:
            self._next_ask[raw] = trio.current_time() + pause_s

    async def _answer_of(self, raw: ID) -> _Answer | None:
        """Ask a peer; None if it does not try."""
        request = Message(type=Message.DIAL)
        request.dial.peer.id = self._host.get_id().to_bytes()
        own = [address for address in self._own_addresses() if not is_circuit(address)]
        request.dial.peer.addrs.extend(
            Multiaddr(address).to_bytes() for address in own[: limits.ADDRESSES_PER_PEER_MAX]
        )
        try:
            stream: INetStream = await self._host.new_stream(raw, [PROTOCOL])
        except Exception as error:
            raise NetworkError(f"it takes no such request: {type(error).__name__}") from error
        try:
            host = host_of_connection(stream.muxed_conn)
            if not await write_whole(self._host, stream, encode_message(request), self._write_timeout_s):
                raise NetworkError("it did not take the request")
            answer = await read_message(stream, Message)
        finally:
            with shielded(1):
                await reset_quietly(stream)
        if answer.type != Message.DIAL_RESPONSE:
            raise RemoteViolation(BAD_MESSAGE, "not an answer to a request to dial")
        match answer.dialResponse.status:
            case Message.OK:
                return _Answer(host, _address_of(answer.dialResponse.addr, peer_name(self._host.get_id())) or "")
            case Message.E_DIAL_ERROR:
                return _Answer(host, None)
            case _:
                return None

    def _conclude(self) -> None:
        before = self._verdict, self._confirmed
        if not self._own_addresses():
            self._verdict, self._confirmed = Reachable.NO, ()
        elif self._answers:
            # of each host the last word; a neighbour's says nothing of what the rest of the world can dial
            words = {answer.host: answer for answer in self._answers.values()}
            words = {host: word for host, word in words.items() if not is_local(host.split("/")[0])} or words
            yes = sum(answer.address is not None for answer in words.values())
            self._verdict = Reachable.YES if 2 * yes > len(words) else Reachable.NO
            named = [answer.address for answer in words.values() if answer.address]
            twice = (address for address in dict.fromkeys(named) if named.count(address) > 1)
            self._confirmed = tuple(twice)[: limits.REACH_ADDRESSES_CONFIRMED_MAX]
        if (self._verdict, self._confirmed) != before:
            log.info("others can dial this node: %s", self._verdict)
            self._told()


def _address_of(encoded: bytes, me: PeerId) -> str | None:
    """Return the transport address that an answer names, or None if it is none of use."""
    try:
        text = str(Multiaddr(encoded))
        _, address = split_peer_address(text if "/p2p/" in text else f"{text}/p2p/{me}")
    except Exception as error:  # noqa: BLE001 - the library raises many kinds, and others have more transports
        log.debug("the address in an answer is of no use: %r", error)
        return None
    return None if is_circuit(address) else address


class ReachService:
    """Dials peers that ask for it: at the address that they are seen at, and at no other."""

    def __init__(self, host: Any, counters: Counters, blame: Callable[[PeerId], None]) -> None:
        """Register the protocol.

        Args:
            host: the host.
            counters: where requests are counted.
            blame: called with a peer that broke the protocol.
        """
        self._host = host
        self._counters = counters
        self._blame = blame
        self._all = TokenBucket(limits.REACH_ASKS_PER_SECOND_MAX, burst=limits.REACH_ASKS_BURST_MAX)
        self._hosts: OrderedDict[str, TokenBucket] = OrderedDict()
        self._dials = 0
        host.set_stream_handler(PROTOCOL, self._serve)

    async def _serve(self, stream: INetStream) -> None:
        raw = stream.muxed_conn.peer_id
        try:
            with trio.fail_after(_SERVE_S):
                message = await read_message(stream, Message)
                if message.type != Message.DIAL or not message.HasField("dial"):
                    raise RemoteViolation(BAD_MESSAGE, "not a request to dial")
                answer = await self._answer(stream, raw, message)
            await write_whole(self._host, stream, encode_message(answer), limits.STREAM_STALL_S)
            await close_quietly(stream)
        except (NetworkError, RemoteViolation, trio.TooSlowError) as error:
            self._counters["reach_requests_broken"] += 1
            log.debug("request to dial of %s: %r", raw, error)
            if isinstance(error, RemoteViolation):
                self._blame(peer_name(raw))
            await reset_quietly(stream)

    async def _answer(self, stream: INetStream, raw: ID, message: Message) -> Message:
        answer = Message(type=Message.DIAL_RESPONSE)
        connection = stream.muxed_conn
        remote = connection.get_remote_address()
        candidates = [] if remote is None else _candidates(remote[0], list(message.dial.peer.addrs), peer_name(raw))
        of_another = message.dial.peer.id not in (b"", raw.to_bytes())
        if is_relayed(connection) or of_another or not candidates or not self._admit(host_of_connection(connection)):
            self._counters["reach_requests_refused"] += 1
            answer.dialResponse.status = Message.E_DIAL_REFUSED
            return answer
        self._dials += 1
        try:
            reached = await self._try(raw, candidates)
        finally:
            self._dials -= 1
        self._counters["reach_requests_answered"] += 1
        answer.dialResponse.status = Message.E_DIAL_ERROR if reached is None else Message.OK
        if reached is not None:
            answer.dialResponse.addr = Multiaddr(reached).to_bytes()
        return answer

    def _admit(self, host: str) -> bool:
        now = trio.current_time()
        bucket = self._hosts.get(host)
        if bucket is None:
            rate, burst = limits.REACH_ASKS_PER_HOST_PER_SECOND_MAX, limits.REACH_ASKS_PER_HOST_BURST_MAX
            bucket = self._hosts[host] = TokenBucket(rate, burst=burst)
            if len(self._hosts) > limits.REACH_HOSTS_HELD_MAX:
                self._hosts.popitem(last=False)
        self._hosts.move_to_end(host)
        free = self._dials < limits.REACH_DIALS_AT_ONCE_MAX
        return free and bucket.try_take(1, now) and self._all.try_take(1, now)

    async def _try(self, raw: ID, candidates: list[str]) -> str | None:
        """Dial all candidates at once; return the first at which the peer proved itself."""
        reached: list[str] = []

        async def dial(address: str) -> None:
            if await self._dial(raw, address):
                reached.append(address)
                nursery.cancel_scope.cancel()

        with trio.move_on_after(_DIAL_S):
            async with trio.open_nursery() as nursery:
                for address in candidates:
                    nursery.start_soon(dial, address)
        return reached[0] if reached else None

    async def _dial(self, raw: ID, address: str) -> bool:
        """Open a connection of its own, which ends after the handshake: it must not become one to the peer."""
        connection: Any = None
        try:
            socket = await trio.open_tcp_stream(host_of(address), tcp_port(address))
            connection = RawConnection(TrioTCPStream(socket), True)
            swarm = self._host.get_network()
            await swarm.upgrader.upgrade_security(swarm.psk(connection), True, raw)
        except Exception as error:  # noqa: BLE001 - the edge: whatever is there, it is not the peer
            log.debug("dialling back at %s: %r", address, error)
            return False
        finally:
            if connection is not None:
                with shielded(1):
                    await connection.close()
        return True


def _candidates(seen_at: str, claimed: list[bytes], peer: PeerId) -> list[str]:
    """Return where to dial: the host that the peer is seen at, at the ports that it names."""
    seen = observed_address(seen_at, 0)
    if seen is None:
        return []
    host = ipaddress.ip_address(host_of(seen))
    found: dict[str, None] = {}
    for encoded in claimed[: limits.ADDRESSES_PER_PEER_MAX]:
        try:
            _, address = split_peer_address(f"{Multiaddr(encoded)}/p2p/{peer}")
        except (ConfigError, ValueError):
            continue
        except Exception as error:  # noqa: BLE001 - the library raises many kinds for what is no address
            log.debug("an address to dial back is none: %r", error)
            continue
        if not is_circuit(address) and tcp_port(address):
            found[observed_address(str(host), tcp_port(address)) or ""] = None
    return [address for address in found if address][: limits.REACH_DIALS_PER_ASK_MAX]
