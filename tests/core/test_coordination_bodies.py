"""Bodies that coordinate: one encoding of each, and everything else is refused."""

from __future__ import annotations

from typing import Any

import pytest
from coordination_kit import spec_of
from hypothesis import given, strategies as st

from converge_p2p.core import limits
from converge_p2p.core.codec import decode, encode
from converge_p2p.core.errors import CodecError
from converge_p2p.core.oplog.bodies import (
    ActBody,
    ClaimBody,
    Kind,
    Purpose,
    SubmitBody,
    decode_body,
    encode_body,
    kind_of,
)
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
from converge_p2p.core.types import OperationId, PublicKey, TaskId

hashes = st.binary(min_size=32, max_size=32)
ids = hashes.map(OperationId)
keys = hashes.map(PublicKey)
tasks = hashes.map(TaskId)
counts = st.integers(0, limits.SEQ_MAX)
texts = st.text(max_size=20)
sorted_keys = st.lists(keys, min_size=1, max_size=5, unique=True).map(lambda items: tuple(sorted(items)))
sorted_ids = st.lists(ids, max_size=5, unique=True).map(lambda items: tuple(sorted(items)))
rules = st.builds(AuctionRule, st.booleans(), st.booleans())
scopes = st.lists(st.sampled_from(Scope), min_size=1, unique=True).map(lambda items: tuple(sorted(items)))
votes = st.builds(PollVoteBody, ids, st.integers(0, limits.OPTIONS_PER_POLL_MAX - 1))
answers = st.builds(AnswerBody, ids, st.none() | ids, ids, st.booleans(), texts)
cancels = st.builds(ClaimBody, tasks, st.just(Purpose.CANCEL), st.just(0), texts)
options = st.lists(st.text(min_size=1, max_size=9), min_size=2, max_size=5, unique=True).map(tuple)
questions = st.text(min_size=1, max_size=9)
named_bids = st.dictionaries(keys, ids, max_size=5).map(lambda bids: tuple(sorted(bids.items())))
bodies = st.one_of(
    st.builds(AuctionOpenBody, tasks, rules, counts),
    st.builds(AuctionCloseBody, ids, named_bids),
    st.builds(AuctionSettleBody, ids, sorted_keys),
    st.builds(BidCommitBody, ids, hashes),
    st.builds(BidRevealBody, ids, ids, counts, hashes),
    st.builds(PollOpenBody, questions, options, st.sampled_from(PollRule), st.just(1), sorted_keys, counts),
    votes,
    st.builds(PollCloseBody, ids, sorted_ids),
    st.builds(ProposeBody, st.none(), st.none(), st.binary(max_size=9), sorted_keys, counts, counts),
    st.builds(ProposeBody, ids, ids, st.binary(max_size=9)),
    answers,
    st.builds(DelegateBody, keys, scopes, st.none() | hashes, st.binary(max_size=9), counts, counts),
    st.builds(RevokeBody, ids, counts),
    st.builds(ActBody, ids, st.one_of(votes, answers, cancels, st.just(SubmitBody(spec_of())))),
)  # fmt: skip


@given(bodies)
def test_every_body_comes_back_from_its_bytes(body: Any) -> None:
    assert decode_body(int(kind_of(body)), decode(encode(encode_body(body)))) == body


