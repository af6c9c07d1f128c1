"""What it costs two nodes to find out where their frontiers differ, and how fast a long chain comes from several peers.

Knows: the pure core, driven in memory. Must not know: networks or stores.
The first table compares the frontiers of two logs whose chains are made up: bytes and messages of the comparison alone,
both directions, and the processor time of both sides. A round trip is two messages in a row that wait
for each other. The second runs replicas in virtual time: half a round trip of 25 ms, and links of 2 MB/s for each peer.
"""

from __future__ import annotations

import heapq
import itertools
import platform
import statistics
import time
from collections import deque

from converge_p2p.core.codec import encode, tagged_hash
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.pool import GovernanceKind, PoolSpec, pool_id
from converge_p2p.core.oplog.bodies import ClaimBody, Genesis, JoinBody
from converge_p2p.core.oplog.frontier import FrontierEntry
from converge_p2p.core.oplog.log import Chain, OperationLog
from converge_p2p.core.oplog.operation import sign_operation
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.machine import Replica
from converge_p2p.core.replica.reconcile import answer, opening
from converge_p2p.core.replica.wire import Comparison, Digest, decode_message, encode_message
from converge_p2p.core.types import OperationId, PeerId, PoolId, PublicKey, TaskId

AUTHORS, DIFFERENCES, RUNS = (10_000, 100_000), (0, 1, 10, 1000), 3
CHAIN, DELAY_MS, BYTES_PER_MS = 20_000, 25, 2000


def key_of(number: int) -> PublicKey:
    """Return a made-up author."""
    return PublicKey(tagged_hash("bench-author", number.to_bytes(8, "big")))


def grow(log: OperationLog, author: PublicKey) -> None:
    """Make an author's chain longer by a made-up operation."""
    chain = log.chains.setdefault(author, Chain())
    chain.ids.append(OperationId(tagged_hash("bench-id", author, len(chain).to_bytes(8, "big"))))
    log.index.put(author, FrontierEntry(author, len(chain), chain.head).hash)


def compare(one: OperationLog, other: OperationLog) -> tuple[int, int, int, int]:
    """Compare two frontiers; return bytes, messages, how many in a row wait for each other, and differences found."""
    digest = encode_message(Digest(one.digest()))
    found, size, count, deepest = set(), len(digest), 1, 1
    under_way: deque[tuple[int, int, bytes]] = deque()
    if one.digest() != other.digest():
        under_way.append((2, 0, encode_message(opening(other))))
    while under_way:
        depth, receiver, payload = under_way.popleft()
        size, count, deepest = size + len(payload), count + 1, max(deepest, depth)
        message = decode_message(payload)
        if isinstance(message, Comparison):
            result = answer((one, other)[receiver], message)
            found.update(entry.author for entry, _ in result.theirs)
            under_way.extend((depth + 1, 1 - receiver, encode_message(reply)) for reply in result.messages())
        else:
            found.update(entry.author for entry in getattr(message, "entries", ()))
    return size, count, deepest, len(found)


