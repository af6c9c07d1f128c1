"""Direct requests: one stream, one frame there, one frame back.

Knows: streams, size limits, time limits, how many requests may run. Must not know: what is asked.
Source: docs/protocol.md, "Direct requests".
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID

from converge_p2p.core import limits
from converge_p2p.core.errors import LimitExceeded, NetworkError, RemoteViolation
from converge_p2p.net.config import NetworkConfig, NetworkHandler
from converge_p2p.net.framing import FrameDecoder, encode_frame
from converge_p2p.net.hardening import Counters, close_quietly, log, reset_quietly, shielded, write_whole
from converge_p2p.net.names import peer_name

PROTOCOL = TProtocol("/converge/direct/1.0.0")

_OK = b"\x00"
_FAILED = b"\x01"
_BUSY = b"\x02"
_READ_BYTES = 65_536
_RECEIVE_TIMEOUT_S = 15.0
_ANSWER_TIMEOUT_S = 60.0


async def read_frame(stream: INetStream, bytes_max: int) -> bytes:
    """Read exactly one frame.

    Raises:
        RemoteViolation: too long, or bytes follow it.
        NetworkError: the stream ended before the frame did.
    """
    decoder = FrameDecoder(bytes_max)
    while True:
        try:
            data = await stream.read(_READ_BYTES)
        except Exception as error:
            raise NetworkError(f"the stream ended early: {type(error).__name__}") from error
        if not data:
            raise NetworkError("the stream ended early")
        frames = decoder.feed(data)
        if frames:
            if len(frames) > 1 or decoder.pending_bytes:
                raise RemoteViolation("bytes_after_frame", "bytes follow the one frame of this stream")
            return frames[0]


class DirectRequests:
    """Answers the direct requests of peers, and makes own ones."""

    def __init__(self, host: Any, handler: NetworkHandler, config: NetworkConfig, counters: Counters) -> None:
        self._host = host
        self._handler = handler
        self._config = config
        self._counters = counters
        self._running: Counter[ID] = Counter()
        host.set_stream_handler(PROTOCOL, self._serve)

    async def request(self, raw: ID, payload: bytes, timeout_s: float) -> bytes:
        """Ask a connected peer and wait for its answer.

        Raises:
            LimitExceeded: the payload is over `limits.DIRECT_BYTES_MAX`.
            NetworkError: not connected, no answer in time, or the peer could not answer.
            RemoteViolation: the answer breaks the protocol.
        """
        peer = peer_name(raw)
        frame = encode_frame(payload, limits.DIRECT_BYTES_MAX)
        if not self._host.get_network().get_connections(raw):
            raise NetworkError(f"peer {peer} is not connected", hint="connect to it first")
        stream: INetStream | None = None
        try:
            with trio.fail_after(timeout_s):
                try:
                    stream = await self._host.new_stream(raw, [PROTOCOL])
                except Exception as error:
                    raise NetworkError(f"peer {peer} takes no direct requests: {type(error).__name__}") from error
                if not await write_whole(self._host, stream, frame, self._config.write_timeout_s):
                    raise NetworkError(f"peer {peer} did not take the request")
                answer = await read_frame(stream, 1 + limits.DIRECT_BYTES_MAX)
        except trio.TooSlowError:
            raise NetworkError(f"peer {peer} did not answer within {timeout_s:g} s") from None
        except RemoteViolation as violation:
            violation.peer = peer
            raise
        finally:
            if stream is not None:
                with shielded(1):
                    await reset_quietly(stream)
        status, body = answer[:1], answer[1:]
        if status == _OK:
            return body
        if status == _BUSY:
            raise NetworkError(f"peer {peer} is busy", hint="try again later")
        raise NetworkError(f"peer {peer} could not answer the request")

    async def _serve(self, stream: INetStream) -> None:
        raw = stream.muxed_conn.peer_id
        full = self._running.total() >= limits.DIRECT_REQUESTS_MAX
        if full or self._running[raw] >= limits.STREAMS_PER_PEER_MAX:
            self._counters["direct_requests_refused"] += 1
            await write_whole(self._host, stream, encode_frame(_BUSY, 1), self._config.write_timeout_s)
            await close_quietly(stream)
            return
        self._running[raw] += 1
        try:
            with trio.fail_after(_RECEIVE_TIMEOUT_S):
                payload = await read_frame(stream, limits.DIRECT_BYTES_MAX)
            answer = await self._answer(raw, payload)
            frame = encode_frame(answer, 1 + limits.DIRECT_BYTES_MAX)
            await write_whole(self._host, stream, frame, self._config.write_timeout_s)
            await close_quietly(stream)
        except (RemoteViolation, NetworkError, trio.TooSlowError) as error:
            self._counters["direct_requests_broken"] += 1
            log.info("direct request of %s: %r", peer_name(raw), error)
            await reset_quietly(stream)
        finally:
            self._running[raw] -= 1
            if not self._running[raw]:
                del self._running[raw]

    async def _answer(self, raw: ID, payload: bytes) -> bytes:
        try:
            with trio.fail_after(_ANSWER_TIMEOUT_S):
                answer = await self._handler.request(peer_name(raw), payload)
            if len(answer) > limits.DIRECT_BYTES_MAX:
                raise LimitExceeded("DIRECT_BYTES_MAX", f"answer of {len(answer)} bytes is too long")
        except Exception:  # noqa: BLE001 - the edge: counted and logged below
            # what went wrong is the log's business, not the peer's
            self._counters["handler_errors"] += 1
            log.exception("the handler failed on a direct request of %s", peer_name(raw))
            return _FAILED
        self._counters["direct_requests_answered"] += 1
        return _OK + answer
