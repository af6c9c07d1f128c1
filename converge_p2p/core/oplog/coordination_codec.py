"""The array forms of the bodies that coordinate.

Knows: shapes and bounds. Must not know: what a body means (see `coordination`).
Source: `docs/protocol.md`, bodies. Every decoder raises CodecError for what is not of its one form.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from converge_p2p.core import limits
from converge_p2p.core.errors import CodecError
from converge_p2p.core.oplog.coordination import (
    NONCE_BYTES,
    AnswerBody,
    AuctionBody,
    AuctionCloseBody,
    AuctionOpenBody,
    AuctionRule,
    AuctionSettleBody,
    BidBody,
    BidCommitBody,
    BidRevealBody,
    CoordinationBody,
    DelegateBody,
    PollCloseBody,
    PollOpenBody,
    PollRule,
    PollVoteBody,
    ProposeBody,
    RevokeBody,
    Scope,
)
from converge_p2p.core.oplog.fields import (
    check_shape,
    count_field,
    hash_field,
    optional_id,
    sorted_ids,
    sorted_keys,
    text_field,
)
from converge_p2p.core.types import OperationId, PublicKey, TaskId


def encode_coordination(body: CoordinationBody) -> list[Any]:
    """Return the array form of a body."""
    match body:
        case AuctionOpenBody(task, rule, expires_ms):
            return [0, task, rule.highest, rule.second_price, expires_ms]
        case AuctionCloseBody(auction, bids):
            return [1, auction, [list(bid) for bid in bids]]
        case AuctionSettleBody(auction, bidders):
            return [2, auction, list(bidders)]
        case BidCommitBody(auction, commitment):
            return [0, auction, commitment]
        case BidRevealBody(auction, commit, amount, nonce):
            return [1, auction, commit, amount, nonce]
        case PollOpenBody(question, options, poll_rule, quorum, electorate, expires_ms):
            return [question, list(options), int(poll_rule), quorum, list(electorate), expires_ms]
        case PollVoteBody(poll, choice):
            return [poll, choice]
        case PollCloseBody(poll, votes):
            return [poll, list(votes)]
        case ProposeBody(session, prev, terms, parties, until_epoch, expires_ms):
            return [session, prev, terms, list(parties), until_epoch, expires_ms]
        case AnswerBody(session, prev, proposal, accepts, reason):
            return [session, prev, proposal, accepts, reason]
        case DelegateBody(delegate, scopes, subject, topic, until_epoch, expires_ms):
            return [delegate, [int(scope) for scope in scopes], subject, topic, until_epoch, expires_ms]
        case RevokeBody(delegation, delegate_length):
            return [delegation, delegate_length]


def decode_auction(body: list[Any]) -> AuctionBody:
    """Read an auction body: `[step, …]`."""
    step = body[0] if body else None
    if type(step) is not int or step not in (0, 1, 2):
        raise CodecError("an auction body begins with its step, 0 to 2")
    if step == 0:
        check_shape("auction", body, int, bytes, bool, bool, int)
        _, task, highest, second_price, expires_ms = body
        rule = AuctionRule(highest, second_price)
        return AuctionOpenBody(TaskId(hash_field("a task id", task)), rule, count_field("expires_ms", expires_ms))
    check_shape("auction", body, int, bytes, list)
    auction = OperationId(hash_field("an auction", body[1]))
    if step == 2:
        return AuctionSettleBody(auction, sorted_keys("bidders", body[2], limits.BIDS_PER_AUCTION_MAX))
    if any(type(bid) is not list or len(bid) != 2 for bid in body[2]):
        raise CodecError("a bid is named by its bidder and its commit operation")
    bidders = sorted_keys("bidders", [bidder for bidder, _ in body[2]], limits.BIDS_PER_AUCTION_MAX)
    commits = [OperationId(hash_field("a commit", commit)) for _, commit in body[2]]
    return AuctionCloseBody(auction, tuple(zip(bidders, commits, strict=True)))


def decode_bid(body: list[Any]) -> BidBody:
    """Read a bid body: `[step, …]`."""
    step = body[0] if body else None
    if type(step) is not int or step not in (0, 1):
        raise CodecError("a bid body begins with its step, 0 or 1")
    if step == 0:
        check_shape("bid", body, int, bytes, bytes)
        return BidCommitBody(OperationId(hash_field("an auction", body[1])), hash_field("a commitment", body[2]))
    check_shape("bid", body, int, bytes, bytes, int, bytes)
    _, auction, commit, amount, nonce = body
    if len(nonce) != NONCE_BYTES:
        raise CodecError(f"the nonce of a bid has {NONCE_BYTES} bytes")
    return BidRevealBody(
        OperationId(hash_field("an auction", auction)),
        OperationId(hash_field("a commit", commit)),
        count_field("the amount of a bid", amount),
        nonce,
    )


def decode_poll_open(body: list[Any]) -> PollOpenBody:
    """Read a poll_open body."""
    check_shape("poll_open", body, str, list, int, int, list, int)
    question, options, rule, quorum, electorate, expires_ms = body
    if not 2 <= len(options) <= limits.OPTIONS_PER_POLL_MAX or any(type(option) is not str for option in options):
        raise CodecError(f"a poll has 2 to {limits.OPTIONS_PER_POLL_MAX} options, each a text")
    if len(set(options)) != len(options) or "" in options or not question:
        raise CodecError("the question and the options of a poll are not empty, and the options are different")
    if rule not in (0, 1):
        raise CodecError("a poll has an unknown rule")
    keys = sorted_keys("the electorate", electorate, limits.ELECTORATE_MAX)
    if not keys or not 0 <= quorum <= len(keys):
        raise CodecError("an electorate is not empty, and the quorum is at most its size")
    return PollOpenBody(
        text_field(question),
        tuple(text_field(option, limits.NAME_BYTES_MAX) for option in options),
        PollRule(rule),
        quorum,
        keys,
        count_field("expires_ms", expires_ms),
    )


def decode_poll_vote(body: list[Any]) -> PollVoteBody:
    """Read a poll_vote body."""
    check_shape("poll_vote", body, bytes, int)
    poll, choice = body
    if not 0 <= choice < limits.OPTIONS_PER_POLL_MAX:
        raise CodecError(f"a choice is 0 to {limits.OPTIONS_PER_POLL_MAX - 1}")
    return PollVoteBody(OperationId(hash_field("a poll", poll)), choice)


def decode_poll_close(body: list[Any]) -> PollCloseBody:
    """Read a poll_close body."""
    check_shape("poll_close", body, bytes, list)
    poll, votes = body
    return PollCloseBody(OperationId(hash_field("a poll", poll)), sorted_ids("votes", votes, limits.ELECTORATE_MAX))


def decode_propose(body: list[Any]) -> ProposeBody:
    """Read a propose body."""
    if len(body) != 6:
        raise CodecError("a propose body is an array of six")
    check_shape("propose", body[2:], bytes, list, int, int)
    session, prev = optional_id("a session", body[0]), optional_id("prev", body[1])
    terms, parties, until_epoch, expires_ms = body[2:]
    if (session is None) != (prev is None):
        raise CodecError("an opening names neither session nor prev, and every other proposal both")
    if len(terms) > limits.TERMS_BYTES_MAX:
        raise CodecError(f"terms have at most {limits.TERMS_BYTES_MAX} bytes")
    keys = sorted_keys("parties", parties, limits.PARTIES_PER_SESSION_MAX - 1)
    if (session is None) != bool(keys) or (session is not None and (until_epoch or expires_ms)):
        raise CodecError("an opening names the parties and the end of the session, and no other proposal does")
    return ProposeBody(
        session, prev, terms, keys, count_field("until_epoch", until_epoch), count_field("expires_ms", expires_ms)
    )


def decode_answer(body: list[Any]) -> AnswerBody:
    """Read an answer body."""
    if len(body) != 5:
        raise CodecError("an answer body is an array of five")
    check_shape("answer", body[2:], bytes, bool, str)
    session, prev, proposal, accepts, reason = body
    return AnswerBody(
        OperationId(hash_field("a session", session)),
        optional_id("prev", prev),
        OperationId(hash_field("a proposal", proposal)),
        accepts,
        text_field(reason),
    )


def decode_delegate(body: list[Any]) -> DelegateBody:
    """Read a delegate body."""
    if len(body) != 6:
        raise CodecError("a delegate body is an array of six")
    delegate, scopes, subject, topic, until_epoch, expires_ms = body
    if type(scopes) is not list or any(type(scope) is not int for scope in scopes):
        raise CodecError("scopes are an array of integers")
    if not scopes or scopes != sorted(set(scopes)) or not set(scopes) <= set(Scope):
        raise CodecError("scopes are known, sorted, without repeats, and at least one")
    if type(topic) is not bytes or len(topic) > limits.TOPIC_BYTES_MAX:
        raise CodecError(f"a topic has at most {limits.TOPIC_BYTES_MAX} bytes")
    return DelegateBody(
        PublicKey(hash_field("a delegate", delegate)),
        tuple(Scope(scope) for scope in scopes),
        None if subject is None else hash_field("a subject", subject),
        topic,
        count_field("until_epoch", until_epoch),
        count_field("expires_ms", expires_ms),
    )


def decode_revoke(body: list[Any]) -> RevokeBody:
    """Read a revoke body."""
    check_shape("revoke", body, bytes, int)
    return RevokeBody(OperationId(hash_field("a delegation", body[0])), count_field("delegate_length", body[1]))


KIND_NUMBERS: dict[type, int] = {
    AuctionOpenBody: 20,
    AuctionCloseBody: 20,
    AuctionSettleBody: 20,
    BidCommitBody: 21,
    BidRevealBody: 21,
    PollOpenBody: 22,
    PollVoteBody: 23,
    PollCloseBody: 24,
    ProposeBody: 25,
    AnswerBody: 26,
    DelegateBody: 27,
    RevokeBody: 28,
}
"""The kind of each body; the steps of an auction share one, and so do those of a bid."""

DECODERS: dict[int, Callable[[list[Any]], CoordinationBody]] = {
    20: decode_auction,
    21: decode_bid,
    22: decode_poll_open,
    23: decode_poll_vote,
    24: decode_poll_close,
    25: decode_propose,
    26: decode_answer,
    27: decode_delegate,
    28: decode_revoke,
}
