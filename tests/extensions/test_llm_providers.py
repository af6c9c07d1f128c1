"""Every provider, by its own library or by plain HTTP, against a real server: whole, streamed, refused, broken."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import aclosing
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import pytest
import trio
from model_server import ModelServer, Scripted, model_server
from trio.testing import MockClock

from converge_p2p.core import limits
from converge_p2p.core.errors import LocalError
from converge_p2p.extensions.llm.chat import (
    ChatMessage,
    ChatProvider,
    ChatReply,
    LLMError,
    LLMUnavailable,
    RateLimited,
    retry_after_s,
    with_retries,
)

QUESTION = [ChatMessage("system", "be brief"), ChatMessage("user", "hi")]


def compatible(url: str) -> ChatProvider:
    from converge_p2p.extensions.llm import OpenAICompatibleChat

    return OpenAICompatibleChat(f"{url}/v1", "m", api_key="secret", timeout_s=30)


def openai(url: str) -> ChatProvider:
    pytest.importorskip("openai")
    from converge_p2p.extensions.llm import OpenAIChat

    return OpenAIChat("m", api_key="secret", base_url=f"{url}/v1", timeout_s=30)


def anthropic(url: str) -> ChatProvider:
    pytest.importorskip("anthropic")
    from converge_p2p.extensions.llm import AnthropicChat

    return AnthropicChat("m", api_key="secret", base_url=url, timeout_s=30)


def mistral(url: str) -> ChatProvider:
    pytest.importorskip("mistralai")
    from converge_p2p.extensions.llm import MistralChat

    return MistralChat("m", api_key="secret", base_url=url, timeout_s=30)


Make = Callable[[str], ChatProvider]
every_provider = pytest.mark.parametrize("make", [compatible, openai, anthropic, mistral])


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with model_server() as running:
        yield running


async def streamed(provider: ChatProvider) -> list[str]:
    async with aclosing(provider.chat_stream(QUESTION, max_tokens=50)) as pieces:
        return [piece async for piece in pieces]


@every_provider
async def test_a_whole_answer_comes_with_its_counts(make: Make, server: ModelServer) -> None:
    server.say("hello you")
    reply = await make(server.url).chat(QUESTION, max_tokens=50)
    assert reply == ChatReply("hello you", "stop", 3, 5)
    assert "secret" in server.keys[0]
    assert "hi" in str(server.asked[0]["messages"])
    assert "be brief" in str(server.asked[0])


@every_provider
async def test_a_streamed_answer_comes_in_pieces(make: Make, server: ModelServer) -> None:
    server.say("a rather long answer")
    pieces = await streamed(make(server.url))
    assert "".join(pieces) == "a rather long answer"
    assert len(pieces) > 1


@every_provider
async def test_a_rate_limit_says_how_long_to_wait_and_is_not_tried_again_behind_our_back(
    make: Make, server: ModelServer
) -> None:
    for ask in (lambda: make(server.url).chat(QUESTION, max_tokens=5), lambda: streamed(make(server.url))):
        server.say(Scripted(status=429, headers={"retry-after": "7"}))
        with pytest.raises(RateLimited) as limited:
            await ask()
        assert limited.value.retry_after_s == 7
    assert len(server.asked) == 2


@every_provider
@pytest.mark.parametrize(
    ("status", "kind"), [(500, LLMUnavailable), (503, LLMUnavailable), (401, LLMError), (400, LLMError)]
)
async def test_a_status_says_whether_it_is_worth_to_ask_again(
    make: Make, server: ModelServer, status: int, kind: type[LLMError]
) -> None:
    server.say(Scripted(status=status))
    with pytest.raises(LLMError) as refused:
        await make(server.url).chat(QUESTION, max_tokens=5)
    assert type(refused.value) is kind
    assert refused.value.retry is (kind is LLMUnavailable)
    assert "secret" not in str(refused.value)


@every_provider
@pytest.mark.parametrize(
    "raw",
    [b"", b"<html>", b"[]", b"{}", b'{"choices": []}', b'{"choices": 7}', b"[" * 100_000, b"\xff\xfe"],
    ids=["nothing", "HTML", "a list", "a map", "no choices", "a number", "too deep", "no text"],
)
async def test_garbage_is_an_error_of_the_provider_and_of_nothing_else(
    make: Make, server: ModelServer, raw: bytes
) -> None:
    server.say(Scripted(raw=raw))
    with pytest.raises(LLMError):
        await make(server.url).chat(QUESTION, max_tokens=5)


@every_provider
async def test_a_stream_that_is_cut_is_not_taken_for_a_whole_answer(make: Make, server: ModelServer) -> None:
    server.say(Scripted("a rather long answer", cut=3))
    with pytest.raises(LLMUnavailable, match=r"broke off|cannot be asked"):
        await streamed(make(server.url))


@every_provider
async def test_a_stream_that_is_garbage_is_an_error(make: Make, server: ModelServer) -> None:
    server.say(Scripted(raw=b"data: {nonsense\n\n", headers={"content-type": "text/event-stream"}))
    with pytest.raises(LLMError):
        await streamed(make(server.url))


@every_provider
async def test_an_answer_without_end_is_cut_off(make: Make, server: ModelServer) -> None:
    server.say("x" * (limits.LLM_ANSWER_CHARS_MAX + 1))
    with pytest.raises(LLMError, match="more than"):
        await make(server.url).chat(QUESTION, max_tokens=5)
    server.say("x" * (limits.LLM_ANSWER_CHARS_MAX + 1))
    with pytest.raises(LLMError, match="more than"):
        await streamed(make(server.url))


@every_provider
async def test_a_server_that_is_not_there_is_unavailable(make: Make, server: ModelServer) -> None:
    with pytest.raises(LLMUnavailable):
        await make("http://127.0.0.1:1").chat(QUESTION, max_tokens=5)


@every_provider
async def test_a_question_can_be_given_up_while_the_answer_is_held_back(make: Make, server: ModelServer) -> None:
    server.say(Scripted("some text that comes", hold=True, cut=3))
    got = trio.Event()

    async def read() -> None:
        async with aclosing(make(server.url).chat_stream(QUESTION, max_tokens=5)) as pieces:
            async for _ in pieces:
                got.set()

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await got.wait()
            # a thread in the middle of a read ends when the server lets go
            server.let_go.set()
            nursery.cancel_scope.cancel()


# ---------------------------------------------------------------- trying again


class Failing:
    def __init__(self, *errors: LLMError) -> None:
        self.errors = list(errors)
        self.asked: list[float] = []

    async def __call__(self) -> str:
        self.asked.append(trio.current_time())
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


async def test_what_the_provider_asks_to_wait_is_waited(autojump_clock: MockClock) -> None:
    ask = Failing(RateLimited("no", 20), RateLimited("no", 0.5))
    assert await with_retries(ask) == "answer"
    assert 20 <= ask.asked[1] <= 22
    assert 0.5 <= ask.asked[2] - ask.asked[1] <= 0.55


async def test_a_longer_wait_than_is_bearable_is_said_at_once(autojump_clock: MockClock) -> None:
    ask = Failing(RateLimited("no", limits.LLM_RETRY_WAIT_S_MAX + 1))
    with pytest.raises(RateLimited):
        await with_retries(ask)
    assert trio.current_time() == 0


async def test_tries_are_bounded_and_wait_twice_as_long_each_time(autojump_clock: MockClock) -> None:
    ask = Failing(*(LLMUnavailable("down") for _ in range(99)))
    with pytest.raises(LLMUnavailable):
        await with_retries(ask)
    assert len(ask.asked) == limits.LLM_TRIES_MAX
    waits = [later - earlier for earlier, later in itertools.pairwise(ask.asked)]
    assert all(longer > 1.7 * shorter for shorter, longer in itertools.pairwise(waits))


async def test_what_will_not_succeed_is_not_tried_again() -> None:
    ask = Failing(LLMError("bad key"))
    with pytest.raises(LLMError):
        await with_retries(ask)
    assert len(ask.asked) == 1


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("3", 3), ("0.5", 0.5), ("-1", 0), ("nan", None), ("inf", None), ("x", None), (None, None),
     (format_datetime(datetime(2030, 1, 1, tzinfo=UTC), usegmt=True), 60)],
)  # fmt: skip
def test_a_wait_is_given_in_seconds_or_as_a_date(value: str | None, seconds: float | None) -> None:
    assert retry_after_s(value, datetime(2029, 12, 31, 23, 59, tzinfo=UTC).timestamp()) == seconds


# ---------------------------------------------------------------- what is not there


def test_a_library_that_is_missing_is_named_with_the_command_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from converge_p2p.extensions import llm

    for name, library, extra, arguments in (
        ("OpenAIChat", "openai", "openai", {"api_key": "k"}),
        ("AnthropicChat", "anthropic", "anthropic", {"api_key": "k"}),
        ("MistralChat", "mistralai.client", "mistral", {"api_key": "k"}),
    ):
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(LocalError, match="not installed") as missing:
            getattr(llm, name)("m", **arguments)
        assert missing.value.hint == f"pip install converge-p2p[{extra}]"


def test_nothing_of_a_provider_is_imported_before_it_is_used() -> None:
    code = (
        "import converge_p2p.extensions.llm as llm, sys; llm.LLMAgent, llm.OpenAIChat, llm.MistralChat;"
        "tops = {name.partition('.')[0] for name in sys.modules};"
        "print(tops & {'openai', 'anthropic', 'mistralai', 'httpx', 'httpx2', 'pydantic'})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.strip() == "set()"


def test_an_address_that_is_none_is_refused() -> None:
    from converge_p2p.extensions.llm import OpenAICompatibleChat

    values: Any = "localhost:11434"
    with pytest.raises(LocalError, match="base_url"):
        OpenAICompatibleChat(values, "m")
