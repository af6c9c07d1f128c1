"""Vectors of the replicated part of the protocol: pools, tasks, operations of every kind, sync messages, frontiers.

Knows: one small pool in which everything happens once. `generate.py` writes what is made here.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

from converge_p2p.core.codec import decode, encode, encode_value, tagged_hash
from converge_p2p.core.identity import SIGNATURE_BYTES, Identity
from converge_p2p.core.model.pool import AdmissionKind, GovernanceKind, PoolPolicy, PoolSpec, pool_id
from converge_p2p.core.model.secrecy import ContentKey, exchange_key_of, exchange_public
from converge_p2p.core.model.task import Outcome, TaskSpec, TaskValue, task_id
from converge_p2p.core.model.topic import Topic
from converge_p2p.core.oplog.bodies import (
    ActBody,
    Ballot,
    Body,
    ClaimBody,
    Genesis,
    JoinBody,
    LeaveBody,
    Lock,
    Phase,
    Purpose,
    ReleaseBody,
    ReportBody,
    SubmitBody,
    Token,
    VetoBody,
    VoteBody,
)
from converge_p2p.core.oplog.checkpoints import AttestBody, CheckpointBody
from converge_p2p.core.oplog.coordination import (
    AnswerBody,
    AuctionCloseBody,
    AuctionOpenBody,
    AuctionRule,
    AuctionSettleBody,
    BidCommitBody,
    BidRevealBody,
    DelegateBody,
    PollCloseBody,
    PollOpenBody,
    PollRule,
    PollVoteBody,
    ProposeBody,
    RevokeBody,
    Scope,
    bid_commitment,
)
from converge_p2p.core.oplog.cuts import Cut
from converge_p2p.core.oplog.evidence import EvidenceBody
from converge_p2p.core.oplog.frontier import FrontierEntry, FrontierIndex
from converge_p2p.core.oplog.key_bodies import PrekeyBody, offer_bodies
from converge_p2p.core.oplog.log import Chain, Missing, OperationLog
from converge_p2p.core.oplog.motions import YES, OpinionBody, dispute_result, dispute_rivals, move_change
from converge_p2p.core.oplog.operation import Operation, sign_operation
from converge_p2p.core.oplog.succession import RecoveryBody, commitment_of, recovery, rotation
from converge_p2p.core.oplog.verdicts import VerdictBody
from converge_p2p.core.replica.reconcile import answer, opening
from converge_p2p.core.replica.wire import (
    Chunk,
    ChunkWanted,
    Comparison,
    Digest,
    Entries,
    GenesisWanted,
    LooseWanted,
    Offer,
    Operations,
    Part,
    SnapshotWanted,
    SyncMessage,
    Tip,
    TipWanted,
    Want,
    encode_message,
)
from converge_p2p.core.types import OperationId, PoolId, PublicKey, TaskId
from converge_p2p.core.view.snapshot import Manifest, chunk_hash
from converge_p2p.core.view.summary import Summary
from converge_p2p.core.view.vetoes import veto_subject

HLC_START = 1_700_000_000_000 << 16


CONTENT_SECRET, PREKEY_SECRET, OFFER_ENTROPY = (
    hashlib.sha256(name.encode()).digest() for name in ("content key", "prekey", "entropy of an offer")
)


def content_key(pool: PoolId) -> ContentKey:
    """The content key that is offered in the story."""
    return ContentKey(pool, 0, 0, CONTENT_SECRET)


class Signer:
    """Somebody's chain in the pool of the vectors."""

    def __init__(self, name: str) -> None:
        self.identity = Identity.from_seed(hashlib.sha256(name.encode()).digest())
        self.chain: list[Operation] = []

    def sign(self, pool: PoolId, body: Body, **changed: Any) -> Operation:
        """Sign the next operation of the chain."""
        last = self.chain[-1] if self.chain else None
        fields: dict[str, Any] = {"epoch": 0, "hlc": HLC_START + len(self.chain), **changed}
        prev = None if last is None else last.id
        operation = sign_operation(self.identity, pool, body, seq=len(self.chain), prev=prev, **fields)
        self.chain.append(operation)
        return operation


