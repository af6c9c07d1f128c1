"""The public interface, name by name: what is in `docs/api.txt` does not change unnoticed.

A change that is meant is written down with `python tests/architecture/test_public_api.py`, and its commit shows it.
Users have to be told: a news fragment, `changed` or `removed` if what they wrote may stop to work.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import converge_p2p
from converge_p2p import aio, node
from converge_p2p.node import (
    agents,
    bids,
    blobs,
    council,
    evidence,
    invitations,
    join_asking,
    join_requests,
    joins,
    keys,
    links,
    observation,
    pool_blobs,
)
from converge_p2p.runtime import loop, outcomes

PAGE = Path(__file__).resolve().parents[2] / "docs" / "api.txt"
HEADER = "# The public interface. Written by tests/architecture/test_public_api.py, which says when and how to do so.\n"
MORE = {
    # what documents and examples import beside the two front doors
    "converge_p2p.core.errors": None,
    "converge_p2p.extensions.llm": None,
    "converge_p2p.extensions.mcp": None,
    "converge_p2p.node": None,
    "converge_p2p.node.agent_parts": ("ExecutorParts",),
    "converge_p2p.runtime.executor": ("CustomHandler", "Executed", "Executor", "Failed", "Refused"),
    "converge_p2p.runtime.recording": ("register_recorded",),
    "converge_p2p.runtime.replay": ("replay",),
    "converge_p2p.runtime.replay_log": ("read_turns",),
    "converge_p2p.store.api": ("KeptStore", "NodeStore", "Store"),
    "converge_p2p.store.memory": ("MemoryStore",),
    "converge_p2p.store.sqlite": ("SqliteStore",),
}


def lines() -> Iterator[str]:
    for module in (converge_p2p, aio):
        for name in sorted(module.__all__):
            yield from shown(f"{module.__name__}.{name}", getattr(module, name))
    for path, names in MORE.items():
        module = importlib.import_module(path)
        for name in sorted(public(module) if names is None else names):
            yield from shown(f"{path}.{name}", getattr(module, name))


def public(module: ModuleType) -> list[str]:
    """The names of a module that has a list of them, or that were made there."""
    listed = getattr(module, "__all__", None)
    if listed is not None:
        return list(listed)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith(module.__name__)
    ]


def shown(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, ModuleType):
        for inner in sorted(set(vars(value)) if not hasattr(value, "__all__") else value.__all__):
            if not inner.startswith("_") and getattr(getattr(value, inner), "__module__", "").startswith(
                "converge_p2p"
            ):
                yield from shown(f"{name}.{inner}", getattr(value, inner))
    elif isinstance(value, type) and issubclass(value, Enum):
        yield f"{name}: {', '.join(each.name for each in value)}"
    elif isinstance(value, type):
        yield f"{name}{signature(value)}"
        for member in sorted(members(value)):
            yield f"    {member}"
    elif inspect.isroutine(value):
        yield f"{name}{signature(value)}"
    else:
        yield name


def members(owner: type) -> Iterator[str]:
    """Methods and properties, also those of bases of this project, and of structures their fields."""
    for name in dir(owner):
        if name.startswith("_"):
            continue
        value = inspect.getattr_static(owner, name)
        if not _is_ours(owner, name):
            continue
        if isinstance(value, property):
            yield f"{name} -> {inspect.get_annotations(value.fget).get('return', '?')}"  # type: ignore[arg-type]
        elif isinstance(value, staticmethod | classmethod) or inspect.isfunction(value):
            function = value.__func__ if isinstance(value, staticmethod | classmethod) else value
            kind = "async " if inspect.iscoroutinefunction(inspect.unwrap(function)) else ""
            yield f"{kind}{name}{signature(function)}"


def _is_ours(owner: type, name: str) -> bool:
    made_in = next(base for base in owner.__mro__ if name in vars(base))
    return made_in.__module__.startswith(("converge_p2p", "converge_node"))


class _Unsaid:
    def __repr__(self) -> str:
        return "…"


def signature(value: Any) -> str:
    """What is called how; nothing for a class that only the node makes."""
    if isinstance(value, type) and (value.__init__.__doc__ or "").startswith("Made by"):
        return ""
    try:
        called = inspect.signature(value)
    except (TypeError, ValueError):
        return ""
    # a default that looks different in each process is not written out
    parameters = [
        each.replace(default=_Unsaid()) if re.search(r" at 0x|frozenset\(", repr(each.default)) else each
        for each in called.parameters.values()
    ]
    return str(called.replace(parameters=parameters))


def test_the_public_interface_is_what_the_page_says() -> None:
    kept, now = PAGE.read_text(encoding="utf-8"), HEADER + "\n".join(lines()) + "\n"
    difference = difflib.unified_diff(kept.splitlines(), now.splitlines(), "docs/api.txt", "the code", lineterm="", n=0)
    assert kept == now, "\n".join([*difference, "If this is meant: python tests/architecture/test_public_api.py"])


IN_ASYNCIO = [
    (node.Node, aio.Node),
    (node.PoolHandle, aio.PoolHandle),
    (node.TaskHandle, aio.TaskHandle),
    (node.TopicHandle, aio.TopicHandle),
    (blobs.Blobs, aio.Blobs),
    (pool_blobs.PoolBlobs, aio.PoolBlobs),
    (node.DiscoveryService, aio.DiscoveryService),
    (invitations.Invitations, aio.Invitations),
    (joins.Joins, aio.Joins),
    (join_asking.JoinAsking, aio.JoinAsking),
    (join_requests.JoinRequests, aio.JoinRequests),
    (links.Links, aio.Links),
    (observation.Observation, aio.Observation),
    (bids.Bids, aio.Bids),
    (agents.Agents, aio.Hosting),
    (council.Council, aio.Council),
    (evidence.PoolEvidence, aio.PoolEvidence),
    (keys.PoolKeys, aio.PoolKeys),
    (loop.AgentRuntime, aio.AgentRuntime),
    (outcomes.Ticket, aio.Ticket),
    (converge_p2p.WorkContext, aio.WorkContext),
]
INSIDE = {
    "Blobs": {"chunk", "close", "counts", "expire", "manifest", "open", "put_stream", "stream"},
    "PoolBlobs": {"bring", "bring_result", "bring_value", "keep_result", "spec_of"},
    # called by the parts of a node among themselves
    "Node": {"spawn"},
    "PoolHandle": {"close", "driver", "evaluations", "on_notice", "opinions", "refresh_capabilities", "workers"},
    "DiscoveryService": {"close", "frame", "moved", "open", "peer_down", "peer_up", "restore"},
    "Invitations": {"redeem"},
    "Joins": {"read", "restore", "visitors"},
    "JoinAsking": {"on_decided", "restore"},
    "JoinRequests": {"on_ask", "restore"},
    "Links": {"restore"},
    "Observation": {
        "events", "forget", "parts", "read_operation", "started", "tell", "tell_notice", "watch", "watchers",
    },
    "Bids": {"look", "restore"},
    "Agents": {
        "application_claims", "application_released", "claim_decided", "deliver", "inbox_most", "keep", "make_runtime",
        "matter_changed", "pool_left", "room", "run", "start", "stop", "task_changed",
    },
    "Council": {"close", "installed", "moved", "on_notice"},
    "AgentRuntime": {
        "adopt", "called", "claim_lost", "claim_won", "claims", "config", "fits", "inbox", "mailbox", "matter_changed",
        "outcomes", "run", "task_changed", "wants",
    },
    "Ticket": {"take"},
    "WorkContext": {"mark_cancelled", "wake", "done", "news", "note"},
}  # fmt: skip


def attributes(owner: type) -> set[str]:
    """What objects of a class have beside methods and properties: what its methods give to `self`."""
    found: set[str] = set()
    for base in owner.__mro__:
        if not base.__module__.startswith("converge_p2p") or getattr(base, "_is_protocol", False):
            continue
        for found_node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(base)))):
            match found_node:
                case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                    found.add(name)
    return {name for name in found if not name.startswith("_")}


def test_every_part_of_a_node_that_trio_offers_is_compared_with_one_for_asyncio() -> None:
    # a part that is new shows here, for whatever it gives to `self` it has to name
    known = {"counters", "policy"}
    named = {inspect.get_annotations(vars(aio.Node)[name].fget)["return"] for name in attributes(node.Node) - known}
    assert named == {"Bids", "Blobs", "DiscoveryService", "Hosting", "Invitations", "Joins", "Links", "Observation"}
    assert named <= {theirs.__name__ for _, theirs in IN_ASYNCIO}


@pytest.mark.parametrize(("ours", "theirs"), IN_ASYNCIO, ids=[ours.__name__ for ours, _ in IN_ASYNCIO])
def test_what_there_is_for_trio_there_is_for_asyncio_with_the_same_arguments(ours: type, theirs: type) -> None:
    inside = INSIDE.get(ours.__name__, set())
    names = {name for name in dir(ours) if not name.startswith("_")} - inside
    held = attributes(ours) - inside - set(dir(theirs))
    assert not held, f"aio.{theirs.__name__} lacks {sorted(held)}"
    assert names <= set(dir(theirs)), f"aio.{theirs.__name__} lacks {sorted(names - set(dir(theirs)))}"
    for name in (*names, "__init__") if ours is node.Node else names:
        own, other = inspect.getattr_static(ours, name), inspect.getattr_static(theirs, name)
        assert isinstance(own, property) == isinstance(other, property) or inspect.isdatadescriptor(own), name
        if inspect.isfunction(own):
            assert list(inspect.signature(own).parameters) == list(inspect.signature(other).parameters), name
            assert not inspect.iscoroutinefunction(own) or inspect.iscoroutinefunction(inspect.unwrap(other)), name


if __name__ == "__main__":
    PAGE.write_text(HEADER + "\n".join(lines()) + "\n", encoding="utf-8")
