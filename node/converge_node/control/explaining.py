"""The record of a task at the control interface, and its receipt.

Knows: the schema, and a pool through `control.ports`. Must not know: HTTP, or how votes are counted.
Source: docs/receipts.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from starlette.responses import Response

from converge_node.control import motions, views
from converge_node.control.governance import SHORT_DIGITS, formula_text
from converge_node.control.ports import PoolLike
from converge_node.control.state import Asked, Endpoint
from converge_node.control.terms import signature_item, terms_item
from converge_p2p.client.explain_schema import (
    CertificateItem,
    ExplanationItem,
    RenewedItem,
    StepItem,
    TentativeItem,
)
from converge_p2p.client.schema import utc_time
from converge_p2p.core import limits
from converge_p2p.core.errors import LimitExceeded
from converge_p2p.core.identity import fingerprint
from converge_p2p.core.model.task import Outcome
from converge_p2p.core.oplog.bodies import (
    ActBody,
    Ballot,
    ClaimBody,
    Phase,
    Purpose,
    ReleaseBody,
    ReportBody,
    VetoBody,
)
from converge_p2p.core.oplog.coordination import (
    AuctionCloseBody,
    AuctionOpenBody,
    AuctionSettleBody,
    BidCommitBody,
    BidRevealBody,
    DelegateBody,
)
from converge_p2p.core.oplog.evidence import EvidenceBody
from converge_p2p.core.oplog.motions import MotionBody, MotionKind, OpinionBody
from converge_p2p.core.oplog.verdicts import VerdictBody
from converge_p2p.core.types import OperationId, PublicKey, TaskId
from converge_p2p.core.view.explanation import Certificate, Decision, Explanation, Step, TermsInForce
from converge_p2p.core.view.register import NOBODY

_CONTENT: Final = "application/octet-stream"
_FULL_DIGITS: Final = 64
_RESULT_BYTES_MAX: Final = 4096
"""Of a report, a longer result is not shown; that which settled the task stands in the task."""
_CLAIMS: Final = {
    Purpose.WORK: "claimed the task",
    Purpose.CANCEL: "asked for its cancellation",
    Purpose.FAIL: "stood to settle that it failed, after the last retry",
    Purpose.EPOCH: "stood to found an epoch",
    Purpose.PASS: "stood to record that the result passes",
    Purpose.DENY: "stood to record the veto",
}
_ON_VETO: Final = " on the veto"
_REPORTS: Final = {
    Outcome.COMPLETED: "reported the result",
    Outcome.FAILED: "reported a failure",
    Outcome.CANCELLED: "reported the cancellation",
}


async def explain(asked: Asked) -> ExplanationItem:
    """Return what became of a task, and why."""
    pool = asked.pool()
    return explanation_item(pool, await pool.explain(_task_id(pool, asked.places["task"])))


async def receipt(asked: Asked) -> Response:
    """Return the receipt of a settled task."""
    pool = asked.pool()
    data = pool.receipt(_task_id(pool, asked.places["task"])).to_bytes()
    if len(data) > limits.RECEIPT_BYTES_MAX:
        raise LimitExceeded(
            "RECEIPT_BYTES_MAX", f"the receipt has {len(data)} bytes; at most {limits.RECEIPT_BYTES_MAX} allowed"
        )
    return Response(data, media_type=_CONTENT)


def _task_id(pool: PoolLike, reference: str) -> TaskId:
    """Return the id of a task; a whole one need not be of a task that is still in the log. Raises as `find_task`."""
    if len(reference) == _FULL_DIGITS and not set(reference.lower()) - set("0123456789abcdef"):
        return TaskId(bytes.fromhex(reference))
    return views.find_task(pool, reference).id


def explanation_item(pool: PoolLike, found: Explanation) -> ExplanationItem:
    """Return an explanation as the schema shows it."""
    words = _Words(found)
    return ExplanationItem(
        id=found.task.hex(),
        pool=found.pool.hex(),
        state=found.state.value,
        final=found.state.terminal,
        submitter=_agent(found.submitter),
        worker=_agent(found.worker),
        value="" if found.value is None else found.value.hex(),
        task=None if found.view is None else views.task_detail(found.view),
        steps=[_step_item(step, words) for step in found.steps],
        certificates=[_certificate_item(each, words) for each in found.certificates],
        terms=[terms_item(each.epoch, each.spec, each.rules, each.signatures) for each in found.terms],
        disputes=[motions.motion_item(pool, view) for view in found.disputes],
        renewed=_renewed_item(found),
        tentative=[TentativeItem(name=each.name.lower(), text=each.value) for each in found.tentative],
        left_out=found.left_out,
    )


def _renewed_item(found: Explanation) -> RenewedItem | None:
    said = found.renewed
    if said is None:
        return None
    return RenewedItem(
        at=utc_time(said.at_ms / 1000) if said.at_ms < _TIME_MS_MAX else "",
        agent_id=_agent(said.author),
        epoch=said.token.epoch,
        round=said.token.round,
        progress=said.fraction / 1000,
        note=said.note,
    )


_TIME_MS_MAX: Final = 2**47
"""More than an operation's clock can say; what a renewal counts is not held to it."""


