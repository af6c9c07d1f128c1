"""Hooks around an agent's messages: before one is sent, and after one was received.

Knows: that a hook is foreign code that may change a message, hold it back, or raise. Must not know: what it looks for.
Source: the concepts page (customisation); `docs/customization.md`.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from converge_p2p.core.errors import NotAuthorised
from converge_p2p.core.model.message import Message
from converge_p2p.runtime.ports import MessagePort

_logger = logging.getLogger(__name__)

MessageHook = Callable[[Message], Message | Awaitable[Message | None] | None]
"""Takes a message and returns it, another in its place, or None to hold it back. Plain or async."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """What an application looks at or changes on the way.

    Attributes:
        before_send: called with each message that a decision sends, before it is signed. If it holds the message back
            or raises, the decision is refused, or failed.
        after_receive: called with each verified message before `decide` gets it. If it holds the message back or
            raises, `decide` never sees it, and it is counted.
    """

    before_send: MessageHook | None = None
    after_receive: MessageHook | None = None


async def passed(hook: MessageHook, message: Message) -> Message | None:
    """Return what a hook makes of a message. Raises whatever the hook raises."""
    made = hook(message)
    return await made if inspect.isawaitable(made) else made


async def let_through(hook: MessageHook, messages: Sequence[Message], agent: str) -> list[Message]:
    """Show each message to a hook, and return what it lets through."""
    kept = []
    for message in messages:
        try:
            made = await passed(hook, message)
        except Exception as error:  # noqa: BLE001 - logged, and counted by whoever called
            # a hook is foreign code, and must not keep the agent from the messages of others
            _logger.warning("hook after_receive of agent %s raised on a message: %r", agent, error)
            made = None
        if made is not None:
            kept.append(made)
    return kept


class HookedMessages:
    """A message port behind a hook."""

    def __init__(self, port: MessagePort, hook: MessageHook) -> None:
        self._port = port
        self._hook = hook

    async def send(self, message: Message) -> None:
        """See `MessagePort`.

        Raises:
            NotAuthorised: the hook held the message back.
        """
        made = await passed(self._hook, message)
        if made is None:
            raise NotAuthorised("the hook before_send held the message back")
        await self._port.send(made)
