"""The stream protocol of blobs: ask a peer for a manifest and for chunks, and give others what is kept here.

Knows: requests and answers, how much is given to whom, and time limits. Must not know: what a manifest says, whether a
chunk is the right one, or where either lies.
Source: `docs/protocol.md`, blobs.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol

import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID

from converge_p2p.core import limits
from converge_p2p.core.errors import NetworkError, RemoteViolation
from converge_p2p.core.model.blob import HASH_BYTES, MANIFEST_BYTES_MAX
from converge_p2p.core.types import BlobId, PeerId
from converge_p2p.net.config import NetworkConfig
from converge_p2p.net.framing import FrameDecoder, TokenBucket, encode_frame
from converge_p2p.net.hardening import Counters, close_quietly, log, reset_quietly, shielded, write_whole
from converge_p2p.net.names import peer_name

PROTOCOL: Final = TProtocol("/converge/blob/1.0.0")

MANIFEST: Final = 0
CHUNKS: Final = 1
OK: Final = 0
NOT_HERE: Final = 1
BUSY: Final = 2

INDEX_BYTES: Final = 4
ANSWER_BYTES_MAX: Final = 1 + max(MANIFEST_BYTES_MAX, limits.BLOB_CHUNK_BYTES)
REQUEST_BYTES_MAX: Final = 1 + HASH_BYTES + limits.BLOB_CHUNKS_PER_REQUEST_MAX * INDEX_BYTES
_COST_BYTES_MIN: Final = 16 * 1024
"""What the shortest answer counts as: its cost is not its bytes."""

_READ_BYTES: Final = 65_536
_OPEN_S: Final = 15.0
_IDLE_S: Final = 20.0
_STREAM_S: Final = 600.0
"""A stream ends after this time, so that a place is not held for ever; whoever wants more opens another."""


class BlobSource(Protocol):
    """What a node gives to others."""

    async def manifest(self, blob: BlobId) -> bytes | None:
        """Return the manifest of a blob, or None if it is not here."""

    async def chunk(self, blob: BlobId, index: int) -> bytes | None:
        """Return a verified chunk, or None if it is not here."""


class BlobStreams:
    """Gives blobs to peers, and opens streams to ask for some."""

    def __init__(self, host: Any, config: NetworkConfig, counters: Counters, blame: Callable[[PeerId], None]) -> None:
        """Give nothing yet; see `serve`."""
        self._host = host
        self._config = config
        self._counters = counters
        self._blame = blame
        self._source: BlobSource | None = None
        self._running: Counter[ID] = Counter()
        self._all = TokenBucket(limits.BLOB_BYTES_PER_SECOND_MAX)
        # kept after a stream ends, or a peer would have a new allowance with each
        self._rates: OrderedDict[ID, TokenBucket] = OrderedDict()

    def serve(self, source: BlobSource) -> None:
        """Give to peers what a source has, from now on."""
        self._source = source
        self._host.set_stream_handler(PROTOCOL, self._serve)

    # ------------------------------------------------------------ giving

    async def _serve(self, stream: INetStream) -> None:
        raw = stream.muxed_conn.peer_id
        full = self._running.total() >= limits.BLOB_STREAMS_MAX
        if full or self._running[raw] >= limits.BLOB_STREAMS_PER_PEER_MAX:
            self._counters["blob_streams_refused"] += 1
            await write_whole(self._host, stream, _answer(BUSY), self._config.write_timeout_s)
            await close_quietly(stream)
            return
        self._running[raw] += 1
        try:
            frames = _Frames(stream, REQUEST_BYTES_MAX)
            with trio.move_on_after(_STREAM_S):
                while (request := await self._next(frames)) is not None and await self._give(stream, raw, request):
                    pass
            await close_quietly(stream)
        except RemoteViolation as violation:
            self._counters["blob_requests_malformed"] += 1
            log.info("blob request of %s: %s", peer_name(raw), violation)
            self._blame(peer_name(raw))
            await reset_quietly(stream)
        except NetworkError as error:
            log.debug("blob stream of %s ended: %s", peer_name(raw), error)
            await reset_quietly(stream)
        finally:
            self._running[raw] -= 1
            if not self._running[raw]:
                del self._running[raw]

    async def _next(self, frames: _Frames) -> bytes | None:
        """The next request, or None if there was none for too long."""
        with trio.move_on_after(_IDLE_S):
            return await frames.next()
        return None

    async def _give(self, stream: INetStream, raw: ID, request: bytes) -> bool:
        """Answer one request; say whether the stream can be used further."""
        assert self._source is not None, "the handler is set with a source"
        kind, blob, rest = request[:1], BlobId(request[1 : 1 + HASH_BYTES]), request[1 + HASH_BYTES :]
        if len(blob) != HASH_BYTES:
            raise RemoteViolation("blob_request", "a request names a blob")
        if kind == bytes([MANIFEST]) and not rest:
            return await self._send(stream, raw, await self._source.manifest(blob))
        if kind != bytes([CHUNKS]) or not rest or len(rest) % INDEX_BYTES:
            raise RemoteViolation("blob_request", "a request asks for a manifest or for chunks")
        for at in range(0, len(rest), INDEX_BYTES):
            chunk = await self._source.chunk(blob, int.from_bytes(rest[at : at + INDEX_BYTES], "big"))
            if not await self._send(stream, raw, chunk):
                return False
        return True

    async def _send(self, stream: INetStream, raw: ID, body: bytes | None) -> bool:
        frame = _answer(NOT_HERE) if body is None else _answer(OK, body)
        cost, now = max(len(frame), _COST_BYTES_MIN), trio.current_time()
        await trio.sleep(max(self._rate(raw).take(cost, now), self._all.take(cost, now)))
        if body is not None:
            self._counters["blob_bytes_given"] += len(body)
        return await write_whole(self._host, stream, frame, self._config.write_timeout_s)

    def _rate(self, raw: ID) -> TokenBucket:
        rate = self._rates.pop(raw, None) or TokenBucket(limits.BLOB_BYTES_PER_PEER_PER_SECOND_MAX)
        self._rates[raw] = rate
        if len(self._rates) > limits.BLOB_RATES_HELD_MAX:
            self._rates.popitem(last=False)
        return rate

    # ------------------------------------------------------------ asking

    @asynccontextmanager
    async def open(self, raw: ID) -> AsyncIterator[BlobStream]:
        """Open a stream to a connected peer for as long as the block runs.

        Raises:
            NetworkError: not connected, or it gives no blobs.
        """
        peer = peer_name(raw)
        if not self._host.get_network().get_connections(raw):
            raise NetworkError(f"peer {peer} is not connected", hint="connect to it first")
        stream: INetStream | None = None
        with trio.move_on_after(_OPEN_S):
            try:
                stream = await self._host.new_stream(raw, [PROTOCOL])
            except Exception as error:
                raise NetworkError(f"peer {peer} gives no blobs: {type(error).__name__}") from error
        if stream is None:
            raise NetworkError(f"peer {peer} opened no stream within {_OPEN_S:g} s")
        try:
            yield BlobStream(self._host, stream, peer, self._config.write_timeout_s)
        except RemoteViolation as violation:
            violation.peer = peer
            raise
        finally:
            with shielded(1):
                await reset_quietly(stream)


class BlobStream:
    """A stream on which one peer is asked. Nothing that it answers is verified here."""

    def __init__(self, host: Any, stream: INetStream, peer: PeerId, write_timeout_s: float) -> None:
        """Made by `BlobStreams.open`."""
        self._host = host
        self._stream = stream
        self._peer = peer
        self._write_timeout_s = write_timeout_s
        self._frames = _Frames(stream, ANSWER_BYTES_MAX)

    async def manifest(self, blob: BlobId, timeout_s: float) -> bytes | None:
        """Return what the peer says is the manifest of a blob, or None if it has none.

        Raises:
            NetworkError: busy, or no answer in time.
            RemoteViolation: the answer breaks the protocol.
        """
        await self._ask(bytes([MANIFEST]) + blob)
        return await self.answer(timeout_s)

    async def ask_chunks(self, blob: BlobId, indexes: Sequence[int]) -> None:
        """Ask for chunks, at most `limits.BLOB_CHUNKS_PER_REQUEST_MAX`; `answer` returns them in that order.

        Raises:
            NetworkError: the peer does not take the request.
        """
        assert 0 < len(indexes) <= limits.BLOB_CHUNKS_PER_REQUEST_MAX, "the caller divides"
        await self._ask(bytes([CHUNKS]) + blob + b"".join(index.to_bytes(INDEX_BYTES, "big") for index in indexes))

    async def answer(self, timeout_s: float) -> bytes | None:
        """Return the next thing that was asked for, or None if the peer does not have it. Raises as `manifest`."""
        frame: bytes | None = None
        with trio.move_on_after(timeout_s):
            frame = await self._frames.next()
        if frame is None:
            raise NetworkError(f"peer {self._peer} did not answer within {timeout_s:g} s")
        status, body = frame[:1], frame[1:]
        if status == bytes([OK]):
            return body
        if status == bytes([NOT_HERE]) and not body:
            return None
        if status == bytes([BUSY]) and not body:
            raise NetworkError(f"peer {self._peer} is busy", hint="try again later")
        raise RemoteViolation("blob_answer", "an answer that the protocol does not know")

    async def _ask(self, request: bytes) -> None:
        frame = encode_frame(request, REQUEST_BYTES_MAX)
        if not await write_whole(self._host, self._stream, frame, self._write_timeout_s):
            raise NetworkError(f"peer {self._peer} did not take the request")


class _Frames:
    """The frames of a stream, one after the other. Holds what one read brought, and one incomplete frame."""

    def __init__(self, stream: INetStream, bytes_max: int) -> None:
        self._stream = stream
        self._decoder = FrameDecoder(bytes_max)
        self._ready: deque[bytes] = deque()

    async def next(self) -> bytes:
        """Return the next frame.

        Raises:
            RemoteViolation: it is too long.
            NetworkError: the stream ended.
        """
        while not self._ready:
            try:
                data = await self._stream.read(_READ_BYTES)
            except Exception as error:
                raise NetworkError(f"the stream ended early: {type(error).__name__}") from error
            if not data:
                raise NetworkError("the stream ended")
            self._ready.extend(self._decoder.feed(data))
        return self._ready.popleft()


def _answer(status: int, body: bytes = b"") -> bytes:
    return encode_frame(bytes([status]) + body, ANSWER_BYTES_MAX)
