"""Models of Anthropic, by its library.

Knows: the library's messages. Must not know: agents.
Source: `docs/llm.md`; the `anthropic` package, whose client runs under trio.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Any

from converge_p2p.core import limits
from converge_p2p.core.errors import LocalError
from converge_p2p.extensions.llm.chat import (
    ChatMessage,
    ChatReply,
    LLMError,
    LLMUnavailable,
    bounded,
    error_of_status,
    retry_after_s,
)
from converge_p2p.extensions.llm.threaded import read_in_threads
from converge_p2p.runtime.threads import BoundedThreads


class AnthropicChat:
    """One model of Anthropic."""

    def __init__(
        self, model: str, *, api_key: str | None = None, base_url: str | None = None, timeout_s: float = 120.0
    ) -> None:
        """Set it up; nothing is sent.

        Args:
            model: name of the model.
            api_key: None takes the variable ANTHROPIC_API_KEY.
            base_url: None is Anthropic's.
            timeout_s: how long nothing may come, seconds.

        Raises:
            LocalError: the library is not installed.
        """
        try:
            import anthropic
        except ImportError as error:
            hint = "pip install converge-p2p[anthropic]"
            raise LocalError("the anthropic library is not installed", hint=hint) from error
        self._library = anthropic
        self._model = model
        self._threads = BoundedThreads(limits.LLM_THREADS_MAX)
        # it would try again by itself, without telling; one place decides that (see `chat.with_retries`)
        self._settings: dict[str, Any] = {
            "api_key": api_key,
            "base_url": base_url,
            "timeout": timeout_s,
            "max_retries": 0,
        }

    async def chat(self, messages: Sequence[ChatMessage], *, max_tokens: int) -> ChatReply:
        """See `ChatProvider`."""
        with self._translated():
            async with self._library.AsyncAnthropic(**self._settings) as client:
                answer: Any = await client.messages.create(**self._question(messages, max_tokens))
        try:
            text = "".join(block.text for block in answer.content if block.type == "text")
            finish = {"end_turn": "stop", "max_tokens": "length"}.get(answer.stop_reason, str(answer.stop_reason))
            return ChatReply(bounded(text), finish, int(answer.usage.input_tokens), int(answer.usage.output_tokens))
        except (AttributeError, TypeError) as error:
            raise LLMError("the provider's answer is no message") from error

    async def chat_stream(self, messages: Sequence[ChatMessage], *, max_tokens: int) -> AsyncGenerator[str, None]:
        """See `ChatProvider`."""
        async with aclosing(read_in_threads(self._pieces(messages, max_tokens), self._run)) as pieces:
            async for piece in pieces:
                yield piece

    def _pieces(self, messages: Sequence[ChatMessage], max_tokens: int) -> Generator[str, None, None]:
        finished = False
        with self._library.Anthropic(**self._settings) as client:
            stream: Any = client.messages.create(**self._question(messages, max_tokens), stream=True)
            with stream:
                for event in stream:
                    finished = finished or event.type == "message_stop"
                    if event.type == "content_block_delta" and event.delta.type == "text_delta":
                        yield event.delta.text
        if not finished:
            raise LLMUnavailable("the provider broke off before the end of its answer")

    async def _run(self, ask: Callable[[], str | None]) -> str | None:
        with self._translated():
            piece: str | None = await self._threads.run(ask)
        return piece

    def _question(self, messages: Sequence[ChatMessage], max_tokens: int) -> dict[str, Any]:
        system = "\n\n".join(message.content for message in messages if message.role == "system")
        told = [{"role": each.role, "content": each.content} for each in messages if each.role != "system"]
        return {"model": self._model, "system": system, "messages": told, "max_tokens": max_tokens}

    @contextmanager
    def _translated(self) -> Iterator[None]:
        library = self._library
        try:
            yield
        except library.APIStatusError as error:
            wait_s = retry_after_s(error.response.headers.get("retry-after"), time.time())
            raise error_of_status(error.status_code, str(error), wait_s) from error
        except library.APIConnectionError as error:
            raise LLMUnavailable(f"the provider cannot be asked: {error}") from error
        except (library.AnthropicError, ValueError, TypeError, AttributeError, RecursionError) as error:
            # the last four are answers of another shape; a TypeError may be a key that is missing
            raise LLMError(f"the provider cannot be used: {str(error)[:300]}") from error
        except Exception as error:
            if type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2"):
                raise LLMUnavailable(f"the provider broke off: {type(error).__name__}: {error}") from error
            raise
