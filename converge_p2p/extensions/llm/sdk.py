"""What the providers' own libraries have in common: streams read in threads, and errors of one family.

Knows: how a generated client library reports failure. Must not know: which provider it is.
Source: `docs/llm.md`. OpenAI's and Anthropic's libraries come from one generator, and name their errors alike.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Any, TypeVar

from converge_p2p.core import limits
from converge_p2p.extensions.llm.chat import ChatMessage, LLMError, LLMUnavailable, error_of_status, retry_after_s
from converge_p2p.extensions.llm.threaded import read_in_threads
from converge_p2p.runtime.threads import BoundedThreads

_T = TypeVar("_T")

_HTTP_LIBRARIES = ("httpx", "httpx2", "httpcore", "httpcore2")


class SdkChat(ABC):
    """One model, through a library whose streams are read in threads."""

    def __init__(self, model: str) -> None:
        """Set it up; nothing is sent."""
        self._model = model
        self._threads = BoundedThreads(limits.LLM_THREADS_MAX)

    async def chat_stream(self, messages: Sequence[ChatMessage], *, max_tokens: int) -> AsyncGenerator[str, None]:
        """See `ChatProvider`."""
        async with aclosing(read_in_threads(self._pieces(messages, max_tokens), self._run)) as pieces:
            async for piece in pieces:
                yield piece

    @abstractmethod
    def _pieces(self, messages: Sequence[ChatMessage], max_tokens: int) -> Generator[str, None, None]:
        """Ask, and yield the answer as it comes. Raises `LLMUnavailable` if it breaks off."""

    @abstractmethod
    async def _run(self, ask: Callable[[], _T]) -> _T:
        """Run a function in a thread, and turn what the library raises into an `LLMError`."""


class GeneratedSdkChat(SdkChat):
    """One model, through a library of the generator that OpenAI and Anthropic use."""

    def __init__(
        self,
        library: Any,
        errors: type[Exception],
        model: str,
        *,
        api_key: str | None,
        base_url: str | None,
        timeout_s: float,
    ) -> None:
        """Set it up; nothing is sent.

        Args:
            library: the module.
            errors: what all its own errors are.
            model: name of the model.
            api_key, base_url: None is the library's default.
            timeout_s: how long nothing may come, seconds.
        """
        super().__init__(model)
        self._library = library
        self._library_error = errors
        # it would try again by itself, without telling; one place decides that (see `chat.with_retries`)
        self._settings: dict[str, Any] = {
            "api_key": api_key,
            "base_url": base_url,
            "timeout": timeout_s,
            "max_retries": 0,
        }

    async def _run(self, ask: Callable[[], _T]) -> _T:
        with self._translated():
            result: _T = await self._threads.run(ask)
        return result

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
        except (self._library_error, ValueError, TypeError, AttributeError, RecursionError) as error:
            # the last four are answers of another shape; a TypeError may be a key that is missing
            raise LLMError(f"the provider's answer cannot be used: {str(error)[:300]}") from error
        except Exception as error:
            if type(error).__module__.partition(".")[0] in _HTTP_LIBRARIES:
                raise LLMUnavailable(f"the provider broke off: {type(error).__name__}: {error}") from error
            raise
