"""What a replica tells about the keys of a private pool; part of the vocabulary of `events`.

Knows: values. Must not know: how a key is handed out.
Source: `docs/protocol.md`, private pools.
"""

from __future__ import annotations

from dataclasses import dataclass

from converge_p2p.core.types import PublicKey


@dataclass(frozen=True, slots=True)
class ContentKeyTaken:
    """A content key is held now: contents that could not be read may be readable, and what waited can be sealed."""

    epoch: int
    generation: int


@dataclass(frozen=True, slots=True)
class SplitKeyFound:
    """An elector committed to one content key and handed out another: different members would read different things.

    Attributes:
        culprit: the elector.
        epoch, generation: which key.
        proven: its own operations show it to everybody; else only this member, to whom it was sealed, can know.
    """

    culprit: PublicKey
    epoch: int
    generation: int
    proven: bool


@dataclass(frozen=True, slots=True)
class KeyUnopenable:
    """A content key was sealed to this member and opens with nothing it holds. Nobody can be blamed for it.

    It is garbage, or sealed to a private prekey that was erased or lost.
    """

    author: PublicKey
    epoch: int
    generation: int


@dataclass(frozen=True, slots=True)
class KeyOverdue:
    """A new content key is due, and the epoch has no generation left for it: the electors should change the pool."""

    epoch: int