A, B = bytes(32), b"\1" * 32
REFUSED: list[tuple[str, Kind, list[Any]]] = [
    ("auction without a step", Kind.AUCTION, []),
    ("auction of an unknown step", Kind.AUCTION, [3, A, []]),
    ("step that is a truth value", Kind.AUCTION, [False, A, False, False, 0]),
    ("rule that is a number", Kind.AUCTION, [0, A, 0, 1, 0]),
    ("time before zero", Kind.AUCTION, [0, A, False, False, -1]),
    ("close with bids out of order", Kind.AUCTION, [1, A, [[B, A], [A, A]]]),
    ("close that names a bidder twice", Kind.AUCTION, [1, A, [[A, A], [A, B]]]),
    ("close with a bid of three", Kind.AUCTION, [1, A, [[A, A, A]]]),
    ("close with too many bids", Kind.AUCTION, [1, A, [[number.to_bytes(32, "big"), A] for number in range(257)]]),
    ("settlement out of order", Kind.AUCTION, [2, A, [B, A]]),
    ("bid of an unknown step", Kind.BID, [2, A, A]),
    ("commitment too short", Kind.BID, [0, A, b"short"]),
    ("amount below zero", Kind.BID, [1, A, A, -1, A]),
    ("amount that is a truth value", Kind.BID, [1, A, A, True, A]),
    ("amount too large", Kind.BID, [1, A, A, 2**53, A]),
    ("nonce too short", Kind.BID, [1, A, A, 1, b"guess"]),
    ("poll with one option", Kind.POLL_OPEN, ["?", ["a"], 0, 0, [A], 0]),
    ("poll with equal options", Kind.POLL_OPEN, ["?", ["a", "a"], 0, 0, [A], 0]),
    ("poll with an empty option", Kind.POLL_OPEN, ["?", ["a", ""], 0, 0, [A], 0]),
    ("poll with too many options", Kind.POLL_OPEN, ["?", [str(number) for number in range(17)], 0, 0, [A], 0]),
    ("poll without a question", Kind.POLL_OPEN, ["", ["a", "b"], 0, 0, [A], 0]),
    ("poll of an unknown rule", Kind.POLL_OPEN, ["?", ["a", "b"], 2, 0, [A], 0]),
    ("poll that asks nobody", Kind.POLL_OPEN, ["?", ["a", "b"], 0, 0, [], 0]),
    ("quorum above the electorate", Kind.POLL_OPEN, ["?", ["a", "b"], 0, 2, [A], 0]),
    ("electorate out of order", Kind.POLL_OPEN, ["?", ["a", "b"], 0, 0, [B, A], 0]),
    ("vote for an option that no poll has", Kind.POLL_VOTE, [A, 16]),
    ("vote for no option", Kind.POLL_VOTE, [A, -1]),
    ("close with votes out of order", Kind.POLL_CLOSE, [A, [B, A]]),
    ("opening that answers something", Kind.PROPOSE, [None, A, b"", [A], 0, 0]),
    ("proposal that answers nothing", Kind.PROPOSE, [A, None, b"", [], 0, 0]),
    ("opening without parties", Kind.PROPOSE, [None, None, b"", [], 0, 0]),
    ("proposal that names parties", Kind.PROPOSE, [A, A, b"", [A], 0, 0]),
    ("proposal that moves the end", Kind.PROPOSE, [A, A, b"", [], 1, 0]),
    ("terms too long", Kind.PROPOSE, [A, A, bytes(limits.TERMS_BYTES_MAX + 1), [], 0, 0]),
    ("too many parties", Kind.PROPOSE, [None, None, b"", [bytes([number]) * 32 for number in range(16)], 0, 0]),
    ("answer that is a number", Kind.ANSWER, [A, None, A, 1, ""]),
    ("answer with a long reason", Kind.ANSWER, [A, None, A, True, "x" * 1025]),
    ("delegation of nothing", Kind.DELEGATE, [A, [], None, b"", 0, 0]),
    ("delegation of an unknown scope", Kind.DELEGATE, [A, [4], None, b"", 0, 0]),
    ("scopes out of order", Kind.DELEGATE, [A, [1, 0], None, b"", 0, 0]),
    ("scope that is a truth value", Kind.DELEGATE, [A, [True], None, b"", 0, 0]),
    ("subject too short", Kind.DELEGATE, [A, [0], b"task", b"", 0, 0]),
    ("revocation of less than nothing", Kind.REVOKE, [A, -1]),
    ("act that joins", Kind.ACT, [A, 1, [[], b""]]),
    ("act that works", Kind.ACT, [A, 4, [A, 0, 0, ""]]),
    ("act that delegates further", Kind.ACT, [A, 27, [A, [0], None, b"", 0, 0]]),
    ("act that votes as an elector", Kind.ACT, [A, 7, [[0, A, 0, A, None, None]]]),
    ("act in an act", Kind.ACT, [A, 29, [A, 23, [A, 0]]]),
    ("act with a malformed vote", Kind.ACT, [A, 23, [A, 16]]),
]


@pytest.mark.parametrize(("kind", "body"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_has_another_form_is_refused(kind: Kind, body: list[Any]) -> None:
    with pytest.raises(CodecError):
        decode_body(int(kind), body)


@given(bodies, st.data())
def test_a_body_with_a_field_of_another_type_or_a_field_more_is_refused(body: Any, data: Any) -> None:
    plain, kind = encode_body(body), int(kind_of(body))
    with pytest.raises(CodecError):
        decode_body(kind, [*plain, 0])
    index = data.draw(st.integers(0, len(plain) - 1))
    with pytest.raises(CodecError):
        decode_body(kind, [*plain[:index], {"of": "another type"}, *plain[index + 1 :]])


def test_a_commitment_binds_auction_bidder_amount_and_nonce() -> None:
    auctions, bidders = (OperationId(A), OperationId(B)), (PublicKey(A), PublicKey(B))
    commitments = {
        bid_commitment(auction, bidder, amount, nonce)
        for auction in auctions
        for bidder in bidders
        for amount in (1, 256)
        for nonce in (A, B)
    }
    assert len(commitments) == 16
