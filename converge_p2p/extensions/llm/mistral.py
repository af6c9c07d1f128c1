"""Models of Mistral, by its library.

Knows: the library's chat. Must not know: agents.
Source: `docs/llm.md`; the `mistralai` package. Its async client needs asyncio (it hands work to `asyncio.to_thread`),
so its plain one is used, in a thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

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
from converge_p2p.extensions.llm.sdk import SdkChat

_T = TypeVar("_T")


class MistralChat(SdkChat):
    """One model of Mistral."""

    def __init__(self, model: str, *, api_key: str, base_url: str | None = None, timeout_s: float = 120.0) -> None:
        """Set it up; nothing is sent.

        Args:
            model: name of the model.
            api_key: the key.
            base_url: None is Mistral's.
            timeout_s: how long nothing may come, seconds. After a cancellation a thread goes on for that long.

        Raises:
            LocalError: the library is not installed.
        """
        try:
            from mistralai.client import Mistral, errors
        except ImportError as error:
            hint = "pip install converge-p2p[mistral]"
            raise LocalError("the mistralai library is not installed", hint=hint) from error
        super().__init__(model)
        self._errors: Any = errors
        self._open: Callable[[], Any] = lambda: Mistral(
            api_key=api_key, server_url=base_url, timeout_ms=round(timeout_s * 1000), retry_config=None
        )

    async def chat(self, messages: Sequence[ChatMessage], *, max_tokens: int) -> ChatReply:
        """See `ChatProvider`."""

        def ask() -> Any:
            with self._open() as client:
                return client.chat.complete(**self._question(messages, max_tokens))

        answer = await self._run(ask)
        try:
            choice, usage = answer.choices[0], answer.usage
            reply = ChatReply(
                bounded(_text(choice.message.content)),
                str(choice.finish_reason or "stop"),
                int(usage.prompt_tokens or 0),
                int(usage.completion_tokens or 0),
            )
        except (AttributeError, IndexError, TypeError) as error:
            raise LLMError("the provider's answer is no chat completion") from error
        return reply

    def _pieces(self, messages: Sequence[ChatMessage], max_tokens: int) -> Generator[str, None, None]:
        finished = False
        with self._open() as client, client.chat.stream(**self._question(messages, max_tokens)) as stream:
            for event in stream:
                for choice in event.data.choices[:1]:
                    finished = finished or bool(choice.finish_reason)
                    yield _text(choice.delta.content)
        if not finished:
            raise LLMUnavailable("the provider broke off before the end of its answer")

    def _question(self, messages: Sequence[ChatMessage], max_tokens: int) -> dict[str, Any]:
        return {
            "model": self._model,
            "messages": [message.to_map() for message in messages],
            "max_tokens": max_tokens,
            "response_format": {"type": "json_object"},
        }

    async def _run(self, ask: Callable[[], _T]) -> _T:
        import httpx2

        try:
            result: _T = await self._threads.run(ask)
        except self._errors.ResponseValidationError as error:
            raise LLMError("the provider's answer is no chat completion") from error
        except self._errors.MistralError as error:
            wait_s = retry_after_s(error.headers.get("retry-after"), time.time())
            raise error_of_status(error.status_code, str(error), wait_s) from error
        except (httpx2.HTTPError, self._errors.NoResponseError) as error:
            raise LLMUnavailable(f"the provider cannot be asked: {type(error).__name__}: {error}") from error
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise LLMError(f"the provider's answer cannot be used: {str(error)[:300]}") from error
        return result


def _text(content: Any) -> str:
    """The text of an answer, which is one or comes in parts."""
    if isinstance(content, list):
        return "".join(str(getattr(part, "text", "")) for part in content)
    return content if isinstance(content, str) else ""
