"""Members of a pool that coordinate: commands turned into signed operations and folded at once.

Knows: how to let somebody give a command and everybody see it. Must not know: a test.
"""

from __future__ import annotations

from pool_kit import Author, Pool, feed

from converge_p2p.core.codec import encode_value
from converge_p2p.core.model.task import TaskSpec, task_id
from converge_p2p.core.oplog.bodies import Body, SubmitBody
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.replica.coordination import CoordinationCommand, CoordinationCommands
from converge_p2p.core.types import TaskId
from converge_p2p.core.view.coordination import Coordination
from converge_p2p.core.view.fold import View


class Table:
    """A pool of three electors (ann, ben, cid) and three workers (dan, eve, fay), and one replica that sees it all."""

    def __init__(self) -> None:
        self.pool = Pool(electors=3, workers=3)
        self.ann, self.ben, self.cid, self.dan, self.eve, self.fay = self.pool.people
        self.replica = self.pool.replica()
        feed(self.replica, self.pool.base)

    @property
    def view(self) -> View:
        return self.replica.view

    @property
    def coordination(self) -> Coordination:
        return self.replica.view.coordination

    def sign(self, who: Author, body: Body) -> Operation:
        """Sign an operation, whether or not it may have an effect, and let everybody see it."""
        operation = who.sign(body)
        feed(self.replica, [operation])
        return operation

    def ask(self, who: Author, command: CoordinationCommand, **when: int) -> Body | None:
        """What somebody's node makes of a command."""
        return CoordinationCommands(who.key, self.view, self.replica.log.length).body_for(command, **when)

    def do(self, who: Author, command: CoordinationCommand, **when: int) -> Operation:
        """Let somebody give a command that makes an operation."""
        body = self.ask(who, command, **when)
        assert body is not None
        return self.sign(who, body)

    def task(self, who: Author, key: bytes = b"k", **terms: object) -> TaskId:
        """Let somebody submit a task."""
        self.sign(who, SubmitBody(spec_of(key, **terms)))
        return task_id(self.pool.id, who.key, key)


def spec_of(key: bytes = b"k", **terms: object) -> TaskSpec:
    return TaskSpec(key, "work", encode_value({}), **terms)  # type: ignore[arg-type]


def nonce(number: int) -> bytes:
    return bytes([number]) * 32
