"""How two nodes find out which descriptors the other one lacks: anti-entropy for what gossip lost.

Knows: four messages, and which follows from which, given an index. Must not know: peers, links, how often it is done.
Source: `docs/protocol.md`, discovery. A round: one says a hash of each of its 256 buckets; the other lists what it
holds in buckets that differ; the first sends what is newer, and asks for what it lacks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from converge_p2p.core import limits
from converge_p2p.core.codec import decode, encode
from converge_p2p.core.errors import CodecError
from converge_p2p.core.model.agent_index import BUCKET_DIGEST_BYTES, AgentIndex, bucket_of
from converge_p2p.core.model.descriptor import AgentDescriptor
from converge_p2p.core.types import AgentId

_DIGESTS, _HOLDINGS, _DESCRIPTORS, _WANTS = 0, 1, 2, 3
_ID_BYTES = 32
_PREFIX_BYTES = 8
_DIGESTS_BYTES = limits.AGENT_BUCKETS * BUCKET_DIGEST_BYTES


@dataclass(frozen=True, slots=True)
class Digests:
    """A hash of each bucket, one after the other."""

    digests: bytes


@dataclass(frozen=True, slots=True)
class Held:
    """A descriptor that somebody holds.

    Attributes:
        agent: whose.
        sequence: its number.
        prefix: the first 8 bytes of its digest.
    """

    agent: AgentId
    sequence: int
    prefix: bytes


@dataclass(frozen=True, slots=True)
class Holdings:
    """All that somebody holds in some buckets."""

    buckets: tuple[tuple[int, tuple[Held, ...]], ...]


@dataclass(frozen=True, slots=True)
class Descriptors:
    """Descriptors as they were signed; nothing of them was checked."""

    envelopes: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Wants:
    """Agents whose descriptors are asked for."""

    agents: tuple[AgentId, ...]


AgentMessage = Digests | Holdings | Descriptors | Wants


def encode_agent_message(message: AgentMessage) -> bytes:
    """Return the canonical bytes."""
    match message:
        case Digests(digests):
            return encode([_DIGESTS, digests])
        case Holdings(buckets):
            plain = [
                [number, [[bytes.fromhex(each.agent), each.sequence, each.prefix] for each in held]]
                for number, held in buckets
            ]
            return encode([_HOLDINGS, plain])
        case Descriptors(envelopes):
            return encode([_DESCRIPTORS, list(envelopes)])
        case Wants(agents):
            return encode([_WANTS, [bytes.fromhex(agent) for agent in agents]])


def decode_agent_message(data: bytes) -> AgentMessage:
    """Read a message.

    Raises:
        CodecError: not canonical, not of these shapes, or more than anybody may send at once.
    """
    plain = decode(data)
    match plain:
        case [0, bytes() as digests] if len(digests) == _DIGESTS_BYTES:
            return Digests(digests)
        case [1, list() as buckets] if len(buckets) <= limits.AGENT_BUCKETS_PER_ANSWER_MAX:
            return _read_holdings(buckets)
        case [2, list() as envelopes] if len(envelopes) <= limits.DESCRIPTORS_PER_FRAME_MAX:
            if all(type(each) is bytes for each in envelopes):
                return Descriptors(tuple(envelopes))
        case [3, list() as agents] if len(agents) <= limits.AGENT_ENTRIES_PER_ANSWER_MAX:
            return Wants(tuple(_read_agent(each) for each in agents))
    raise CodecError("not a message about agents")


def _read_holdings(buckets: Sequence[object]) -> Holdings:
    read: list[tuple[int, tuple[Held, ...]]] = []
    count = 0
    for bucket in buckets:
        match bucket:
            case [int() as number, list() as held] if 0 <= number < limits.AGENT_BUCKETS and type(number) is int:
                count += len(held)
                # counted before they are built
                if count > limits.AGENT_ENTRIES_PER_ANSWER_MAX:
                    raise CodecError(f"more than {limits.AGENT_ENTRIES_PER_ANSWER_MAX} holdings")
                read.append((number, tuple(_read_held(each, number) for each in held)))
            case _:
                raise CodecError("a bucket is a number and what is held")
    if len({number for number, _ in read}) != len(read):
        raise CodecError("a bucket stands there twice")
    return Holdings(tuple(read))


def _read_held(item: object, bucket: int) -> Held:
    match item:
        case [agent, int() as sequence, bytes() as prefix] if type(sequence) is int and len(prefix) == _PREFIX_BYTES:
            held = Held(_read_agent(agent), sequence, prefix)
            if 0 <= sequence <= limits.SEQ_MAX and bucket_of(held.agent) == bucket:
                return held
    raise CodecError("what is held is an agent of that bucket, a sequence and the beginning of a digest")


def _read_agent(item: object) -> AgentId:
    if type(item) is not bytes or len(item) != _ID_BYTES:
        raise CodecError(f"an agent id has {_ID_BYTES} bytes")
    return AgentId(item.hex())


def digests_of(index: AgentIndex) -> Digests:
    """Begin a round."""
    return Digests(b"".join(index.digests()))


def holdings_against(index: AgentIndex, theirs: Digests, start: int) -> Holdings | None:
    """Answer to digests: what is held in the buckets that differ, as far as one message has room; None if none does.

    Args:
        index: what is held here.
        theirs: what the other one said.
        start: the bucket to begin with, so that over several rounds all have their turn.
    """
    buckets: list[tuple[int, tuple[Held, ...]]] = []
    room = limits.AGENT_ENTRIES_PER_ANSWER_MAX
    own = index.digests()
    for step in range(limits.AGENT_BUCKETS):
        number = (start + step) % limits.AGENT_BUCKETS
        at = number * BUCKET_DIGEST_BYTES
        if theirs.digests[at : at + BUCKET_DIGEST_BYTES] == own[number]:
            continue
        held = tuple(_held(each) for each in index.bucket(number))
        if len(held) > room:
            # who tries keys for it can make one bucket too large to be listed; the others go on
            continue
        room -= len(held)
        buckets.append((number, held))
        if len(buckets) >= limits.AGENT_BUCKETS_PER_ANSWER_MAX:
            break
    return Holdings(tuple(buckets)) if buckets else None


def _held(descriptor: AgentDescriptor) -> Held:
    return Held(descriptor.agent_id, descriptor.sequence, descriptor.digest[:_PREFIX_BYTES])


def compare(index: AgentIndex, theirs: Holdings, now_ms: int) -> tuple[list[AgentDescriptor], Wants]:
    """Answer to holdings: what is newer here, and what is newer there.

    Both are cut off at `limits.DESCRIPTORS_PER_ROUND_MAX`; the next round brings the rest.
    """
    send: list[AgentDescriptor] = []
    want: list[AgentId] = []
    for number, held in theirs.buckets:
        known = {each.agent: each for each in held}
        for descriptor in index.bucket(number):
            own, there = _held(descriptor), known.pop(descriptor.agent_id, None)
            if there is None or (own.sequence, own.prefix) > (there.sequence, there.prefix):
                if now_ms < descriptor.expires_ms:
                    send.append(descriptor)
            elif own != there:
                want.append(own.agent)
        want.extend(known)
    most = limits.DESCRIPTORS_PER_ROUND_MAX
    return send[:most], Wants(tuple(want[:most]))


def wanted_from(index: AgentIndex, wants: Wants, now_ms: int) -> list[AgentDescriptor]:
    """Answer to wants, at most `limits.DESCRIPTORS_PER_ROUND_MAX`."""
    found = (index.get(agent) for agent in wants.agents[: limits.DESCRIPTORS_PER_ROUND_MAX])
    return [descriptor for descriptor in found if descriptor is not None and now_ms < descriptor.expires_ms]


def in_frames(descriptors: Iterable[AgentDescriptor]) -> Iterator[Descriptors]:
    """Yield messages that a node takes: of a number and size that fit one frame."""
    part: list[bytes] = []
    size = 0
    for descriptor in descriptors:
        data = descriptor.to_bytes()
        if part and (len(part) >= limits.DESCRIPTORS_PER_FRAME_MAX or size + len(data) > limits.BATCH_BYTES_MAX):
            yield Descriptors(tuple(part))
            part, size = [], 0
        part.append(data)
        size += len(data)
    if part:
        yield Descriptors(tuple(part))
