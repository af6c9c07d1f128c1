"""A receipt: proof, for somebody who trusts nobody, that a pool settled a task on a value.

Knows: what has to be shown, and how it is checked offline. Must not know: a replica or a network.
Source: `docs/protocol.md`, receipts. The pool's id commits to its founding terms, these name the electors and their
quorum, and each vote is signed by an elector.
"""

from __future__ import annotations

from dataclasses import dataclass

from converge_p2p.core import limits
from converge_p2p.core.codec import decode, encode
from converge_p2p.core.errors import CodecError, RemoteViolation, SignatureError
from converge_p2p.core.governance.models import compile_rules
from converge_p2p.core.model.pool import pool_id
from converge_p2p.core.model.task import Outcome, TaskValue
from converge_p2p.core.oplog.bodies import Genesis, Phase, VoteBody
from converge_p2p.core.oplog.log import OperationLog
from converge_p2p.core.oplog.operation import decode_operation
from converge_p2p.core.types import PoolId, PublicKey, TaskId
from converge_p2p.core.view.fold import View

_HASH = 32


@dataclass(frozen=True, slots=True)
class Receipt:
    """Proof of a settlement.

    Attributes:
        pool: the pool; who checks a receipt must know this id from elsewhere.
        task: the task.
        value: what it was settled on.
        genesis: the signed founding operation.
        votes: the signed vote operations with the accepts.
    """

    pool: PoolId
    task: TaskId
    value: TaskValue
    genesis: bytes
    votes: tuple[bytes, ...]

    def verify(self) -> bool:
        """Whether the proof holds. See `check` for the reason why not."""
        try:
            self.check()
        except SignatureError:
            return False
        return True

    def check(self) -> None:
        """Check the proof.

        Raises:
            SignatureError: it does not hold; the message says what is wrong.
        """
        try:
            founding = decode_operation(self.genesis, self.pool)
            if not isinstance(founding.body, Genesis) or pool_id(founding.author, founding.body.spec) != self.pool:
                raise SignatureError("the founding operation is not this pool's")
            rules = compile_rules(founding.body.spec, disputes=False)
            accepted: dict[int, set[PublicKey]] = {}
            for signed in self.votes:
                vote = decode_operation(signed, self.pool)
                if not isinstance(vote.body, VoteBody):
                    raise SignatureError("an operation of the proof is not a vote")
                for ballot in vote.body.ballots:
                    if (ballot.phase, ballot.task, ballot.ref) == (Phase.ACCEPT, self.task, self.value.hash):
                        accepted.setdefault(ballot.round, set()).add(vote.author)
        except (RemoteViolation, CodecError) as error:
            raise SignatureError(f"the proof is damaged: {error}") from error
        if not any(rules.accept.satisfied_by(voters) for voters in accepted.values()):
            raise SignatureError("the votes of the proof do not settle the task on this value")

    def to_bytes(self) -> bytes:
        """Return canonical bytes, to be kept or sent."""
        value = [int(self.value.outcome), self.value.worker, self.value.result]
        return encode([1, self.pool, self.task, value, self.genesis, list(self.votes)])

    @classmethod
    def from_bytes(cls, data: bytes) -> Receipt:
        """Read the bytes of a receipt. It still has to be verified.

        Raises:
            CodecError: not a receipt.
        """
        match decode(data):
            case [
                1,
                bytes() as pool,
                bytes() as task,
                [int() as outcome, bytes() as worker, bytes() as result],
                bytes() as genesis,
                list() as votes,
            ] if (
                len(pool) == len(task) == len(worker) == _HASH
                and outcome in tuple(Outcome)
                and len(votes) <= limits.ELECTORS_MAX
                and all(type(vote) is bytes for vote in votes)
            ):
                value = TaskValue(Outcome(outcome), PublicKey(worker), result)
                return cls(PoolId(pool), TaskId(task), value, genesis, tuple(votes))
        raise CodecError("not a receipt: expected an array of version 1, pool, task, value, genesis and votes")


def receipt_of(view: View, log: OperationLog, task: TaskId) -> Receipt | None:
    """Return the receipt of a settled task, or None if it is not settled here."""
    register = view.registers.get(task)
    if register is None or register.value is None:
        return None
    votes = [log.get(vote) for vote in sorted(set(register.certificate.values()))]
    if any(vote is None for vote in votes):
        return None
    return Receipt(view.pool, task, register.value, view.genesis, tuple(vote for vote in votes if vote is not None))
