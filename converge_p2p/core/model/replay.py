"""Which messages were already taken: a window that forgets safely.

Knows: ids, senders and times of verified messages. Must not know: clocks (time is an argument) or payloads.
Source: the sliding window of RFC 4303 section 3.4.3, with times instead of counters: below a low-water mark everything
is refused, so what was forgotten can never be taken again.

A window outlives its process as two things: its whole state from time to time (`to_bytes`), and a record of each
message taken since (`Taken`). Whoever has both has a window that refuses everything the lost one would have refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from converge_p2p.core import limits
from converge_p2p.core.codec import decode, encode
from converge_p2p.core.errors import CodecError, LocalError, RemoteViolation
from converge_p2p.core.model.message import MESSAGE_ID_BYTES, Message
from converge_p2p.core.types import AgentId

_CROWDED_MS = 1000
_STATE_VERSION = 1
_PACKED_BYTES = MESSAGE_ID_BYTES + 16


class _Entry(NamedTuple):
    timestamp_ms: int
    expires_ms: int


class Taken(NamedTuple):
    """What has to be remembered of a message that was taken."""

    sender: AgentId
    id: bytes
    timestamp_ms: int
    expires_ms: int

    @classmethod
    def of(cls, message: Message) -> Taken:
        """Return the record of a message."""
        return cls(message.sender, message.id, message.timestamp_ms, message.expires_ms)


@dataclass(slots=True)
class _Sender:
    floor_ms: int = 0
    entries: dict[bytes, _Entry] = field(default_factory=dict)


class ReplayWindow:
    """Takes each message once, with bounded memory.

    A message is remembered until it expires. If a sender, or all together, send more than the bounds, the oldest by
    their own timestamps are forgotten, and a low-water mark rises to the newest forgotten one: messages at or below it
    are refused whether they were seen or not. A flood can so make late messages be lost; it cannot make one be taken
    twice. One sender's excess raises only its own mark.
    """

    def __init__(
        self,
        *,
        floor_ms: int = 0,
        entries_max: int = limits.REPLAY_ENTRIES_MAX,
        entries_per_sender_max: int = limits.REPLAY_ENTRIES_PER_SENDER_MAX,
    ) -> None:
        """Make a window that has seen nothing.

        Args:
            floor_ms: refuse messages of this Unix time or before. A node that starts again gives the time of its start,
                because it no longer knows what it took before.
            entries_max: how many messages are remembered in all, at least 1.
            entries_per_sender_max: how many of one sender, at least 1.

        Raises:
            LocalError: a bound below 1.
        """
        if entries_max < 1 or entries_per_sender_max < 1:
            raise LocalError("the bounds of a replay window must be at least 1")
        self._floor_ms = floor_ms
        self._entries_max = entries_max
        self._per_sender_max = entries_per_sender_max
        self._senders: dict[AgentId, _Sender] = {}
        self._count = 0
        self._latest_ms = 0
        self._crowded_until_ms = 0

    def __len__(self) -> int:
        """Return how many messages are remembered."""
        return self._count

    def check(self, message: Message, now_ms: int) -> None:
        """Take a message, or refuse it.

        Args:
            message: one that `Message.check` let pass; a forged one must not get here, it would spoil the window.
            now_ms: Unix time, milliseconds. Going backwards is harmless.

        Raises:
            RemoteViolation: reason `message_replayed`, `message_stale` (below a low-water mark), `message_expired`, or
                `replay_window_full` (from the future, and there is no room to remember it).
        """
        self._take(Taken.of(message), now_ms)

    def withdraw(self, message: Message) -> None:
        """Forget that a message was taken: it was thrown away before anybody saw it, and may be sent again."""
        sender = self._senders.get(message.sender)
        if sender is not None and sender.entries.pop(message.id, None) is not None:
            self._count -= 1

    def restore(self, taken: Iterable[Taken], now_ms: int) -> None:
        """Remember messages that were taken before this window was made, in the order in which they were taken."""
        for one in taken:
            try:
                self._take(one, now_ms)
            except RemoteViolation:
                # remembered already, or refused anyway: too old, expired, or below a mark
                continue

    def _take(self, message: Taken, now_ms: int) -> None:
        # entries are dropped by the latest time seen: a clock set back must not bring their messages back
        self._latest_ms = max(self._latest_ms, now_ms)
        if message.expires_ms <= self._latest_ms:
            raise RemoteViolation("message_expired", f"the message expired at {message.expires_ms}")
        sender = self._senders.get(message.sender)
        if sender is not None and message.id in sender.entries:
            raise RemoteViolation("message_replayed", f"message {message.id.hex()} was already taken")
        floor_ms = max(self._floor_ms, 0 if sender is None else sender.floor_ms)
        if message.timestamp_ms <= floor_ms:
            raise RemoteViolation(
                "message_stale", f"the message is from {message.timestamp_ms}; at or before {floor_ms} it is refused"
            )
        if self._count >= self._entries_max and not self._make_room():
            if message.timestamp_ms > self._latest_ms:
                raise RemoteViolation("replay_window_full", "no room to remember a message from the future")
            # there is no room, but at or below now the common mark can stand for it
            self._floor_ms = message.timestamp_ms
            return
        sender = self._senders.setdefault(message.sender, _Sender())
        sender.entries[message.id] = _Entry(message.timestamp_ms, message.expires_ms)
        self._count += 1
        if len(sender.entries) > self._per_sender_max:
            self._shrink(sender)

    def to_bytes(self) -> bytes:
        """Return the whole state."""
        senders = [
            [bytes.fromhex(agent), sender.floor_ms, b"".join(map(_packed, sender.entries.items()))]
            for agent, sender in sorted(self._senders.items())
        ]
        return encode([_STATE_VERSION, self._floor_ms, self._latest_ms, senders])

    @classmethod
    def from_bytes(cls, data: bytes) -> ReplayWindow:
        """Read what `to_bytes` wrote; the bounds are those of `limits`.

        Raises:
            CodecError: damaged, or of another version.
        """
        match decode(data):
            case [int(version), int(floor_ms), int(latest_ms), list(senders)] if version == _STATE_VERSION:
                window = cls(floor_ms=floor_ms)
                window._latest_ms = latest_ms
            case _:
                raise CodecError("not the state of a replay window of this version")
        for item in senders:
            match item:
                case [bytes(agent), int(floor_ms), bytes(packed)] if not len(packed) % _PACKED_BYTES:
                    entries = dict(_unpacked(packed))
                    window._senders[AgentId(agent.hex())] = _Sender(floor_ms, entries)
                    window._count += len(entries)
                case _:
                    raise CodecError("a sender in the state of a replay window is damaged")
        return window

    def _shrink(self, sender: _Sender) -> None:
        """Forget a sender's expired messages, and its oldest until a quarter of its room is free."""
        before = len(sender.entries)
        self._drop_expired(sender)
        # a quarter at once, so that the cost of sorting is spread over as many messages
        excess = len(sender.entries) - max(1, self._per_sender_max * 3 // 4)
        oldest = sorted(sender.entries.items(), key=lambda item: item[1].timestamp_ms)
        for entry_id, entry in oldest[: max(0, excess)]:
            del sender.entries[entry_id]
            sender.floor_ms = max(sender.floor_ms, entry.timestamp_ms)
        self._count -= before - len(sender.entries)

    def _make_room(self) -> bool:
        """Forget expired messages, and the oldest until an eighth of all room is free; say whether there is any.

        Messages from the future stay: a mark in the future would shut out everybody's messages until then.
        """
        if self._latest_ms < self._crowded_until_ms:
            return False
        for sender in self._senders.values():
            self._drop_expired(sender)
        past = sorted(
            (entry.timestamp_ms, agent, entry_id)
            for agent, sender in self._senders.items()
            for entry_id, entry in sender.entries.items()
            if entry.timestamp_ms <= self._latest_ms
        )
        excess = sum(len(sender.entries) for sender in self._senders.values()) - self._entries_max * 7 // 8
        for timestamp_ms, agent, entry_id in past[: max(0, excess)]:
            del self._senders[agent].entries[entry_id]
            self._floor_ms = max(self._floor_ms, timestamp_ms)
        for agent, sender in list(self._senders.items()):
            # somebody without messages here is no longer kept; what was forgotten stays below the common mark
            if not sender.entries:
                # its messages were all newer than its mark, and all are past
                assert sender.floor_ms <= self._latest_ms
                del self._senders[agent]
                self._floor_ms = max(self._floor_ms, sender.floor_ms)
        self._count = sum(len(sender.entries) for sender in self._senders.values())
        if len(past) < excess:
            # crowded by messages from the future: looking again at each message would let a flood eat the processor
            self._crowded_until_ms = self._latest_ms + _CROWDED_MS
        return self._count < self._entries_max

    def _drop_expired(self, sender: _Sender) -> None:
        sender.entries = {
            entry_id: entry for entry_id, entry in sender.entries.items() if entry.expires_ms > self._latest_ms
        }


def _packed(item: tuple[bytes, _Entry]) -> bytes:
    message_id, entry = item
    return message_id + entry.timestamp_ms.to_bytes(8, "big") + entry.expires_ms.to_bytes(8, "big")


def _unpacked(packed: bytes) -> Iterable[tuple[bytes, _Entry]]:
    for start in range(0, len(packed), _PACKED_BYTES):
        row = packed[start : start + _PACKED_BYTES]
        times = row[MESSAGE_ID_BYTES:]
        yield row[:MESSAGE_ID_BYTES], _Entry(int.from_bytes(times[:8], "big"), int.from_bytes(times[8:], "big"))
