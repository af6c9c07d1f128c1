"""A private pool of replicas that work: each with a store that keeps operations and secrets.

Knows: how a shell keeps secrets, and how a node is started again from them. Must not know: a test.
"""

from __future__ import annotations

from typing import Any

from pool_kit import Mesh, now
from test_epochs import Live

from converge_p2p.core.identity import Identity
from converge_p2p.core.model.secrecy import ContentKey
from converge_p2p.core.model.task import TaskState, TaskView
from converge_p2p.core.oplog.operation import Operation, decode_operation
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.machine import Replica
from converge_p2p.core.types import TaskId


def entropy_of(node: int, life: int = 0) -> bytes:
    return bytes([100 + node, life]) * 16


class StoringMesh(Mesh):
    """A mesh whose nodes keep what they were told to, and notice a secret that is kept too late."""

    def __init__(self, replicas: list[Replica], **options: Any) -> None:
        super().__init__(replicas, **options)
        self.stored: list[list[bytes]] = [[] for _ in replicas]
        self.secrets = [b"" for _ in replicas]

    def take(self, node: int, effect: ev.Effect) -> None:
        match effect:
            case ev.Persist(_, operations):
                self.stored[node].extend(operations)
            case ev.Keep(secrets):
                self.secrets[node] = secrets
        super().take(node, effect)

    def add(self, replica: Replica) -> int:
        """A further node, connected to all."""
        self.replicas.append(replica)
        self.stored.append([])
        self.secrets.append(b"")
        self.sent_bytes.append(0)
        number = len(self.replicas) - 1
        self.connect((other, number) for other in range(number))
        return number

    def restart(self, node: int, replica: Replica) -> None:
        """Put a new replica in a node's place, with what the node kept."""
        self.replicas[node] = replica
        for effect in replica.handle(
            ev.Restored(tuple(self.stored[node]), secrets=self.secrets[node]), now(self.now_ms)
        ):
            self.take(node, effect)
        self.connect((node, other) for other in range(len(self.replicas)) if other != node)


class PrivateLive(Live):
    """Electors and workers of a private pool. Workers claim what they can read and do it."""

    def __init__(self, electors: int = 3, workers: int = 2, **options: Any) -> None:
        self.read: dict[int, set[str]] = {}
        super().__init__(electors, workers, private=True, **options)

    def replica(self, identity: Identity, index: int, life: int = 0) -> Replica:
        entropy = entropy_of(index, life)
        return Replica(identity, self.pool.id, seed=index + 31 * life, digest_interval_ms=500, entropy=entropy)

    def make_mesh(self, replicas: list[Replica], seed: int, loss: float) -> Mesh:
        return StoringMesh(replicas, seed=seed, loss=loss)

    @property
    def store(self) -> StoringMesh:
        assert isinstance(self.mesh, StoringMesh)
        return self.mesh

    def _answer(self, node: int, notice: object) -> ev.Command | None:
        match notice:
            case ev.TaskChanged(task, TaskState.PENDING) if node in self.works:
                return ev.Claim(task) if self.view(node, task).claimable else None
            case ev.ContentKeyTaken() if node in self.works:
                for task in self.mesh.replicas[node].view.open:
                    if self.view(node, task).claimable:
                        self.mesh.at(1, node, ev.Claim(task))
                return None
        return super()._answer(node, notice)

    def restart(self, node: int) -> None:
        """Start a node again from what it kept, with other randomness."""
        self.store.restart(node, self.replica(self.pool.people[node].identity, node, life=1))

    # ------------------------------------------------------------ reading

    def view(self, node: int, task: TaskId) -> TaskView:
        replica = self.mesh.replicas[node]
        view = replica.view.task(task)
        assert view is not None
        return replica.contents.open_view(view)

    def readers(self, task: TaskId) -> set[int]:
        """The nodes that can read a task, and its result if it is settled."""
        return {node for node in range(len(self.mesh.replicas)) if not self.view(node, task).sealed}

    def keys_of(self, node: int) -> set[tuple[int, int]]:
        """Epoch and generation of every content key that a node holds and that counts."""
        replica = self.mesh.replicas[node]
        ring = replica.contents._ring
        assert ring is not None
        return {
            (offered.epoch, offered.generation)
            for generation in replica.view.keys.latest(0, replica.view.epochs.certified_keys)
            for offered in generation
            if ring.get(offered.commitment) is not None
        }

    def secrets_of(self, node: int) -> list[ContentKey]:
        ring = self.mesh.replicas[node].contents._ring
        assert ring is not None
        return list(ring._keys.values())

    def all_hold(self, epoch: int, among: set[int]) -> bool:
        """Whether these nodes hold a key of an epoch."""
        return all(any(held >= epoch for held, _ in self.keys_of(node)) for node in among)

    def operations(self, node: int = 0) -> list[Operation]:
        return [decode_operation(signed, self.pool.id) for signed in self.store.stored[node]]
