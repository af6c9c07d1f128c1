"""What an agent sees and decides, as bytes that can be read again: for replay logs.

Knows: the kinds of values that may stand in a recorded turn. Must not know: where records are kept, or agents.
Source: `docs/concepts.md`, replay log. Only kinds that are listed here are ever made when a record is read: it runs no
code. What is of another kind is kept as its text, and read as `Unreadable`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from typing import Any

from converge_p2p.core.codec import decode_value, encode_value
from converge_p2p.core.errors import CodecError, ConvergeError
from converge_p2p.core.model import coordination_decision, decision
from converge_p2p.core.model.capability import Capability
from converge_p2p.core.model.decision import Decision
from converge_p2p.core.model.message import Message
from converge_p2p.core.model.pool import AdmissionKind, AssignmentRule, GovernanceKind, ModelTerms, PoolPolicy
from converge_p2p.core.model.task import Outcome, Progress, Task, TaskSpec, TaskState, TaskValue, TaskView
from converge_p2p.core.model.topic import Topic
from converge_p2p.core.oplog.coordination import AuctionRule, PollRule, Scope
from converge_p2p.core.types import BlobForm, BlobRef
from converge_p2p.core.view.auctions import AuctionPhase, AuctionView, RankedBid
from converge_p2p.core.view.delegation import DelegationView
from converge_p2p.core.view.negotiation import ProposalView, SessionView
from converge_p2p.core.view.polls import Choice, PollPhase, PollView
from converge_p2p.runtime.agent import ToolResult
from converge_p2p.runtime.events import CoordinationEvent, DecisionOutcome, Matter, OutcomeKind
from converge_p2p.runtime.executor import Executed, Failed, Refused


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Stands for a value of a kind that records do not know.

    Attributes:
        kind: name of its type.
        text: how it showed itself.
    """

    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class RecordedError:
    """Stands for an error; its type is not made again."""

    kind: str
    text: str


_DECISIONS = [
    kind
    for module in (decision, coordination_decision)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, Decision)
]
_KINDS: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        *_DECISIONS, Capability, AdmissionKind, AssignmentRule, GovernanceKind, ModelTerms, PoolPolicy, Outcome,
        Progress, Task, TaskSpec, TaskState, TaskValue, TaskView, Topic, AuctionRule, PollRule, Scope, AuctionPhase,
        AuctionView, RankedBid, DelegationView, ProposalView, SessionView, Choice, PollPhase, PollView, ToolResult,
        BlobForm, BlobRef,
        CoordinationEvent, DecisionOutcome, Matter, OutcomeKind, Executed, Failed, Refused, Unreadable, RecordedError,
    )
}  # fmt: skip
_TEXT_MAX = 1024


def register_recorded(kind: type[Any]) -> None:
    """Let values of a frozen dataclass or enumeration of the application be read again from records.

    Raises:
        CodecError: its name is taken, or it is neither.
    """
    if not (is_dataclass(kind) or issubclass(kind, Enum)):
        raise CodecError(f"{kind.__name__} is neither a dataclass nor an enumeration")
    if _KINDS.setdefault(kind.__name__, kind) is not kind:
        raise CodecError(f"records know another kind named {kind.__name__}")


def pack(value: Any) -> Any:
    """Return a value as numbers, text, bytes and lists."""
    if value is None or isinstance(value, bool | float | str | bytes) or type(value) is int:
        return value
    if isinstance(value, Message):
        return _pack_message(value)
    if isinstance(value, Enum):
        known = _KINDS.get(type(value).__name__) is type(value)
        return ["enum", type(value).__name__, value.name] if known else _unreadable(value)
    if isinstance(value, Mapping):
        # a list of pairs: keys need not be texts, and the depth begins anew
        return ["map", encode_value([[pack(key), pack(item)] for key, item in value.items()])]
    if isinstance(value, BaseException):
        return ["error", type(value).__name__, str(value)[:_TEXT_MAX]]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        if _KINDS.get(type(value).__name__) is type(value):
            return ["made", type(value).__name__, encode_value([pack(item) for item in value])]
        return _unreadable(value)
    if isinstance(value, list | tuple):
        return ["list" if isinstance(value, list) else "tuple", encode_value([pack(item) for item in value])]
    if is_dataclass(value) and _KINDS.get(type(value).__name__) is type(value):
        named = [pack(getattr(value, field.name)) for field in fields(value) if field.init]
        return ["made", type(value).__name__, encode_value(named)]
    return _unreadable(value)


def unpack(plain: Any) -> Any:
    """Return what was packed.

    Raises:
        CodecError: it was not packed by this version.
    """
    match plain:
        case None | bool() | int() | float() | str() | bytes():
            return plain
        case ["message", bytes(envelope), opened]:
            return Message.from_bytes(envelope).opened_as(opened)
        case ["letter", bytes(named)]:
            return Message(*(unpack(item) for item in decode_value(named)))
        case ["enum", str(kind), str(name)]:
            try:
                return _KINDS[kind][name]
            except KeyError as error:
                raise CodecError(f"a record names {kind}.{name}, which there is not") from error
        case ["map", bytes(pairs)]:
            return {unpack(key): unpack(item) for key, item in decode_value(pairs)}
        case ["list", bytes(items)]:
            return [unpack(item) for item in decode_value(items)]
        case ["tuple", bytes(items)]:
            return tuple(unpack(item) for item in decode_value(items))
        case ["error", str(kind), str(text)]:
            return RecordedError(kind, text)
        case ["other", str(kind), str(text)]:
            return Unreadable(kind, text)
        case ["made", str(kind), bytes(items)]:
            return _make(kind, [unpack(item) for item in decode_value(items)])
    raise CodecError("a record holds something that this version does not know")


def _make(kind: str, items: list[Any]) -> Any:
    made = _KINDS.get(kind)
    if made is None:
        raise CodecError(f"a record names the kind {kind}, which is not registered here")
    try:
        return made(*items)
    except (TypeError, ValueError, ConvergeError) as error:
        raise CodecError(f"a record holds no {kind}: {error}") from error


def _pack_message(message: Message) -> list[Any]:
    if message.signed:
        return ["message", message.to_bytes(), message.opened]
    named = [pack(getattr(message, field.name)) for field in fields(message) if field.init]
    return ["letter", encode_value(named)]


def _unreadable(value: Any) -> list[Any]:
    return ["other", type(value).__name__, repr(value)[:_TEXT_MAX]]
