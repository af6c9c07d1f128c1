"""Vectors of receipts: tasks settled in the first epoch, in a later one, and with vetoers; and proofs that do not hold.

Knows: one small pool with vetoers whose electors change twice. `generate.py` writes what is made here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from pool_story import Signer

from converge_p2p.core.codec import decode, encode_value, tagged_hash
from converge_p2p.core.model.pool import GovernanceKind, ModelTerms, PoolSpec, pool_id
from converge_p2p.core.model.task import Outcome, TaskValue
from converge_p2p.core.oplog.bodies import Ballot, Genesis, Phase, VoteBody
from converge_p2p.core.types import OperationId, PoolId, TaskId
from converge_p2p.core.view.epochs import EpochValue, epoch_subject
from converge_p2p.core.view.receipt import EpochProof, Receipt, VetoProof
from converge_p2p.core.view.vetoes import veto_subject

TASK = TaskId(tagged_hash("task", b"of the receipts"))


class _Told:
    """A pool, what its electors accepted, and the epochs that follow from it."""

    def __init__(self, **terms: Any) -> None:
        self.people = {name: Signer(name) for name in ("alice", "bob", "carol")}
        terms.setdefault("governance", GovernanceKind.DEMOCRATIC)
        self.spec = PoolSpec("receipts", bytes(range(16)), electors=self.keys("alice", "bob"), quorum=2, **terms)
        alice = self.people["alice"]
        self.pool: PoolId = pool_id(alice.identity.public_key, self.spec)
        self.genesis = alice.sign(self.pool, Genesis(self.spec)).signed
        self.epochs: tuple[EpochProof, ...] = ()

    def keys(self, *names: str) -> tuple[Any, ...]:
        return tuple(sorted(self.people[name].identity.public_key for name in names))

    def value(self, name: str, content: Any, outcome: Outcome = Outcome.COMPLETED) -> TaskValue:
        return TaskValue(outcome, self.people[name].identity.public_key, encode_value(content))

    def accept(self, subject: TaskId, value: TaskValue, epoch: int, who: Iterable[str]) -> tuple[bytes, ...]:
        ballots = VoteBody((Ballot(Phase.ACCEPT, subject, 0, value.hash),))
        return tuple(self.people[name].sign(self.pool, ballots, epoch=epoch).signed for name in who)

    def change(self, electors: tuple[str, ...], by: tuple[str, ...]) -> None:
        """One more epoch, with other electors."""
        number = len(self.epochs) + 1
        before = self.pool if number == 1 else self.epochs[-1].value.hash
        promises = tuple(sorted(OperationId(tagged_hash("promise", bytes([number, who]))) for who in range(2)))
        motion = OperationId(tagged_hash("motion", bytes([number])))
        spec = replace(self.spec, electors=self.keys(*electors))
        content = EpochValue(number, before, motion, spec, (), promises).to_bytes()
        value = TaskValue(Outcome.COMPLETED, self.people[by[0]].identity.public_key, content)
        votes = self.accept(epoch_subject(self.pool, number), value, number - 1, by)
        self.epochs += (EpochProof(value, votes),)

    def receipt(self, value: TaskValue, votes: tuple[bytes, ...], veto: VetoProof | None = None) -> Receipt:
        return Receipt(self.pool, TASK, value, self.genesis, votes, self.epochs, veto)


def _receipts() -> tuple[dict[str, Receipt], dict[str, Receipt]]:
    plain = _Told()
    value = plain.value("carol", {"tokens": 12})
    first = plain.receipt(value, plain.accept(TASK, value, 0, ("alice", "bob")))
    plain.change(("bob", "carol"), ("alice", "bob"))
    plain.change(("alice", "carol"), ("bob", "carol"))
    third = plain.receipt(value, plain.accept(TASK, value, 2, ("alice", "carol")))
    one, two = third.epochs

    guarded = _Told(governance=GovernanceKind.VETO, model=ModelTerms(vetoers=plain.keys("carol"), veto_window_ms=5000))
    votes = guarded.accept(TASK, value, 0, ("alice", "bob"))
    guarded.change(("alice", "carol"), ("alice", "bob"))
    subject, failed = veto_subject(TASK, value.hash), {"error": "vetoed", "by": plain.keys("carol")[0], "reason": "no"}
    said = guarded.value("alice", failed, Outcome.FAILED)
    passed = guarded.value("alice", "passed")
    denied = guarded.receipt(said, votes, VetoProof(value, said, guarded.accept(subject, said, 1, ("alice", "carol"))))
    let = VetoProof(value, passed, guarded.accept(subject, passed, 1, ("alice", "carol")))
    own = plain.accept(epoch_subject(plain.pool, 2), two.value, 2, ("bob", "carol"))
    holds = {
        "settled in the first epoch": first,
        "settled in the third epoch": third,
        "settled in the first epoch, denied in the second": denied,
        "settled in the first epoch, passed in the second": guarded.receipt(value, votes, let),
    }
    fails = {
        "votes of an elector that is none any more": replace(
            third, votes=plain.accept(TASK, value, 2, ("bob", "carol"))
        ),
        "an epoch is left out": replace(third, epochs=(two,)),
        "the last epoch is left out": replace(third, epochs=(one,)),
        "too few votes for an epoch": replace(third, epochs=(one, EpochProof(two.value, two.votes[:1]))),
        "an epoch is certified by votes that name it": replace(third, epochs=(one, EpochProof(two.value, own))),
        "vetoers were not asked": guarded.receipt(value, votes),
    }
    return holds, fails


def receipts(to_json: Any) -> dict[str, Any]:
    """Receipts that hold, and some that are well-formed and prove nothing."""
    holds, fails = _receipts()
    return {
        "holds": [
            {
                "name": name,
                "pool": receipt.pool.hex(),
                "hex": receipt.to_bytes().hex(),
                "fields": to_json(decode(receipt.to_bytes())),
            }
            for name, receipt in holds.items()
        ],
        "fails": [{"name": name, "hex": receipt.to_bytes().hex()} for name, receipt in fails.items()],
    }