def bench_comparison() -> None:
    """Print what comparing costs."""
    for authors in AUTHORS:
        one, other = OperationLog(PoolId(bytes(32))), OperationLog(PoolId(bytes(32)))
        for number in range(authors):
            for log in (one, other):
                grow(log, key_of(number))
        whole = sum(len(encode(entry.to_plain())) for entry in one.frontier())
        done = 0
        for differences in DIFFERENCES:
            for number in range(done, differences):
                # every other difference is on the other side
                grow((one, other)[number % 2], key_of(number * (authors // DIFFERENCES[-1])))
            done = max(done, differences)
            times = []
            for _ in range(RUNS):
                began = time.process_time()
                size, count, deepest, found = compare(one, other)
                times.append((time.process_time() - began) * 1000)
            print(
                f"{authors:>7} authors, {differences:>4} differ, {found:>4} found: {size:>8} bytes, "
                f"{count:>3} messages, {deepest / 2:.1f} round trips, {statistics.median(times):.1f} ms for both "
                f"(whole frontier: {whole / 1e6:.1f} MB)"
            )
        began = time.process_time()
        for number in range(1000):
            author = key_of(number * 7919 % authors)
            one.index.put(author, tagged_hash("bench-entry", number.to_bytes(8, "big")))
        changed = (time.process_time() - began) * 1000
        began = time.process_time()
        for number in range(1000):
            start, stop = sorted((number * 7919 % authors, number * 104_729 % authors))
            one.index.fingerprint(start, stop)
        print(f"        a change of an entry {changed:.0f} µs, ", end="")
        print(f"the fingerprint of a range {(time.process_time() - began) * 1000:.0f} µs")


def bench_fetch() -> None:
    """Print how long a chain takes from some peers, in virtual time."""
    author = Identity.from_seed(bytes([1]) * 32)
    spec = PoolSpec("bench", bytes(16), GovernanceKind.DICTATORIAL, (author.public_key,))
    pool = pool_id(author.public_key, spec)
    chain = [sign_operation(author, pool, Genesis(spec), seq=0, prev=None, epoch=0, hlc=1)]
    for seq in range(1, CHAIN):
        body = JoinBody() if seq == 1 else ClaimBody(TaskId(bytes(32)), reason="x" * 150)
        chain.append(sign_operation(author, pool, body, seq=seq, prev=chain[-1].id, epoch=0, hlc=seq + 1))
    signed = tuple(operation.signed for operation in chain)
    for peers, stalling in ((1, 0), (2, 0), (4, 0), (8, 0), (4, 2)):
        print(_fetch(pool, signed, peers, stalling))


def _fetch(pool: PoolId, signed: tuple[bytes, ...], peers: int, stalling: int) -> str:
    nodes = [Replica(Identity.from_seed(bytes([100 + n]) * 32), pool, seed=n) for n in range(peers + stalling + 1)]
    heap: list[tuple[int, int, int, ev.Event]] = []
    order, now, size, free = itertools.count(), 0, 0, [0.0] * len(nodes)

    def do(index: int, event: ev.Event) -> None:
        nonlocal size
        for effect in nodes[index].handle(event, ev.Now(now, 1_700_000_000_000 + now)):
            match effect:
                case ev.Send(peer, payload):
                    if 0 < index <= stalling and payload[1] == 3:
                        continue  # it says that it has everything, and never answers
                    size += len(payload) if index else 0
                    # a link sends one message after the other
                    free[index] = max(free[index], now) + len(payload) / BYTES_PER_MS
                    arrival = int(free[index]) + DELAY_MS
                    heapq.heappush(
                        heap, (arrival, next(order), int(peer), ev.SyncReceived(PeerId(str(index)), payload))
                    )
                case ev.SetTimer(key, at_ms):
                    heapq.heappush(heap, (at_ms, next(order), index, ev.TimerFired(key)))

    for index in range(1, len(nodes)):
        do(index, ev.Restored(signed))
    do(0, ev.Restored(signed[:1]))
    for index in range(1, len(nodes)):
        do(0, ev.PeerUp(PeerId(str(index))))
        do(index, ev.PeerUp(PeerId("0")))
    while len(nodes[0].log) < len(signed):
        now, _, index, event = heapq.heappop(heap)
        do(index, event)
    rate = len(signed) / now * 1000
    whole = sum(map(len, signed))
    who = f"{peers} peers" + (f" and {stalling} that stall" if stalling else "")
    return (
        f"a chain of {len(signed)} from {who}: {now / 1000:.2f} s, "
        f"{rate:,.0f} operations/s, {size / whole:.2f} times its bytes"
    )


def main() -> None:
    """Print one line for each figure."""
    print(f"Python {platform.python_version()}, median of {RUNS} runs")
    bench_comparison()
    bench_fetch()


if __name__ == "__main__":
    main()