def _spec(alice: Signer, bob: Signer, carol: Signer) -> PoolSpec:
    return PoolSpec(
        name="vectors",
        nonce=bytes(range(16)),
        governance=GovernanceKind.DEMOCRATIC,
        electors=tuple(sorted((alice.identity.public_key, bob.identity.public_key))),
        quorum=2,
        admission=AdmissionKind.WHITELIST,
        whitelist=(carol.identity.public_key,),
        topics=(Topic("acme").to_bytes(),),
        task_types=("index",),
        policy=PoolPolicy(hold_off_ms=10, grant_timer_ms=200, claim_ttl_ms=5000, max_retries=2),
    )


def story() -> tuple[PoolId, list[tuple[str, Operation]]]:
    """Every kind of operation, in an order in which each has an effect."""
    alice, bob, carol = Signer("alice"), Signer("bob"), Signer("carol")
    spec = _spec(alice, bob, carol)
    pool = pool_id(alice.identity.public_key, spec)
    told: list[tuple[str, Operation]] = []

    def tell(name: str, who: Signer, body: Body, **changed: Any) -> Operation:
        told.append((name, who.sign(pool, body, **changed)))
        return told[-1][1]

    tell("genesis", alice, Genesis(spec))
    tell("join", carol, JoinBody(("gpu",), b"invited"))
    work = TaskSpec(
        b"key", "index", encode_value({"file": "a.py"}), required_capabilities=("gpu",), priority=-5,
        claim_ttl_ms=1000, max_retries=None, timeout_ms=60_000,
    )  # fmt: skip
    task = task_id(pool, alice.identity.public_key, work.key)
    submit = tell("submit", alice, SubmitBody(work))
    claim = tell("claim that names the submit in deps", carol, ClaimBody(task, Purpose.WORK, 7), deps=(submit.id,))
    first = tell("vote: a grant", alice, VoteBody((Ballot(Phase.GRANT, task, 0, claim.id),)))
    second = tell("vote: another elector's grant", bob, VoteBody((Ballot(Phase.GRANT, task, 0, claim.id),)))
    value = TaskValue(Outcome.COMPLETED, carol.identity.public_key, encode_value({"tokens": 12}))
    tell("report", carol, ReportBody(task, 0, value, tuple(sorted((first.id, second.id)))))
    tell("vote: endorse", alice, VoteBody((Ballot(Phase.ENDORSE, task, 0, value.hash),)))
    tell(
        "vote: accept, and a grant that carries a lock and tells of an expiry",
        bob,
        VoteBody(
            (
                Ballot(Phase.ACCEPT, task, 0, value.hash),
                Ballot(Phase.GRANT, task, 1, claim.id, Lock(Token(0, 0), value.hash), 0),
            )
        ),
    )
    tell("release after a failure", carol, ReleaseBody(task, 0, True, "no memory"))
    tell("release of a claim that holds nothing", carol, ReleaseBody(task, -1))
    tell("claim to cancel", alice, ClaimBody(task, Purpose.CANCEL, 0, "not needed"))
    tell("claim to settle a failure", bob, ClaimBody(task, Purpose.FAIL, 0, "every attempt failed"))
    veto = tell("veto: a result is denied", bob, VetoBody(task, value.hash, True, "twelve is not enough"))
    tell("veto: a result may pass", alice, VetoBody(task, value.hash, False))
    subject = veto_subject(task, value.hash)
    tell("claim to let a result pass", alice, ClaimBody(subject, Purpose.PASS))
    tell("claim to carry out a veto", bob, ClaimBody(subject, Purpose.DENY, ref=veto.id))
    motion = tell("motion to expel a member", alice, move_change((carol.identity.public_key,), None, "fails often"))
    tell("opinion: for it", bob, OpinionBody(motion.id, YES))
    terms = replace(spec, quorum=1, electors=spec.electors[:1], whitelist=())
    tell("motion to change the terms", bob, move_change((), terms))
    tell("motion that a result is wrong", carol, dispute_result(task, "twelve is not the number"))
    other = TaskValue(Outcome.COMPLETED, carol.identity.public_key, encode_value({"tokens": 13}))
    rivals = tell("motion on rival reports", bob, dispute_rivals(task, (value.hash, other.hash)))
    tell("opinion: the second value", alice, OpinionBody(rivals.id, 1))
    _coordinate(tell, task, alice, bob, carol)
    prekey = tell("prekey", alice, PrekeyBody(exchange_public(PREKEY_SECRET))).body
    assert isinstance(prekey, PrekeyBody)
    recipients = {
        alice.identity.public_key: prekey.exchange_key,
        carol.identity.public_key: exchange_key_of(carol.identity.public_key),
    }
    content = content_key(pool)
    (offer,) = offer_bodies(content, bob.identity.public_key, recipients, OFFER_ENTROPY)
    tell("content key, sealed to a prekey and to the key of an identity", bob, offer)
    tell("verdict: a result is approved", bob, VerdictBody(task, value.hash, True))
    tell("verdict: a result is denied", bob, VerdictBody(task, value.hash, False, "twelve is not enough"))
    tell("leave", carol, LeaveBody())
    dora, erin = Signer("dora"), Signer("erin")
    spare = Signer("recovery").identity
    tell("recovery: a commitment", carol, RecoveryBody(commitment_of(spare.public_key)))
    length = len(carol.chain)
    rotate, succeed = rotation(pool, carol.identity, dora.identity)
    tell("rotate: a key hands over", carol, rotate)
    tell("rotate: the first operation of its successor", dora, succeed)
    words = recovery(pool, carol.identity.public_key, length, key=spare, new=erin.identity.public_key)
    tell("rotate: a recovery", erin, words)
    everybody = (alice, bob, carol, dora, erin)
    cut = tuple(sorted(Cut(one.identity.public_key, len(one.chain), one.chain[-1].id) for one in everybody))
    root = bytes(range(100, 132))
    votes = (OperationId(bytes(range(32))),)
    checkpoint = tell("checkpoint", alice, CheckpointBody(1, pool, cut, votes, root))
    tell("attest", bob, AttestBody(checkpoint.id, root))
    digest = hashlib.sha256(b"tokens\n12\n").digest()
    counted = tell(
        "evidence: for a result", bob, EvidenceBody(task, value.hash, True, digest, 10, "text/csv", "counted by hand")
    )
    tell("evidence: against a result", alice, EvidenceBody(task, other.hash, False, digest, 10, "text/csv"))
    which = rivals.body.rivals.index(value.hash)  # type: ignore[union-attr]
    tell("opinion: a value, with the evidence that it rests on", bob, OpinionBody(rivals.id, which, (counted.id,)))
    return pool, told


