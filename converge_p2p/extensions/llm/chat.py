"""What a language model is to an agent: messages in, text out, whole or piece by piece; and how that fails.

Knows: the shape of a conversation, and when to try again. Must not know: any provider, or what the text means.
Source: `docs/llm.md`; HTTP semantics, RFC 9110 section 10.2.3 (Retry-After).
"""

from __future__ import annotations

import math
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Literal, Protocol, TypeVar

import trio

from converge_p2p.core import limits
from converge_p2p.core.errors import ConvergeError

Role = Literal["system", "user", "assistant"]
_T = TypeVar("_T")


class LLMError(ConvergeError):
    """The model gave no answer that can be used.

    Attributes:
        retry: the same question may be answered later.
    """

    code = "llm_error"
    retry = False


class LLMUnavailable(LLMError):
    """The provider cannot be reached, is overloaded, or broke off."""

    code = "llm_unavailable"
    retry = True


class RateLimited(LLMUnavailable):
    """Too many questions.

    Attributes:
        retry_after_s: how long the provider asks to wait, or None if it does not say.
    """

    code = "llm_rate_limited"

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message, hint="ask less often, or raise the limit at the provider")
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One part of a conversation."""

    role: Role
    content: str

    def to_map(self) -> dict[str, str]:
        """Return it as the providers' interfaces take it."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True, slots=True)
class ChatReply:
    """An answer.

    Attributes:
        text: what was said, at most `limits.LLM_ANSWER_CHARS_MAX` characters.
        finish: why it ended there: `stop`, `length` (of the answer's tokens), or the provider's word.
        input_tokens, output_tokens: as the provider counts; 0 if it does not say.
    """

    text: str
    finish: str = "stop"
    input_tokens: int = 0
    output_tokens: int = 0


class ChatProvider(Protocol):
    """A model that can be asked. Used from a trio task."""

    async def chat(self, messages: Sequence[ChatMessage], *, max_tokens: int) -> ChatReply:
        """Return an answer.

        Raises:
            RateLimited, LLMUnavailable: it may succeed later.
            LLMError: it will not.
        """

    def chat_stream(self, messages: Sequence[ChatMessage], *, max_tokens: int) -> AsyncGenerator[str, None]:
        """Yield an answer as it comes. To be closed by the reader (`contextlib.aclosing`). Raises as `chat`."""


async def with_retries(
    ask: Callable[[], Awaitable[_T]],
    *,
    tries: int = limits.LLM_TRIES_MAX,
    wait_max_s: float = limits.LLM_RETRY_WAIT_S_MAX,
) -> _T:
    """Ask until there is an answer, waiting as long as the provider says, or twice as long each time.

    Args:
        ask: one try.
        tries: how many at most.
        wait_max_s: the provider asks for a longer wait: the error is raised at once.

    Raises:
        LLMError: of the last try.
    """
    for attempt in range(1, tries + 1):
        try:
            return await ask()
        except LLMError as error:
            asked_s = error.retry_after_s if isinstance(error, RateLimited) else None
            if not error.retry or attempt == tries or (asked_s or 0) > wait_max_s:
                raise
            backoff_s = limits.LLM_RETRY_S * 2 ** (attempt - 1)
            # some more, so that agents that were refused together do not come again together
            await trio.sleep((min(backoff_s, wait_max_s) if asked_s is None else asked_s) * random.uniform(1, 1.1))
    raise AssertionError("the last try returns or raises")


def retry_after_s(value: str | None, now_s: float) -> float | None:
    """Read a Retry-After header: seconds, or a date. None if it is neither."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - now_s
        except (ValueError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def error_of_status(status: int, detail: str, retry_after: float | None) -> LLMError:
    """Return the error that an HTTP status of a provider stands for."""
    what = f"the provider answered {status}: {clip(detail, 300)}"
    if status == 429:
        return RateLimited(what, retry_after)
    if status in (408, 409, 425) or status >= 500:
        return LLMUnavailable(what)
    return LLMError(what, hint="check the key, the name of the model, and the address")


def clip(text: str, chars_max: int) -> str:
    """Shorten a text."""
    return text if len(text) <= chars_max else text[: chars_max - 1] + "…"


def bounded(text: str) -> str:
    """Return an answer that is not too long.

    Raises:
        LLMError: it is.
    """
    if len(text) > limits.LLM_ANSWER_CHARS_MAX:
        raise LLMError(f"the answer has more than {limits.LLM_ANSWER_CHARS_MAX} characters")
    return text
