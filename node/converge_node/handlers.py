"""The functions of a user that do tasks: found by name, and put to work in every pool the node takes part in.

Knows: imports and pools. Must not know: claims, rounds or time-outs (see `runtime.workers`).
Source: docs/operations.md, `--handler OBJECTIVE=module:function[@CONCURRENCY]`.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from converge_node.control.ports import PoolLike
from converge_node.settings_check import parse_handler
from converge_p2p.core.errors import ConfigError
from converge_p2p.core.types import PoolId

_log = logging.getLogger("converge_node.handlers")


@dataclass(frozen=True, slots=True)
class LoadedHandler:
    """A function, what it is for, and how many tasks it takes at a time."""

    objective: str
    function: Callable[..., Any]
    concurrency: int


class Handlers:
    """The handlers of a node. Each pool gets them once."""

    def __init__(self, handlers: Iterable[LoadedHandler]) -> None:
        self._handlers = tuple(handlers)
        self._attached: set[PoolId] = set()

    @property
    def objectives(self) -> tuple[str, ...]:
        """What tasks there is a handler for."""
        return tuple(handler.objective for handler in self._handlers)

    def attach(self, pool: PoolLike) -> None:
        """Put every handler to work in a pool. A second call for one pool does nothing."""
        if pool.id in self._attached:
            return
        self._attached.add(pool.id)
        for handler in self._handlers:
            pool.handler(handler.objective, concurrency=handler.concurrency)(handler.function)
            _log.info("handler attached", extra={"objective": handler.objective, "pool": pool.id.hex()})


def load_handlers(texts: Iterable[str], *, default_concurrency: int) -> Handlers:
    """Import every handler that the settings name.

    Modules are also looked for in the working folder, as in `python -m`: a user starts the node where the work is.

    Raises:
        ConfigError: a module that cannot be imported, a name it does not have, or two handlers for one objective.
    """
    specs = [parse_handler(text) for text in texts]
    if specs and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    loaded: dict[str, LoadedHandler] = {}
    for spec in specs:
        if spec.objective in loaded:
            raise ConfigError(f"two handlers for the objective {spec.objective!r}; expected one")
        place = f"{spec.module}:{spec.function}"
        try:
            found: Any = importlib.import_module(spec.module)
        except Exception as error:
            raise ConfigError(
                f"cannot import the handler {place}: {type(error).__name__}: {error}",
                hint="start the node where the module can be found, or set PYTHONPATH",
            ) from error
        for name in spec.function.split("."):
            found = getattr(found, name, None)
        if not callable(found):
            raise ConfigError(f"the handler {place} is not a function that the module has")
        loaded[spec.objective] = LoadedHandler(spec.objective, found, spec.concurrency or default_concurrency)
    return Handlers(loaded.values())
