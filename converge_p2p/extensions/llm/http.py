"""Any server that speaks the chat completions protocol of OpenAI, as most do, local ones included.

Knows: the protocol over HTTP, with server-sent events. Must not know: agents.
Source: `docs/llm.md`; the chat completions protocol; `httpx`, in threads (see `threaded`).
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Generator, Iterator, Mapping, Sequence
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

_BYTES_MAX = 8 * limits.LLM_ANSWER_CHARS_MAX


class OpenAICompatibleChat:
    """One model on one server. Each question has a connection of its own, so there is nothing to close."""

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str = "",
        json_mode: bool = True,
        timeout_s: float = 120.0,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Set it up; nothing is sent.

        Args:
            base_url: up to and without `/chat/completions`, as `http://localhost:11434/v1`.
            model: name of the model.
            api_key: sent as a bearer token; empty sends none.
            json_mode: ask the server for JSON; some refuse that.
            timeout_s: how long nothing may come, seconds. After a cancellation a thread goes on for that long.
            extra: more fields of the request, as `temperature`.

        Raises:
            LocalError: `httpx` is not installed, or the address is none.
        """
        try:
            import httpx  # noqa: F401
        except ImportError as error:
            raise LocalError("httpx is not installed", hint="pip install converge-p2p[llm]") from error
        if not base_url.startswith(("http://", "https://")):
            raise LocalError(f"base_url is {base_url!r}; expected http://… or https://…")
        self._url = base_url.rstrip("/") + "/chat/completions"
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._body: dict[str, Any] = {"model": model, **(extra or {})}
        if json_mode:
            self._body["response_format"] = {"type": "json_object"}
        self._timeout_s = timeout_s
        self._threads = BoundedThreads(limits.LLM_THREADS_MAX)

    async def chat(self, messages: Sequence[ChatMessage], *, max_tokens: int) -> ChatReply:
        """See `ChatProvider`."""

        def ask() -> dict[str, Any]:
            data = bytearray()
            with self._answer(messages, max_tokens, stream=False) as response:
                for part in response.iter_bytes():
                    data += part
                    if len(data) > _BYTES_MAX:
                        raise LLMError(f"the answer has more than {_BYTES_MAX} bytes")
            return _json(bytes(data))

        answer = await self._threads.run(ask)
        try:
            choice, usage = answer["choices"][0], answer.get("usage") or {}
            text = choice["message"]["content"] or ""
            return ChatReply(
                bounded(str(text)),
                str(choice.get("finish_reason") or "stop"),
                int(usage.get("prompt_tokens") or 0),
                int(usage.get("completion_tokens") or 0),
            )
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise LLMError("the server's answer is no chat completion") from error

    async def chat_stream(self, messages: Sequence[ChatMessage], *, max_tokens: int) -> AsyncGenerator[str, None]:
        """See `ChatProvider`."""
        async with aclosing(read_in_threads(self._pieces(messages, max_tokens), self._threads.run)) as pieces:
            async for piece in pieces:
                yield piece

    def _pieces(self, messages: Sequence[ChatMessage], max_tokens: int) -> Generator[str, None, None]:
        with self._answer(messages, max_tokens, stream=True) as response:
            for event in _events(response):
                if event == b"[DONE]":
                    return
                answer = _json(event)
                try:
                    if "error" in answer:
                        raise LLMUnavailable(f"the server broke off: {str(answer['error'])[:300]}")
                    yield "".join(choice["delta"].get("content") or "" for choice in answer["choices"][:1])
                except (KeyError, IndexError, TypeError, AttributeError) as error:
                    raise LLMError("the server's answer is no chat completion") from error
        raise LLMUnavailable("the server broke off before the end of its answer")

    @contextmanager
    def _answer(self, messages: Sequence[ChatMessage], max_tokens: int, *, stream: bool) -> Iterator[Any]:
        import httpx

        told = [message.to_map() for message in messages]
        body = {**self._body, "messages": told, "max_tokens": max_tokens, "stream": stream}
        try:
            with (
                httpx.Client(timeout=self._timeout_s) as client,
                client.stream("POST", self._url, json=body, headers=self._headers) as response,
            ):
                if response.status_code != 200:
                    detail = next(response.iter_bytes(4096), b"")
                    wait_s = retry_after_s(response.headers.get("retry-after"), time.time())
                    raise error_of_status(response.status_code, detail.decode("utf-8", "replace"), wait_s)
                yield response
        except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL) as error:
            raise LLMUnavailable(f"the server cannot be asked: {type(error).__name__}: {error}") from error


def _events(response: Any) -> Iterator[bytes]:
    """Yield the data of server-sent events, none larger than an answer."""
    pending = b""
    for part in response.iter_bytes():
        *lines, pending = (pending + part).split(b"\n")
        if len(pending) > _BYTES_MAX:
            raise LLMError(f"a line of the answer has more than {_BYTES_MAX} bytes")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()


def _json(data: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise LLMError(f"the server's answer is not JSON: {data[:80]!r}") from error
    if not isinstance(answer, dict):
        raise LLMError("the server's answer is no chat completion")
    return answer
