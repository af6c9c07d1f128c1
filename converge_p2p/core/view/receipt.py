"""A receipt: proof, for somebody who trusts nobody, that a pool settled a task on a value.

Knows: what has to be shown, and how it is checked offline. Must not know: a replica or a network.
Source: `docs/protocol.md`, receipts. The pool's id commits to its founding terms, these name the electors and their
quorum, and each vote is signed by an elector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from converge_p2p.core import limits
from converge_p2p.core.codec import decode, encode
from converge_p2p.core.errors import CodecError, RemoteViolation, SignatureError
from converge_p2p.core.governance.models import Ruleset, compile_rules
from converge_p2p.core.model.pool import pool_id
from converge_p2p.core.model.task import Outcome, TaskValue
from converge_p2p.core.oplog.bodies import Genesis, Phase, VoteBody
from converge_p2p.core.oplog.log import OperationLog
from converge_p2p.core.oplog.operation import decode_operation
from converge_p2p.core.types import PoolId, PublicKey, TaskId
from converge_p2p.core.view.fold import View
from converge_p2p.core.view.register import Register
from converge_p2p.core.view.vetoes import veto_subject

_HASH = 32


@dataclass(frozen=True, slots=True)
class VetoProof:
    """Proof of what became of a result that vetoers might deny.

    Attributes:
        result: what the task was settled on before.
        said: what the register of the veto was settled on.
        votes: the signed vote operations with the accepts of that.
    """

    result: TaskValue
    said: TaskValue
    votes: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Receipt:
    """Proof of a settlement.

    Attributes:
        pool: the pool; who checks a receipt must know this id from elsewhere.
        task: the task.
        value: what it ended with.
        genesis: the signed founding operation.
        votes: the signed vote operations with the accepts.
        veto: of a result that vetoers might deny, what became of that.
    """

    pool: PoolId
    task: TaskId
    value: TaskValue
    genesis: bytes
    votes: tuple[bytes, ...]
    veto: VetoProof | None = None

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
        except (RemoteViolation, CodecError) as error:
            raise SignatureError(f"the proof is damaged: {error}") from error
        settled = self.value if self.veto is None else self.veto.result
        if not self._accepted(rules, self.task, settled, self.votes):
            raise SignatureError("the votes of the proof do not settle the task on this value")
        if rules.veto is None or settled.outcome is not Outcome.COMPLETED:
            if self.veto is not None:
                raise SignatureError("nobody may deny this value, and the proof says what became of a veto")
            return
        if self.veto is None:
            raise SignatureError("the pool's vetoers might deny this value, and the proof does not say that it passed")
        said = self.veto.said
        if not self._accepted(rules, veto_subject(self.task, settled.hash), said, self.veto.votes):
            raise SignatureError("the votes of the proof do not decide the veto like this")
        if self.value != (settled if said.outcome is Outcome.COMPLETED else said):
            raise SignatureError("the task ended with another value than the proof says")

    def _accepted(self, rules: Ruleset, subject: TaskId, value: TaskValue, votes: tuple[bytes, ...]) -> bool:
        accepted: dict[int, set[PublicKey]] = {}
        try:
            for signed in votes:
                vote = decode_operation(signed, self.pool)
                if not isinstance(vote.body, VoteBody):
                    raise SignatureError("an operation of the proof is not a vote")
                for ballot in vote.body.ballots:
                    if (ballot.phase, ballot.task, ballot.ref) == (Phase.ACCEPT, subject, value.hash):
                        accepted.setdefault(ballot.round, set()).add(vote.author)
        except (RemoteViolation, CodecError) as error:
            raise SignatureError(f"the proof is damaged: {error}") from error
        return any(rules.accept.satisfied_by(voters) for voters in accepted.values())

    def to_bytes(self) -> bytes:
        """Return canonical bytes, to be kept or sent."""
        fields = [1, self.pool, self.task, _plain(self.value), self.genesis, list(self.votes)]
        if self.veto is not None:
            fields.append([_plain(self.veto.result), _plain(self.veto.said), list(self.veto.votes)])
        return encode(fields)

    @classmethod
    def from_bytes(cls, data: bytes) -> Receipt:
        """Read the bytes of a receipt. It still has to be verified.

        Raises:
            CodecError: not a receipt.
        """
        match decode(data):
            case [1, bytes() as pool, bytes() as task, value, bytes() as genesis, votes, *more] if (
                len(pool) == len(task) == _HASH and len(more) <= 1
            ):
                veto = None
                if more:
                    match more[0]:
                        case [result, said, certificate]:
                            veto = VetoProof(_value(result), _value(said), _votes(certificate))
                        case _:
                            raise CodecError("the proof of a veto is an array of a result, what was said, and votes")
                return cls(PoolId(pool), TaskId(task), _value(value), genesis, _votes(votes), veto)
        raise CodecError("not a receipt: expected an array of version 1, pool, task, value, genesis and votes")


def _plain(value: TaskValue) -> list[Any]:
    return [int(value.outcome), value.worker, value.result]


def _value(plain: Any) -> TaskValue:
    match plain:
        case [int() as outcome, bytes() as worker, bytes() as result] if (
            type(outcome) is int and outcome in tuple(Outcome) and len(worker) == _HASH
        ):
            return TaskValue(Outcome(outcome), PublicKey(worker), result)
    raise CodecError("a value of a receipt is an array of outcome, worker and result")


def _votes(plain: Any) -> tuple[bytes, ...]:
    if type(plain) is not list or len(plain) > limits.ELECTORS_MAX or any(type(vote) is not bytes for vote in plain):
        raise CodecError(f"a certificate of a receipt is an array of at most {limits.ELECTORS_MAX} votes")
    return tuple(plain)


def receipt_of(view: View, log: OperationLog, task: TaskId) -> Receipt | None:
    """Return the receipt of a task that ended, or None if it has not ended here."""
    register = view.registers.get(task)
    if register is None or register.value is None or register.final is None:
        return None
    votes, proof = _certificate(register, log), None
    if register.veto is not None and register.veto.value is not None and register.value.outcome is Outcome.COMPLETED:
        certificate = _certificate(register.veto, log)
        if certificate is None:
            return None
        proof = VetoProof(register.value, register.veto.value, certificate)
    return None if votes is None else Receipt(view.pool, task, register.final, view.genesis, votes, proof)


def _certificate(register: Register, log: OperationLog) -> tuple[bytes, ...] | None:
    votes = [log.get(vote) for vote in sorted(set(register.certificate.values()))]
    held = tuple(vote for vote in votes if vote is not None)
    return held if len(held) == len(votes) else None
