"""Models of OpenAI, by its library.

Knows: the library's chat completions. Must not know: agents.
Source: `docs/llm.md`; the `openai` package, whose client runs under trio.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from converge_p2p.core.errors import LocalError
from converge_p2p.extensions.llm.chat import ChatMessage, ChatReply, LLMError, LLMUnavailable, bounded
from converge_p2p.extensions.llm.sdk import GeneratedSdkChat


class OpenAIChat(GeneratedSdkChat):
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
        super().__init__(openai, openai.OpenAIError, model, api_key=api_key, base_url=base_url, timeout_s=timeout_s)
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

    def _question(self, messages: Sequence[ChatMessage], max_tokens: int) -> dict[str, Any]:
        return {
            "model": self._model,
            "messages": [message.to_map() for message in messages],
            "max_completion_tokens": max_tokens,
            "response_format": {"type": "json_object"},
        }