def _certificate_item(certificate: Certificate, words: _Words) -> CertificateItem:
    return CertificateItem(
        decision=certificate.decision.value,
        epoch=certificate.token.epoch,
        round=certificate.token.round,
        on_veto=certificate.on_veto,
        holder=_agent(certificate.holder),
        claim="" if certificate.claim is None else certificate.claim.hex(),
        value="" if certificate.value is None else certificate.value.hex(),
        rule=words.rule(certificate),
        signatures=[signature_item(each) for each in certificate.signatures],
        missing=[_agent(elector) for elector in certificate.missing],
        complete=certificate.complete,
        decides=certificate.decides,
    )


def _step_item(step: Step, words: _Words) -> StepItem:
    text, said = words.of(step)
    return StepItem(
        at=utc_time(step.at_ms / 1000),
        step=step.kind.value,
        text=text,
        agent_id=_agent(step.author),
        public_key=step.author.hex(),
        operation=step.operation.hex(),
        seq=step.seq,
        epoch=step.epoch,
        round=-1 if step.round is None else step.round,
        on_veto=step.on_veto,
        verified=step.verified,
        counts=step.counts,
        sealed=step.sealed,
        said=said,
    )


_Told = tuple[str, dict[str, Any]]


class _Words:
    """Says the steps of one task in words."""

    def __init__(self, found: Explanation) -> None:
        self._submitter = found.submitter
        self._claims = {
            step.operation: step.author for step in found.steps if isinstance(step.said, ClaimBody | ActBody)
        }
        self._terms: Mapping[int, TermsInForce] = {each.epoch: each for each in found.terms}
        self._options = {each.motion.id: each.motion.options for each in found.disputes}

    def rule(self, certificate: Certificate) -> str:
        """Whose votes are enough for a certificate."""
        terms = self._terms.get(certificate.token.epoch)
        if terms is None:
            return ""
        if certificate.granter is not None:
            return f"the first round is granted by {_short(certificate.granter)} alone"
        if certificate.decision is Decision.CLAIM:
            return formula_text(terms.rules.grant)
        if certificate.decision is Decision.SETTLEMENT:
            return formula_text(terms.rules.accept)
        return "not needed" if terms.rules.endorse is None else formula_text(terms.rules.endorse)

    def of(self, step: Step) -> _Told:
        """What somebody did, and the particulars."""
        match step.said:
            case Ballot() as ballot:
                return self._ballot(ballot, on_veto=step.on_veto)
            case ActBody(delegation, ClaimBody() as claim):
                text, said = self._claim(claim)
                return f"{text}, in the name of the submitter", said | {"delegation": delegation.hex()}
            case ActBody(delegation):
                return (
                    f"submitted the task in the name of {_short(self._submitter)}",
                    {"delegation": delegation.hex(), "submitter": _agent(self._submitter)},
                )
            case ClaimBody() as claim:
                return self._claim(claim)
            case ReleaseBody(_, number, failed, reason):
                what = "gave up as failed" if failed else "gave the claim back"
                where = f" in round {number}" if number >= 0 else ""
                return f"{what}{where}{_because(reason)}", {"failed": failed, "reason": reason}
            case ReportBody(_, number, value, grants):
                where = f"round {number}{_ON_VETO if step.on_veto else ''}"
                text = f"{_REPORTS[value.outcome]} {_digits(value.hash)} in {where}"
                named = [grant.hex() for grant in grants]
                return text, {
                    "outcome": value.outcome.name.lower(),
                    "value": value.hash.hex(),
                    "worker": _agent(value.worker),
                    "result_bytes": len(value.result),
                    "result": views.shown_result(value) if len(value.result) <= _RESULT_BYTES_MAX else None,
                    "grants": named,
                }
            case VerdictBody(_, judged, approve, reason):
                verb = "approved" if approve else "denied"
                said = {"value": judged.hex(), "approve": approve, "reason": reason}
                return f"{verb} the result {_digits(judged)} as its evaluator{_because(reason)}", said
            case VetoBody(_, judged, deny, reason):
                text = "vetoed" if deny else "let pass"
                return f"{text} the result {_digits(judged)}{_because(reason)}", {
                    "value": judged.hex(),
                    "deny": deny,
                    "reason": reason,
                }
            case EvidenceBody() as cited:
                way = "for" if cited.supports else "against"
                said = {
                    "value": cited.value.hex(),
                    "supports": cited.supports,
                    "digest": cited.digest.hex(),
                    "size": cited.size,
                    "media": cited.media,
                    "summary": cited.summary,
                }
                return f"cited evidence {way} the result {_digits(cited.value)}{_because(cited.summary)}", said
            case MotionBody() as motion:
                rivals = [] if motion.motion is not MotionKind.RIVAL_REPORTS else [each.hex() for each in motion.rivals]
                what = f"which of {len(rivals)} results is right" if rivals else "whether the result is wrong"
                said = {"kind": motion.motion.name.lower(), "reason": motion.reason, "rivals": rivals}
                return f"asked the electors {what}{_because(motion.reason)}", said
            case OpinionBody(name, choice, evidence):
                options = self._options.get(name, ())
                option = options[choice] if choice < len(options) else b""
                chosen = option.decode() if option in (b"no", b"yes") else option.hex()
                said = {"motion": name.hex(), "choice": chosen, "evidence": [each.hex() for each in evidence]}
                return f"said {chosen[:SHORT_DIGITS] or choice} to the question {_digits(name)}", said
            case _:
                return self._coordinated(step)

    def _coordinated(self, step: Step) -> _Told:
        match step.said:
            case AuctionOpenBody(_, rule):
                wins = "the highest" if rule.highest else "the lowest"
                return f"asked for sealed bids, of which {wins} wins", rule._asdict()
            case BidCommitBody(auction, commitment):
                return "bid, sealed", {"auction": auction.hex(), "commitment": commitment.hex()}
            case AuctionCloseBody(auction, bids):
                named = [{"bidder": _agent(bidder), "bid": bid.hex()} for bidder, bid in bids]
                return f"closed the bidding on {len(bids)} bids", {"auction": auction.hex(), "bids": named}
            case BidRevealBody(auction, commit, amount):
                return f"opened its bid of {amount}", {"auction": auction.hex(), "bid": commit.hex(), "amount": amount}
            case AuctionSettleBody(auction, bidders):
                names = [_agent(bidder) for bidder in bidders]
                return f"settled the auction on {len(bidders)} bids", {"auction": auction.hex(), "bidders": names}
            case DelegateBody() as given:
                said = {"delegate": _agent(given.delegate), "scopes": [scope.name.lower() for scope in given.scopes]}
                return f"let {_short(given.delegate)} act in its name", said
            case _:
                return "submitted the task", {}

    def _claim(self, claim: ClaimBody) -> _Told:
        bid = f" with the bid {claim.bid}" if claim.bid else ""
        said: dict[str, Any] = {"purpose": claim.purpose.name.lower(), "bid": claim.bid, "reason": claim.reason}
        if claim.ref:
            said["veto"] = claim.ref.hex()
        return f"{_CLAIMS[claim.purpose]}{bid}{_because(claim.reason)}", said

    def _ballot(self, ballot: Ballot, *, on_veto: bool) -> _Told:
        where = f"round {ballot.round}{_ON_VETO if on_veto else ''}"
        if ballot.phase is not Phase.GRANT:
            verb = "endorsed" if ballot.phase is Phase.ENDORSE else "accepted"
            return f"{verb} {_digits(ballot.ref)} in {where}", {"value": ballot.ref.hex()}
        claim = OperationId(ballot.ref)
        holder = self._claims.get(claim)
        said: dict[str, Any] = {"claim": claim.hex(), "holder": _agent(holder)}
        whom = "several workers" if claim == NOBODY else _short(holder) or "a claim that is not here"
        text = f"granted {where} to {whom}"
        if ballot.expired is not None:
            said["expired"] = ballot.expired
            text += f", as the time of round {ballot.expired} had run out"
        if ballot.lock is not None:
            said["lock"] = {"epoch": ballot.lock.token.epoch, "round": ballot.lock.token.round}
            said["lock"]["value"] = ballot.lock.value.hex()
            text += f", bound to {_digits(ballot.lock.value)} of round {ballot.lock.token.round}"
        return text, said


def _agent(key: PublicKey | None) -> str:
    return "" if key is None else str(fingerprint(key))


def _short(key: PublicKey | None) -> str:
    return _agent(key)[:SHORT_DIGITS]


def _digits(name: bytes) -> str:
    return name.hex()[:SHORT_DIGITS]


def _because(reason: str) -> str:
    return f": {reason}" if reason else ""


ENDPOINTS: Final[dict[str, Endpoint]] = {
    "explain": explain,
    "receipt": receipt,
}
