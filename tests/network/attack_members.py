"""Attacks from inside: members who joined as anybody may, and then break the rules; and the local control socket.

Knows: operations and what a member may say. Must not know: how links are made.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable

import trio
from attack_ground import Ground
from attack_rig import Frozen
from attack_wire import Attacker, Chain, operation_frames

from converge_node.paths import resolve_paths
from converge_p2p.core.codec import encode_value
from converge_p2p.core.model.task import Outcome, TaskSpec, TaskValue
from converge_p2p.core.oplog.bodies import (
    Ballot,
    ClaimBody,
    JoinBody,
    Phase,
    Purpose,
    ReleaseBody,
    ReportBody,
    SubmitBody,
    VoteBody,
)
from converge_p2p.core.types import OperationId, TaskId


async def deliver(ground: Ground, operations: Iterable[bytes], number: int | None = None) -> int:
    """Send operations to each victim, in chain order."""
    frames = operation_frames(ground.pool, operations)
    sent = 0
    for address in ground.addresses:
        async with Attacker.open(ground.fresh() if number is None else number) as attacker:
            peer = await attacker.link(address)
            sent += await attacker.flood(peer, frames)
    return sent


async def forks(ground: Ground) -> int:
    """A member that signs two operations with one number: another one for each victim."""
    chain = Chain(ground.fresh_identity(), ground.pool)
    join = chain.sign(JoinBody())
    after = chain.seq, chain.prev
    for number, address in enumerate(ground.addresses):
        branch = Chain(chain.who, ground.pool)
        branch.seq, branch.prev = after
        branch.hlc = chain.hlc + number
        operations = [join.signed]
        operations += [branch.sign(ClaimBody(task, bid=number)).signed for task in ground.tasks]
        async with Attacker.open(ground.fresh()) as attacker:
            peer = await attacker.link(address)
            await attacker.flood(peer, operation_frames(ground.pool, operations))
    return 3 * (1 + len(ground.tasks))


async def rule_breakers(ground: Ground) -> int:
    """A member that votes, reports without a claim, releases and cancels what is not its own."""
    chain = Chain(ground.fresh_identity(), ground.pool)
    operations = [chain.sign(JoinBody(("echo",)))]
    value = TaskValue(Outcome.COMPLETED, chain.who.public_key, encode_value("mine"))
    cancelled = TaskValue(Outcome.CANCELLED, chain.who.public_key, b"")
    for task in (*ground.tasks, *ground.settled):
        operations.append(chain.sign(VoteBody((Ballot(Phase.GRANT, task, 0, operations[0].id),))))
        operations.append(chain.sign(VoteBody((Ballot(Phase.ENDORSE, task, 0, value.hash),))))
        operations.append(chain.sign(VoteBody((Ballot(Phase.ACCEPT, task, 0, value.hash),))))
        operations.append(chain.sign(ReportBody(task, 0, value, ())))
        operations.append(chain.sign(ReportBody(task, 0, cancelled, (OperationId(os.urandom(32)),))))
        operations.append(chain.sign(ReportBody(task, 2**31 - 1, value, ())))
        operations.append(chain.sign(ReleaseBody(task, 0, failed=True)))
        operations.append(chain.sign(ClaimBody(task, Purpose.CANCEL)))
        operations.append(chain.sign(ClaimBody(task, Purpose.FAIL)))
    return await deliver(ground, [operation.signed for operation in operations])


async def unknown_tasks(ground: Ground) -> int:
    """A member that claims and reports tasks nobody asked for, and submits one key twice."""
    chain = Chain(ground.fresh_identity(), ground.pool)
    operations = [chain.sign(JoinBody())]
    value = TaskValue(Outcome.COMPLETED, chain.who.public_key, encode_value("mine"))
    for _ in range(500 * ground.scale):
        task = TaskId(os.urandom(32))
        operations.append(chain.sign(ClaimBody(task)))
        operations.append(chain.sign(ReportBody(task, 7, value, ())))
    twice = [TaskSpec(b"same key", "nobody can do this", encode_value(text)) for text in ("first", "second")]
    operations += [chain.sign(SubmitBody(spec)) for spec in twice]
    return await deliver(ground, [operation.signed for operation in operations])


async def sybils(ground: Ground) -> int:
    """As many members as one likes: keys cost nothing, and the pool lets anybody in."""
    operations = []
    for _ in range(200 * ground.scale):
        chain = Chain(ground.fresh_identity(), ground.pool)
        operations.append(chain.sign(JoinBody(("echo",))).signed)
        operations.extend(chain.sign(ClaimBody(task)).signed for task in ground.tasks[:1])
    return await deliver(ground, operations)


async def silent_links(ground: Ground) -> int:
    """Links of a process that is stopped: nothing is closed, nothing answers, while honest work goes on."""
    connections = 24 * ground.scale
    frozen = Frozen(ground.addresses, connections)
    try:
        await frozen.start()
        await ground.newcomer_is_served("beside silent links")
        seconds = await trio.to_thread.run_sync(ground.field.honest_work)
        if seconds > 20:
            ground.failed(f"honest work took {seconds:.0f} s beside silent links")
    finally:
        await frozen.end()
    return connections


async def control_socket(ground: Ground) -> int:
    """The local control socket: HTTP that is no HTTP, huge headers and bodies, and requests that never end."""
    samples = [
        b"\x00\xff" * 500, b"GET / HTTP/9.9\r\n\r\n", b"GET /v1/status HTTP/1.1\r\n" + b"a: b\r\n" * 5000 + b"\r\n",
        b"POST /v1/pools HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\n\r\n" + b"x" * 100_000,
        b"POST /v1/pools HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nnull",
        b"POST /v1/pools HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n" + b"[" * 100_000,
        b"GET /v1/pools/%00/tasks/%ff%fe HTTP/1.1\r\nhost: x\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ]  # fmt: skip
    count, held = 0, []
    try:
        for node in ground.field.nodes:
            path = str(resolve_paths(node.home).socket)
            for sample in samples * (3 * ground.scale):
                with socket.socket(socket.AF_UNIX) as client:
                    client.settimeout(0.5)
                    client.connect(path)
                    try:
                        await trio.to_thread.run_sync(client.sendall, sample)
                        await trio.to_thread.run_sync(client.recv, 65_536)
                    except OSError:
                        pass
                count += 1
            for _ in range(30 * ground.scale):
                client = socket.socket(socket.AF_UNIX)
                client.connect(path)
                client.sendall(b"GET /v1/status HTTP/1.1\r\nhost: ")
                held.append(client)
                count += 1
        await trio.sleep(1)
    finally:
        for client in held:
            client.close()
    return count