def _coordinate(tell: Any, task: TaskId, alice: Signer, bob: Signer, carol: Signer) -> None:
    """An auction, a poll, a negotiation and a delegation, each step with its effect."""
    ann, ben, cleo = (signer.identity.public_key for signer in (alice, bob, carol))
    auction = tell(
        "auction: open, lowest wins, second price", alice, AuctionOpenBody(task, AuctionRule(False, True), 9)
    )
    commits = {}
    for who, amount in ((bob, 4), (carol, 300)):
        commitment = bid_commitment(auction.id, who.identity.public_key, amount, bytes(range(32)))
        commits[who.identity.public_key] = tell("bid: commit", who, BidCommitBody(auction.id, commitment)).id
    bids = tuple(sorted(commits.items()))
    tell("auction: close", alice, AuctionCloseBody(auction.id, bids))
    for who, amount in ((bob, 4), (carol, 300)):
        commit = commits[who.identity.public_key]
        tell("bid: reveal", who, BidRevealBody(auction.id, commit, amount, bytes(range(32))))
    tell("auction: settle", alice, AuctionSettleBody(auction.id, tuple(sorted(commits))))

    everybody = tuple(sorted((ann, ben, cleo)))
    poll = tell("poll_open", bob, PollOpenBody("which?", ("ä", "b"), PollRule.PLURALITY, 2, everybody, 9))
    given = tell(
        "delegate: to vote in one poll", carol, DelegateBody(ben, (Scope.VOTE, Scope.ANSWER), poll.id, b"", 1, 9)
    )
    votes = [
        tell("poll_vote", alice, PollVoteBody(poll.id, 1)),
        tell("act: a vote in another's name", bob, ActBody(given.id, PollVoteBody(poll.id, 0))),
    ]
    tell("poll_close", bob, PollCloseBody(poll.id, tuple(sorted(vote.id for vote in votes))))

    offer = tell(
        "propose: open a negotiation", alice, ProposeBody(None, None, b"ten", tuple(sorted((ben, cleo))), 1, 9)
    )
    counter = tell("propose: another offer", bob, ProposeBody(offer.id, offer.id, b"nine"))
    tell("answer: reject", carol, AnswerBody(offer.id, None, offer.id, False, "too much"))
    for who in (alice, carol):
        tell("answer: accept", who, AnswerBody(offer.id, offer.id, counter.id, True))

    anything = tell("delegate: anything", alice, DelegateBody(cleo, tuple(Scope), None, Topic("acme").to_bytes()))
    tell(
        "act: a submit",
        carol,
        ActBody(anything.id, SubmitBody(TaskSpec(b"2", "index", b"\xc0", Topic("acme").to_bytes()))),
    )
    tell("act: a claim to cancel", carol, ActBody(anything.id, ClaimBody(task, Purpose.CANCEL)))
    tell("act: an answer", carol, ActBody(anything.id, AnswerBody(offer.id, None, offer.id, True)))
    tell("revoke", alice, RevokeBody(anything.id, len(carol.chain)))


