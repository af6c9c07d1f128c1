"""What a node keeps of its own tasks when a checkpoint takes everything else about them away.

Knows: the bytes of it. Must not know: where they are kept.
Source: `docs/protocol.md`, checkpoints. A snapshot has no inputs and no results; a submitter wants its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from converge_p2p.core.codec import decode, encode
from converge_p2p.core.errors import CodecError
from converge_p2p.core.model.task import Outcome, TaskSpec, TaskValue, TaskView
from converge_p2p.core.types import PoolId, PublicKey, TaskId

VERSION = 1


@dataclass(frozen=True, slots=True)
class Ended:
    """A task that was settled.

    Attributes:
        submitter: who asked for it.
        spec: what was asked for.
        value: what it was settled on.
    """

    submitter: PublicKey
    spec: TaskSpec
    value: TaskValue

    def to_bytes(self) -> bytes:
        """Canonical bytes."""
        value = [int(self.value.outcome), self.value.worker, self.value.result]
        return encode([VERSION, self.submitter, self.spec.to_body(), value])

    @classmethod
    def from_bytes(cls, data: bytes) -> Ended:
        """Read the bytes.

        Raises:
            CodecError: not of that shape.
        """
        match decode(data):
            case [
                int() as version,
                bytes() as submitter,
                list() as spec,
                [int() as outcome, bytes() as worker, bytes() as result],
            ] if version == VERSION and outcome in (0, 1, 2):
                value = TaskValue(Outcome(outcome), PublicKey(worker), result)
                return cls(PublicKey(submitter), TaskSpec.from_body(spec), value)
        raise CodecError("a task that ended is an array of version, submitter, specification and value")

    def view(self, pool: PoolId, task: TaskId) -> TaskView:
        """The task as an application sees it. In which round it was settled is not known any more."""
        return TaskView(
            id=task,
            pool_id=pool,
            submitter=self.submitter,
            spec=self.spec,
            state=self.value.outcome.state,
            value=self.value,
            certified=True,
        )
