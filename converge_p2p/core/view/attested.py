"""Which checkpoints were proposed, and which of them enough electors attested.

Knows: proposals and attestations, as sets. Must not know: whether a root is right (see `summary`), or what is done
about a certified checkpoint.
Source: `docs/protocol.md`, checkpoints.

A proposal counts for nothing: it says what an attestation is about, also when its author forked. Attestations are votes
of the epoch that the proposal names, and count for ever; a checkpoint that was certified stays so.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from converge_p2p.core import limits
from converge_p2p.core.oplog.checkpoints import AttestBody, CheckpointBody
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.types import OperationId, PublicKey
from converge_p2p.core.view.epochs import Epochs


class Proposed(NamedTuple):
    """A checkpoint somebody proposed. They sort by author, then by how new they are."""

    seq: int
    id: OperationId
    author: PublicKey
    epoch: int
    body: CheckpointBody


class _Attest(NamedTuple):
    seq: int
    operation: OperationId


class Attested:
    """Checkpoints above the last one that is in force here, that one included."""

    def __init__(self, epochs: Epochs) -> None:
        """Begin without any.

        Args:
            epochs: those installed so far.
        """
        self._epochs = epochs
        self._proposed: dict[PublicKey, list[Proposed]] = {}
        self._by_id: dict[OperationId, Proposed] = {}
        self._attests: dict[tuple[OperationId, int, bytes], dict[PublicKey, _Attest]] = {}

    def add(self, operation: Operation) -> None:
        """Note a proposal or an attestation of an elector of the epoch it names.

        Of each elector only the newest proposals are kept: an honest one makes another only when the last one lies
        behind it.
        """
        body, epoch = operation.body, self._epochs.find(operation.epoch)
        if epoch is None or operation.author not in epoch.electors:
            return
        if isinstance(body, AttestBody):
            voters = self._attests.setdefault((body.checkpoint, operation.epoch, body.root), {})
            said = _Attest(operation.seq, operation.id)
            voters[operation.author] = min(said, voters.get(operation.author, said))
        elif isinstance(body, CheckpointBody) and operation.id not in self._by_id:
            own = self._proposed.setdefault(operation.author, [])
            proposed = Proposed(operation.seq, operation.id, operation.author, operation.epoch, body)
            insort(own, proposed, key=lambda item: item[:2])
            self._by_id[operation.id] = proposed
            if len(own) > limits.CHECKPOINTS_PER_ELECTOR_MAX:
                del self._by_id[own.pop(0).id]

    def __len__(self) -> int:
        return len(self._by_id)

    def proposals(self) -> Iterator[Proposed]:
        """Every proposal that is kept, sorted by author, each one's oldest first."""
        for author in sorted(self._proposed):
            yield from self._proposed[author]

    def voters(self, proposed: Proposed) -> Mapping[PublicKey, OperationId]:
        """Who attested a proposal, with the root it names, in its epoch; and with which operation."""
        said = self._attests.get((proposed.id, proposed.epoch, proposed.body.root), {})
        return {elector: attest.operation for elector, attest in said.items()}

    def certified(self, proposed: Proposed) -> bool:
        """Whether those who attested a proposal may settle a task in its epoch. True stays true."""
        epoch = self._epochs.find(proposed.epoch)
        if epoch is None:
            return False
        return epoch.counting.rules.accept.satisfied_by(epoch.electors & self.voters(proposed).keys())

    def forget(self, base: Callable[[PublicKey], int], keep: OperationId) -> None:
        """Drop what stands below a checkpoint that is in force now.

        Args:
            base: how much of an author was pruned.
            keep: the proposal of that checkpoint.
        """
        for author, own in list(self._proposed.items()):
            left = [item for item in own if item.id == keep or item.seq >= base(author)]
            for item in own:
                if item not in left:
                    del self._by_id[item.id]
            self._proposed[author] = left
            if not left:
                del self._proposed[author]
        for key, voters in list(self._attests.items()):
            if key[0] == keep:
                continue
            for elector in [elector for elector, said in voters.items() if said.seq < base(elector)]:
                del voters[elector]
            if not voters:
                del self._attests[key]