def operations(to_json: Any) -> dict[str, Any]:
    """The pool, its task, its value, and every kind of operation."""
    pool, told = story()
    submitted = next(operation for _, operation in told if isinstance(operation.body, SubmitBody))
    report = next(operation.body for _, operation in told if isinstance(operation.body, ReportBody))
    assert isinstance(submitted.body, SubmitBody)
    return {
        "pool_id": pool.hex(),
        "task_id": task_id(pool, submitted.author, submitted.body.spec.key).hex(),
        "value_hash": report.value.hash.hex(),
        "operations": [
            {
                "name": name,
                "id": operation.id.hex(),
                "signed": operation.signed.hex(),
                "fields": to_json(decode(operation.signed[SIGNATURE_BYTES:])),
            }
            for name, operation in told
        ],
    }


def bytes_key(number: int) -> PublicKey:
    """A key that nobody holds."""
    return PublicKey(bytes([number]) * 32)


def sync_messages() -> list[tuple[str, SyncMessage]]:
    """Each kind of sync message."""
    _, told = story()
    one, other = told[0][1], told[1][1]
    entry = FrontierEntry(one.author, 1, one.id)
    frozen = FrontierEntry(other.author, 0, None, bytes(32))
    whole = tuple(sorted((entry, frozen), key=lambda item: item.author))
    manifest = Manifest(2, (chunk_hash(b"ab"),))
    ranges = Comparison(
        b"\x10", (Part(b"\x10\x01", bytes(range(16))), Part(b"\x80", None), Part(b"\x81", bytes(16)), Part(b"", ()))
    )
    return [
        ("digest", Digest(bytes(range(32)))),
        ("comparison, the whole of a small frontier", Comparison(b"", (Part(b"", whole),))),
        ("comparison of ranges: fingerprints, one passed over, no entries", ranges),
        ("want", Want((Missing(one.author, 0, 5),), (LooseWanted(other.author, bytes(range(32))),))),
        ("operations, last of an answer", Operations((one.signed, other.signed), True)),
        ("no operations", Operations((), False)),
        ("genesis wanted", GenesisWanted()),
        ("entries, others were left out", Entries(whole, True)),
        ("tip wanted", TipWanted(other.author)),
        ("tip", Tip(other.author, 3, other.signed)),
        ("tip of an author of whom nothing is held", Tip(bytes_key(7), 0, b"")),
        ("offer of a snapshot of two bytes", Offer(told[-2][1].signed, (told[-1][1].signed,), manifest)),
        ("snapshot wanted", SnapshotWanted(manifest.root)),
        ("chunk wanted", ChunkWanted(manifest.root, 0)),
        ("chunk", Chunk(manifest.root, 0, b"ab")),
    ]


