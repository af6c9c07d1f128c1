"""A receipt: proof, for somebody who trusts nobody, that a pool settled a task on a value.

Knows: what has to be shown, and how it is checked offline. Must not know: a replica or a network.
Source: `docs/protocol.md`, receipts. The pool's id commits to its founding terms, these name the electors and their
quorum, and each vote is signed by an elector. The electors of an epoch certify the terms of the next, so that the
electors of a later epoch are known by a chain of certificates that begins with the pool's id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from converge_p2p.core import limits
from converge_p2p.core.codec import decode, encode
from converge_p2p.core.errors import CodecError, RemoteViolation, SignatureError
from converge_p2p.core.governance.models import Ruleset, VetoTerms, compile_rules
from converge_p2p.core.model.pool import PoolSpec, pool_id
from converge_p2p.core.model.task import Outcome, TaskValue
from converge_p2p.core.oplog.bodies import Genesis, Phase, Token, VoteBody
from converge_p2p.core.oplog.operation import decode_operation
from converge_p2p.core.types import OperationId, PoolId, PublicKey, TaskId
from converge_p2p.core.view.epochs import EpochValue, epoch_subject
from converge_p2p.core.view.register import Register
from converge_p2p.core.view.vetoes import veto_subject

if TYPE_CHECKING:
    # who only verifies a receipt needs neither a log nor a fold
    from converge_p2p.core.oplog.log import OperationLog
    from converge_p2p.core.view.fold import View

VERSION = 2
_HASH = 32


class ProvenTerms(NamedTuple):
    """The terms of an epoch.

    Attributes:
        rules: what they compile to; `rules.provisional` if two sets of electors could decide differently.
    """

    spec: PoolSpec
    rules: Ruleset


class Proven(NamedTuple):
    """What a proof rests on.

    Attributes:
        terms: of each epoch of the proof, from the founding on.
        epoch: in which the value was accepted, before vetoers.
        signers: the electors whose votes accepted it, sorted.
    """

    terms: tuple[ProvenTerms, ...]
    epoch: int
    signers: tuple[PublicKey, ...]


class EpochProof(NamedTuple):
    """Proof of an epoch, for somebody who knows the electors of the one before.

    Attributes:
        value: what its register was settled on; the result is the content of the epoch.
        votes: the signed vote operations with the accepts of that.
    """

    value: TaskValue
    votes: tuple[bytes, ...]


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
        epochs: from the first on, every epoch up to the last that a vote of the proof names.
        veto: of a result that vetoers might deny, what became of that.
    """

    pool: PoolId
    task: TaskId
    value: TaskValue
    genesis: bytes
    votes: tuple[bytes, ...]
    epochs: tuple[EpochProof, ...] = ()
    veto: VetoProof | None = None

    def verify(self) -> bool:
        """Whether the proof holds. See `check` for the reason why not."""
        try:
            self.check()
        except SignatureError:
            return False
        return True

    @property
    def signers(self) -> tuple[PublicKey, ...]:
        """The electors whose votes settled the value, sorted.

        Raises:
            SignatureError: the proof does not hold.
        """
        return self.prove().signers

    def check(self) -> None:
        """Check the proof.

        Raises:
            SignatureError: it does not hold; the message says what is wrong.
        """
        self.prove()

    def prove(self) -> Proven:
        """Check the proof, and return what it rests on.

        Terms under which two sets of electors could decide differently are refused, unless they say so themselves: then
        the rules that they compile to are `provisional`.

        Raises:
            SignatureError: it does not hold; the message says what is wrong.
        """
        try:
            founding = decode_operation(self.genesis, self.pool)
            if not isinstance(founding.body, Genesis) or pool_id(founding.author, founding.body.spec) != self.pool:
                raise SignatureError("the founding operation is not this pool's")
            terms = self._follow_epochs(_proven(founding.body.spec))
            chain = [rules for _, rules in terms]
            settled = self.value if self.veto is None else self.veto.result
            accepted = self._accepted_in(chain, self.task, settled, self.votes)
            if accepted is None:
                raise SignatureError("the votes of the proof do not settle the task on this value")
            self._check_veto(chain, accepted[0], settled)
        except (RemoteViolation, CodecError) as error:
            raise SignatureError(f"the proof is damaged: {error}") from error
        return Proven(tuple(terms), *accepted)

    def _follow_epochs(self, founding: ProvenTerms) -> list[ProvenTerms]:
        """The terms of every epoch of the proof, each certified under those of the one before."""
        chain, before = [founding], bytes(self.pool)
        for number, (value, votes) in enumerate(self.epochs, 1):
            content = EpochValue.from_bytes(value.result)
            if (content.number, content.before, value.outcome) != (number, before, Outcome.COMPLETED):
                raise SignatureError(f"epoch {number} of the proof does not follow the one before it")
            # its register belongs to the epoch before: votes of any other do not count in it
            subject = epoch_subject(self.pool, number)
            accepts, certifies = self._accepts(subject, value, votes), chain[-1].rules.epoch
            if not any(token.epoch == number - 1 and certifies.satisfied_by(said) for token, said in accepts.items()):
                raise SignatureError(f"the votes of the proof do not certify epoch {number}")
            chain.append(_proven(content.spec))
            before = value.hash
        return chain

    def _accepted_in(
        self, chain: Sequence[Ruleset], subject: TaskId, value: TaskValue, votes: tuple[bytes, ...]
    ) -> tuple[int, tuple[PublicKey, ...]] | None:
        """The first epoch whose electors settled a subject on a value by these votes, and which of them did."""
        for (epoch, _), voters in sorted(self._accepts(subject, value, votes).items()):
            accept = chain[epoch].accept if epoch < len(chain) else None
            if accept is not None and accept.satisfied_by(voters):
                # anybody can put votes of strangers into a proof
                return epoch, tuple(sorted(voters & accept.electors))
        return None

    def _check_veto(self, chain: Sequence[Ruleset], epoch: int, settled: TaskValue) -> None:
        terms: set[VetoTerms | None] = {rules.veto for rules in chain[: epoch + 1]}
        if terms == {None} or settled.outcome is not Outcome.COMPLETED:
            if self.veto is not None:
                raise SignatureError("nobody may deny this value, and the proof says what became of a veto")
            return
        if self.veto is None:
            # where only some epochs had vetoers, it depends on where the value was accepted first whether these have a
            # say (see `TaskRegister.veto_terms`), and that takes the chains of all electors to show
            raise SignatureError("the pool's vetoers might deny this value, and the proof does not say that it passed")
        said = self.veto.said
        if self._accepted_in(chain, veto_subject(self.task, settled.hash), said, self.veto.votes) is None:
            raise SignatureError("the votes of the proof do not decide the veto like this")
        if self.value != (settled if said.outcome is Outcome.COMPLETED else said):
            raise SignatureError("the task ended with another value than the proof says")

    def _accepts(self, subject: TaskId, value: TaskValue, votes: tuple[bytes, ...]) -> dict[Token, set[PublicKey]]:
        """Who accepted a value, by epoch and round."""
        accepted: dict[Token, set[PublicKey]] = {}
        for signed in votes:
            vote = decode_operation(signed, self.pool)
            if not isinstance(vote.body, VoteBody):
                raise SignatureError("an operation of the proof is not a vote")
            for ballot in vote.body.ballots:
                if (ballot.phase, ballot.task, ballot.ref) == (Phase.ACCEPT, subject, value.hash):
                    accepted.setdefault(Token(vote.epoch, ballot.round), set()).add(vote.author)
        return accepted

    def to_bytes(self) -> bytes:
        """Return canonical bytes, to be kept or sent."""
        epochs = [[_plain(value), list(votes)] for value, votes in self.epochs]
        fields = [VERSION, self.pool, self.task, _plain(self.value), self.genesis, epochs, list(self.votes)]
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
            case [
                int() as version,
                bytes() as pool,
                bytes() as task,
                value,
                bytes() as genesis,
                epochs,
                votes,
                *more,
            ] if type(version) is int and version == VERSION and len(pool) == len(task) == _HASH and len(more) <= 1:
                proof = _veto(more[0]) if more else None
                return cls(
                    PoolId(pool), TaskId(task), _value(value), genesis, _votes(votes), _epochs(epochs), proof
                )  # fmt: skip
        raise CodecError(
            f"not a receipt: expected an array of version {VERSION}, pool, task, value, genesis, epochs and votes"
        )


