"""Random and schema-guided requests to the control interface: no defect shows, nothing is written without permission,
and nothing stays behind.

`CONTROL_REQUESTS=10000 pytest tests/node/test_control_random.py` runs the full number; the default is what continuous
integration has time for. A failure is shrunk, and printed with the request that shows it.
"""

from __future__ import annotations

import gc
import os
import random
import re
import tracemalloc
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import hypothesis.strategies as st
import msgspec
import schemathesis
import trio
from control_kit import Ground, asking, ground, some_tokens
from schemathesis import GenerationMode

from converge_node.control.openapi import openapi_document
from converge_p2p.client.api import all_routes
from converge_p2p.client.routes import Form, Scope
from converge_p2p.core import limits
from converge_p2p.core.identity import Identity

REQUESTS = int(os.environ.get("CONTROL_REQUESTS", "400"))
LEFT_BYTES_MAX = 4 * 1024 * 1024
"""How much more memory may be held after many requests that write nothing: caches of the libraries."""

API = schemathesis.openapi.from_dict(msgspec.to_builtins(openapi_document()))
OPERATIONS = [result.ok() for result in API.get_all_operations()]
FORMS = [(re.sub(r"\{\w+\}", "[^/]+", route.path), route.form) for route in all_routes().values()]
"""What each path is answered with; where one path has several answers, they have one form."""
NEVER_READY = {"busy", "not_ready", "timeout", "network_error"}


def cases(count: int, *, wrong: bool) -> list[Any]:
    """Return requests that fit the schema, or do not."""
    found: list[Any] = []
    mode = GenerationMode.NEGATIVE if wrong else GenerationMode.POSITIVE

    @hypothesis.seed(0)
    @hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(st.one_of([each.as_strategy(generation_mode=mode) for each in OPERATIONS]))
    def collect(case: Any) -> None:
        found.append(case)

    collect()
    return found


def request_of(case: Any, known: Ground, chance: random.Random) -> dict[str, Any]:
    """Return a case as arguments of an HTTP client; half the time its path names what exists."""
    fitting = {"pool": "demo", "task": known.task.hex(), "agent": known.node.id, "name": "a", "motion": "0" * 64}
    places = dict(case.path_parameters or {})
    for name in places:
        if chance.random() < 0.5:
            places[name] = fitting[name]
    path = case.path.format(**places)
    given: dict[str, Any] = {"method": case.method, "url": path, "params": _text(case.query)}
    if not isinstance(case.body, schemathesis.core.NotSet):
        given["content"] = case.body if isinstance(case.body, bytes) else msgspec.json.encode(_plain(case.body))
    elif chance.random() < 0.3:
        given["content"] = chance.randbytes(chance.randrange(64))
    return given


def _text(query: Any) -> dict[str, str]:
    return {str(name): str(value) for name, value in (query or {}).items()}


def _plain(value: Any) -> Any:
    """Return generated text that UTF-8 cannot hold in a form that it can."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {_plain(name): _plain(item) for name, item in value.items()}
    return value


def form_of(request: dict[str, Any]) -> Form:
    """Return what a request is answered with."""
    path = request["url"].partition("?")[0]
    return next((form for pattern, form in FORMS if re.fullmatch(pattern, path)), Form.ENVELOPE)


async def sent(http: httpx.AsyncClient, request: dict[str, Any], **more: Any) -> httpx.Response:
    """Send a request; a stream is left after a moment."""
    if form_of(request) is Form.EVENTS:
        request = {**request, "params": {**request["params"], "timeout_s": "0.0001"}}
    with trio.fail_after(30):
        return await http.request(**request, **more)


def is_no_defect(answer: httpx.Response) -> bool:
    """Whether an answer is one that a client may get: what is above 499 is this node's own state, by name."""
    if answer.status_code < 500:
        return True
    return bool(answer.json()["error"]["code"] in NEVER_READY)


async def test_no_request_shows_a_defect_and_nothing_stays_behind() -> None:
    known = await ground()
    known.node.discovery.know(Identity.from_seed(b"\1" * 32))
    chance = random.Random(1)
    asked = cases(REQUESTS // 2, wrong=False) + cases(REQUESTS // 2, wrong=True)
    chance.shuffle(asked)
    statuses: dict[int, int] = {}
    async with asking(known) as http:
        for case in asked:
            request = request_of(case, known, chance)
            answer = await sent(http, request)
            assert is_no_defect(answer), (request, answer.text)
            statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
            if form_of(request) is Form.ENVELOPE:
                assert answer.json()["v"] == 1, request
        # not a fuzzer that only ever met one door
        assert statuses[200] > 10, statuses
        assert statuses[400] > 10, statuses
        assert statuses[404] > 10, statuses
        assert (known.state.requests, known.state.streams) == (0, 0)
        assert known.pool.watchers == []
        assert (await http.get("/healthz")).status_code == 200


async def test_whoever_may_only_read_changes_nothing_and_whoever_may_do_nothing_sees_nothing(tmp_path: Path) -> None:
    known = await ground()
    tokens, made = some_tokens(tmp_path)
    asked = cases(REQUESTS // 4, wrong=False)
    chance = random.Random(2)

    def state() -> Any:
        node = known.node
        return (
            {id_: list(pool.tasks()) for id_, pool in node.pools.items()}, dict(node.joined_topics), list(node.said),
            node.discovery.own, list(node.invitations.asked), list(node.shown), list(known.stops),
            known.pool.council.motions(), len(node.discovery.index),
        )  # fmt: skip

    before = state()
    async with asking(known, tokens) as http:
        for case in asked:
            request = request_of(case, known, chance)
            read = await sent(http, request, headers={"authorization": f"Bearer {made[Scope.READ]}"})
            assert is_no_defect(read), (request, read.text)
            nobody = await sent(http, request, headers={"authorization": f"Bearer {chance.randbytes(8).hex()}"})
            assert nobody.status_code in (401, 404, 405), request
            assert state() == before, request


async def test_many_requests_hold_neither_memory_nor_tasks(tmp_path: Path) -> None:
    known = await ground()
    chance = random.Random(3)
    requests = [request_of(case, known, chance) for case in cases(REQUESTS // 8, wrong=True)]
    async with asking(known) as http:
        for request in requests:
            await sent(http, request)
        gc.collect()
        tasks = trio.lowlevel.current_statistics().tasks_living
        tracemalloc.start()
        try:
            for _ in range(3):
                for request in requests:
                    await sent(http, request)
            gc.collect()
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert held < LEFT_BYTES_MAX
        assert trio.lowlevel.current_statistics().tasks_living == tasks


async def test_more_requests_and_streams_than_the_bounds_are_refused_and_the_places_come_back() -> None:
    known = await ground()
    answers: list[int] = []
    async with asking(known) as http, trio.open_nursery() as nursery:

        async def watch() -> None:
            answer = await http.get("/v1/pools/demo/watch", params={"timeout_s": "0.2"})
            answers.append(answer.status_code)

        for _ in range(limits.CONTROL_STREAMS_MAX + 6):
            nursery.start_soon(watch)
    assert sorted(answers) == [200] * limits.CONTROL_STREAMS_MAX + [429] * 6
    assert (known.state.streams, known.state.requests) == (0, 0)
    assert known.state.refused == 6
