"""Models of OpenAI, by its library.

Knows: the library's chat completions. Must not know: agents.
Source: `docs/llm.md`; the `openai` package, whose client runs under trio.
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


class OpenAIChat:
    """One model of OpenAI."""

    def __init__(
        self, model: str, *, api_key: str | None = None, base_url: str | None = None, timeout_s: float = 120.0
    ) -> None:
        """Set it up; nothing is sent.

        Args:
            model: name of the model.
            api_key: None takes the variable OPENAI_API_KEY.
            base_url: None is OpenAI's.
            timeout_s: how long nothing may come, seconds.

        Raises:
            LocalError: the library is not installed, or there is no key.
        """
        try:
            import openai
        except ImportError as error:
            raise LocalError("the openai library is not installed", hint="pip install converge-p2p[openai]") from error
        self._library = openai
        self._model = model
        self._threads = BoundedThreads(limits.LLM_THREADS_MAX)
        # it would try again by itself, without telling; one place decides that (see `chat.with_retries`)
        self._settings: dict[str, Any] = {
            "api_key": api_key,
            "base_url": base_url,
            "timeout": timeout_s,
            "max_retries": 0,
        }
        try:
            openai.OpenAI(**self._settings).close()
        except openai.OpenAIError as error:
            raise LocalError(str(error), hint="pass api_key, or set OPENAI_API_KEY") from error

    async def chat(self, messages: Sequence[ChatMessage], *, max_tokens: int) -> ChatReply:
        """See `ChatProvider`."""
        with self._translated():
            async with self._library.AsyncOpenAI(**self._settings) as client:
                answer: Any = await client.chat.completions.create(**self._question(messages, max_tokens))
        try:
            choice, usage = answer.choices[0], answer.usage
            text, finish = choice.message.content or "", choice.finish_reason or "stop"
            counts = (int(usage.prompt_tokens), int(usage.completion_tokens)) if usage is not None else (0, 0)
        except (AttributeError, IndexError, TypeError) as error:
            raise LLMError("the provider's answer is no chat completion") from error
        return ChatReply(bounded(str(text)), str(finish), *counts)

    async def chat_stream(self, messages: Sequence[ChatMessage], *, max_tokens: int) -> AsyncGenerator[str, None]:
        """See `ChatProvider`."""
        async with aclosing(read_in_threads(self._pieces(messages, max_tokens), self._run)) as pieces:
            async for piece in pieces:
                yield piece

    def _pieces(self, messages: Sequence[ChatMessage], max_tokens: int) -> Generator[str, None, None]:
        finished = False
        with self._library.OpenAI(**self._settings) as client:
            stream: Any = client.chat.completions.create(**self._question(messages, max_tokens), stream=True)
            with stream:
                for event in stream:
                    for choice in (event.choices or [])[:1]:
                        finished = finished or choice.finish_reason is not None
                        yield choice.delta.content or ""
        if not finished:
            raise LLMUnavailable("the provider broke off before the end of its answer")

    async def _run(self, ask: Callable[[], str | None]) -> str | None:
        with self._translated():
            piece: str | None = await self._threads.run(ask)
        return piece

    def _question(self, messages: Sequence[ChatMessage], max_tokens: int) -> dict[str, Any]:
        return {
            "model": self._model,
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            "max_completion_tokens": max_tokens,
            "response_format": {"type": "json_object"},
        }

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
        except (library.OpenAIError, ValueError, TypeError, AttributeError, RecursionError) as error:
            # the last four are answers of another shape
            raise LLMError(f"the provider's answer cannot be used: {str(error)[:300]}") from error
        except Exception as error:
            if type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2"):
                raise LLMUnavailable(f"the provider broke off: {type(error).__name__}: {error}") from error
            raise