def _proven(spec: PoolSpec) -> ProvenTerms:
    """Raises CodecError if two sets of electors could decide differently, and the terms do not say so."""
    return ProvenTerms(spec, compile_rules(spec, disputes=False))


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


def _veto(plain: Any) -> VetoProof:
    match plain:
        case [result, said, votes]:
            return VetoProof(_value(result), _value(said), _votes(votes))
    raise CodecError("the proof of a veto is an array of a result, what was said, and votes")


def _epochs(plain: Any) -> tuple[EpochProof, ...]:
    if type(plain) is not list or len(plain) > limits.RECEIPT_EPOCHS_MAX:
        raise CodecError(f"the epochs of a receipt are an array of at most {limits.RECEIPT_EPOCHS_MAX}")
    proofs = []
    for item in plain:
        match item:
            case [value, votes]:
                proofs.append(EpochProof(_value(value), _votes(votes)))
            case _:
                raise CodecError("an epoch of a receipt is an array of a value and votes")
    return tuple(proofs)


def receipt_of(view: View, log: OperationLog, task: TaskId) -> Receipt | None:
    """Return the receipt of a task that ended, or None if it has not ended here."""
    register = view.registers.get(task)
    if register is None or register.value is None or register.final is None or register.settled_token is None:
        return None
    votes, proof, last = _certificate(register, log), None, register.settled_token.epoch
    veto = register.veto
    if veto is not None and veto.value is not None and register.value.outcome is Outcome.COMPLETED:
        certificate = _certificate(veto, log)
        if certificate is None or veto.settled_token is None:
            return None
        proof, last = VetoProof(register.value, veto.value, certificate), max(last, veto.settled_token.epoch)
    epochs = []
    for number in range(1, last + 1):
        change = view.changes_at(number)
        certified = _certificate(change, log, change.early)
        if change.value is None or certified is None:
            return None
        epochs.append(EpochProof(change.value, certified))
    if votes is None:
        return None
    return Receipt(view.pool, task, register.final, view.genesis, votes, tuple(epochs), proof)


def _certificate(
    register: Register, log: OperationLog, beside: Mapping[OperationId, bytes] = MappingProxyType({})
) -> tuple[bytes, ...] | None:
    votes = [log.get(vote) or beside.get(vote) for vote in sorted(set(register.certificate.values()))]
    held = tuple(vote for vote in votes if vote is not None)
    return held if len(held) == len(votes) else None
