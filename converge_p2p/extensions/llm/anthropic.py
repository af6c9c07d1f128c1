"""Models of Anthropic, by its library.

Knows: the library's messages. Must not know: agents.
Source: `docs/llm.md`; the `anthropic` package, whose client runs under trio.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from converge_p2p.core.errors import LocalError
from converge_p2p.extensions.llm.chat import ChatMessage, ChatReply, LLMError, LLMUnavailable, bounded
from converge_p2p.extensions.llm.sdk import GeneratedSdkChat


class AnthropicChat(GeneratedSdkChat):
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
        super().__init__(
            anthropic, anthropic.AnthropicError, model, api_key=api_key, base_url=base_url, timeout_s=timeout_s
        )

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

    def _question(self, messages: Sequence[ChatMessage], max_tokens: int) -> dict[str, Any]:
        system = "\n\n".join(message.content for message in messages if message.role == "system")
        told = [each.to_map() for each in messages if each.role != "system"]
        return {"model": self._model, "system": system, "messages": told, "max_tokens": max_tokens}
