"""Answers that a provider's library streams, read piece by piece in a thread.

Knows: plain iterators, and threads. Must not know: providers.
Source: `docs/llm.md`. The libraries' async streams, and those of HTTP clients, leave generators behind that trio has to
warn of; their plain ones do not. Nothing runs ahead of the reader: each piece is one turn of a thread.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator

from converge_p2p.core import limits
from converge_p2p.extensions.llm.chat import LLMError


async def read_in_threads(
    pieces: Generator[str, None, None], run: Callable[[Callable[[], str | None]], Awaitable[str | None]]
) -> AsyncGenerator[str, None]:
    """Yield what a plain generator yields.

    Args:
        pieces: opens the stream when it begins, and closes it when it ends or is closed.
        run: runs a function in a thread, and turns what the library raises into an `LLMError`.

    Cancellation: a thread that is in the middle of a read goes on until that ends; then the stream is closed.
    """
    said = 0
    try:
        while (piece := await run(lambda: next(pieces, None))) is not None:
            said += len(piece)
            if said > limits.LLM_ANSWER_CHARS_MAX:
                raise LLMError(f"the answer has more than {limits.LLM_ANSWER_CHARS_MAX} characters")
            if piece:
                yield piece
    finally:
        try:
            pieces.close()
        except ValueError:
            # the thread that was given up runs in it; the generator closes the stream when it is let go
            pass