def _split() -> dict[str, Any]:
    """Entries of more authors than are sent whole, and the comparison that a node begins with."""
    log = OperationLog(PoolId(bytes(32)))
    authors = [PublicKey(tagged_hash("split", bytes([number]))) for number in range(70)]
    for author in authors:
        log.chains[author] = Chain([OperationId(author)])
        log.index.put(author, FrontierEntry(author, 1, OperationId(author)).hash)
    # at the peer, the chain of the first author has two
    other = FrontierIndex()
    for author in authors:
        other.put(author, FrontierEntry(author, 1 + (author == min(authors)), OperationId(author)).hash)
    few = other.span(b"", min(authors)[:1] + b"\xff")[1]
    received = Comparison(
        b"",
        (
            Part(other.author(few), other.fingerprint(0, few)),
            Part(other.author(40), other.fingerprint(few, 40)),
            Part(other.author(43), bytes(16)),
            Part(b"", bytes(16)),
        ),
    )
    return {
        "authors, each with a chain of one whose id is the key": [author.hex() for author in sorted(authors)],
        "opening": encode_message(opening(log)).hex(),
        "received": encode_message(received).hex(),
        "answered": [encode_message(message).hex() for message in answer(log, received).messages()],
    }


def sync(to_json: Any) -> dict[str, Any]:
    """Sync messages, and the digest of a frontier."""
    _, told = story()
    entries = [FrontierEntry(operation.author, 1, operation.id) for _, operation in told[:2]]
    index = FrontierIndex()
    empty, nothing = index.digest(), index.fingerprint(0, 0)
    for entry in entries:
        index.put(entry.author, entry.hash)
    return {
        "messages": [
            {"name": name, "hex": encode_message(message).hex(), "value": to_json(decode(encode_message(message)))}
            for name, message in sync_messages()
        ],
        "frontier": {
            "entries": [{"hex": encode(entry.to_plain()).hex(), "hash": entry.hash.hex()} for entry in entries],
            "digest": index.digest().hex(),
            "digest_of_nothing": empty.hex(),
            "fingerprint": index.fingerprint(0, 2).hex(),
            "fingerprint_of_nothing": nothing.hex(),
        },
        "split": _split(),
        "snapshots": _snapshots(),
    }


def _snapshots() -> list[dict[str, Any]]:
    """The state at the cut of the checkpoint of the story, and one in which its task is settled."""
    pool, told = story()
    inside = [operation for _, operation in told[:-2]]
    snapshots = []
    for ended in (False, True):
        summary = Summary(pool)
        for operation in inside:
            assert summary.add(operation, known=lambda _: False)
        if ended:
            report = next(operation.body for operation in inside if isinstance(operation.body, ReportBody))
            accept = VoteBody((Ballot(Phase.ACCEPT, report.task, 0, report.value.hash),))
            for name in ("alice", "bob"):
                signer = Signer(name)
                signer.chain = [item for item in inside if item.author == signer.identity.public_key]
                # bob said so before: twice is once
                assert summary.add(signer.sign(pool, accept), known=lambda _: False)
        snapshots.append(summary.snapshot())
    return [
        {
            "data": snapshot.data.hex(),
            "chunks": [chunk.hex() for chunk in snapshot.manifest.hashes],
            "root": snapshot.root.hex(),
            "settled": len(snapshot.settled),
        }
        for snapshot in snapshots
    ]
