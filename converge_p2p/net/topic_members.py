"""Proving to connected peers that one is a member of private topics, and learning which of them are.

Knows: the protocol of the proof, and when it runs. Must not know: what a proof is made of (see `topic_access`), or what
follows from it in gossip.
Source: `docs/protocol.md`, private topics. The asked side answers in one form whether or not it has private topics.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID

from converge_p2p.core import limits
from converge_p2p.core.errors import NetworkError, RemoteViolation
from converge_p2p.net.config import NetworkConfig
from converge_p2p.net.direct import read_frame
from converge_p2p.net.framing import TokenBucket, encode_frame
from converge_p2p.net.hardening import Counters, close_quietly, log, reset_quietly, shielded, write_whole
from converge_p2p.net.topic_access import NONCE_BYTES, TAG_BYTES, TopicAccess, proof_context

PROTOCOL = TProtocol("/converge/topic-members/1.0.0")

_TAGS_BYTES_MAX = limits.PRIVATE_TOPICS_MAX * TAG_BYTES
_DONE = b"\x01"
_PROOF_S = 15.0
_RETRY_FIRST_S = 0.5
_RETRY_MAX_S = 30.0


class TopicMembership:
    """Runs the proof with every connected peer, again whenever a private topic is joined here."""

    def __init__(
        self,
        host: Any,
        access: TopicAccess,
        config: NetworkConfig,
        counters: Counters,
        admitted: Callable[[ID, Sequence[str]], None],
    ) -> None:
        """Args:
        host: the host.
        access: who has proven what.
        config: the settings.
        counters: where failures are counted.
        admitted: called with a peer and the topics that it has just proven to be a member of, when it knows the same.
        """
        self._host = host
        self._access = access
        self._config = config
        self._counters = counters
        self._admitted = admitted
        self._nursery: trio.Nursery | None = None
        self._peers: dict[ID, trio.CancelScope] = {}
        self._rates: dict[ID, TokenBucket] = {}
        self._changed = trio.Event()
        self._me: bytes = host.get_id().to_bytes()
        host.set_stream_handler(PROTOCOL, self._serve)

    def start(self, nursery: trio.Nursery) -> None:
        """Begin to prove."""
        self._nursery = nursery

    def connection_up(self, raw: ID) -> None:
        """A peer connected."""
        if self._nursery is not None and raw not in self._peers:
            scope = self._peers[raw] = trio.CancelScope()
            self._rates[raw] = TokenBucket(limits.TOPIC_PROOFS_PER_SECOND_MAX, burst=limits.TOPIC_PROOFS_BURST_MAX)
            self._nursery.start_soon(self._keep, raw, scope)

    def connection_down(self, raw: ID) -> None:
        """The last connection to a peer closed."""
        self._rates.pop(raw, None)
        self._access.forget(raw)
        scope = self._peers.pop(raw, None)
        if scope is not None:
            scope.cancel()

    def topics_changed(self) -> None:
        """A private topic was joined here: prove it to everybody, who may be a member."""
        self._changed.set()
        self._changed = trio.Event()

    async def _keep(self, raw: ID, scope: trio.CancelScope) -> None:
        pause = _RETRY_FIRST_S
        with scope:
            while True:
                changed = self._changed
                if not len(self._access):
                    await changed.wait()
                elif await self._prove(raw):
                    pause = _RETRY_FIRST_S
                    await changed.wait()
                else:
                    with trio.move_on_after(pause):
                        await changed.wait()
                    pause = min(2 * pause, _RETRY_MAX_S)

    async def _prove(self, raw: ID) -> bool:
        """Run the proof with a peer; say whether it came to an end."""
        stream: INetStream | None = None
        try:
            with trio.fail_after(_PROOF_S):
                stream = await self._host.new_stream(raw, [PROTOCOL])
                own = os.urandom(NONCE_BYTES)
                await self._write(stream, own)
                answer = await read_frame(stream, NONCE_BYTES + _TAGS_BYTES_MAX)
                other, tags = answer[:NONCE_BYTES], answer[NONCE_BYTES:]
                names = (self._me, raw.to_bytes(), own, other)
                found = self._access.recognised(proof_context("asked", *names), tags)
                await self._write(stream, self._tags(proof_context("asker", *names)))
                # only when the peer has seen the proof does it take what follows from it
                if await read_frame(stream, len(_DONE)) != _DONE:
                    raise RemoteViolation("topic_proof", "the proof was not acknowledged")
        except Exception as error:  # noqa: BLE001 - the library raises many kinds; a peer may not speak the protocol
            self._counters["topic_proofs_failed"] += 1
            log.debug("proving private topics to %s failed: %r", raw, error)
            return False
        finally:
            if stream is not None:
                with shielded(1):
                    await reset_quietly(stream)
        self._admit(raw, found)
        return True

    async def _serve(self, stream: INetStream) -> None:
        raw = stream.muxed_conn.peer_id
        rate = self._rates.get(raw)
        if rate is None or not rate.try_take(1, trio.current_time()):
            self._counters["topic_proofs_refused"] += 1
            await reset_quietly(stream)
            return
        try:
            with trio.fail_after(_PROOF_S):
                other = await read_frame(stream, NONCE_BYTES)
                own = os.urandom(NONCE_BYTES)
                names = (raw.to_bytes(), self._me, other, own)
                await self._write(stream, own + self._tags(proof_context("asked", *names)))
                tags = await read_frame(stream, _TAGS_BYTES_MAX)
                found = self._access.recognised(proof_context("asker", *names), tags)
                # before the acknowledgement, upon which the peer begins to speak of these topics
                admitted = self._access.admit(raw, found) if raw in self._peers else []
                await self._write(stream, _DONE)
                await close_quietly(stream)
        except (RemoteViolation, NetworkError, trio.TooSlowError) as error:
            self._counters["topic_proofs_failed"] += 1
            log.debug("proof of private topics by %s: %r", raw, error)
            await reset_quietly(stream)
        else:
            self._tell(raw, admitted)

    def _admit(self, raw: ID, found: Sequence[str]) -> None:
        if raw in self._peers:
            self._tell(raw, self._access.admit(raw, found))

    def _tell(self, raw: ID, topics: Sequence[str]) -> None:
        if topics and raw in self._peers:
            self._counters["topic_members_proven"] += 1
            self._admitted(raw, topics)

    def _tags(self, context: bytes) -> bytes:
        return self._access.tags(context, os.urandom(_TAGS_BYTES_MAX))

    async def _write(self, stream: INetStream, payload: bytes) -> None:
        frame = encode_frame(payload, NONCE_BYTES + _TAGS_BYTES_MAX)
        if not await write_whole(self._host, stream, frame, self._config.write_timeout_s):
            raise NetworkError("the peer did not take the proof")
