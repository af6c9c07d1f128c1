"""Agents that a language model decides for. `pip install converge-p2p[llm]`, or one of its providers.

Knows: the public names and where each lives. Must not know: any provider's library before it is used.
Source: `docs/llm.md`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from converge_p2p.extensions.llm.agent import LLMAgent as LLMAgent
    from converge_p2p.extensions.llm.anthropic import AnthropicChat as AnthropicChat
    from converge_p2p.extensions.llm.chat import (
        ChatMessage as ChatMessage,
        ChatProvider as ChatProvider,
        ChatReply as ChatReply,
        LLMError as LLMError,
        RateLimited as RateLimited,
    )
    from converge_p2p.extensions.llm.http import OpenAICompatibleChat as OpenAICompatibleChat
    from converge_p2p.extensions.llm.mistral import MistralChat as MistralChat
    from converge_p2p.extensions.llm.openai import OpenAIChat as OpenAIChat

_HOME = {
    "AnthropicChat": "anthropic",
    "ChatMessage": "chat",
    "ChatProvider": "chat",
    "ChatReply": "chat",
    "LLMAgent": "agent",
    "LLMError": "chat",
    "MistralChat": "mistral",
    "OpenAIChat": "openai",
    "OpenAICompatibleChat": "http",
    "RateLimited": "chat",
}

__all__ = [*_HOME]  # noqa: PLE0604 - the table is the one list of names


def __getattr__(name: str) -> object:
    """Import a public name on its first use."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
