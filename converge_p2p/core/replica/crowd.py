"""Many replicas in one process, as simulators have them: what is a function of the bytes alone is worked out once.

Knows: which functions of the core are pure and dear. Must not know: what runs the replicas.
Source: docs/simulator.md; docs/decisions/0026-capacity-simulation.md.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from converge_p2p.core.oplog import operation as operation_module
from converge_p2p.core.oplog.operation import Operation, decode_operation, operation_id
from converge_p2p.core.replica import wire
from converge_p2p.core.replica.wire import decode_message, encode_message
from converge_p2p.core.types import PoolId

CACHED = 16_384


@contextmanager
def decoding_once() -> Iterator[None]:
    """Decode and verify each operation and sync message once in this process, not once for each replica.

    All are pure functions of the bytes, so the replicas of a simulation can share the result. It saves most of a run.
    """
    known: dict[tuple[bytes, PoolId], Operation] = {}

    def decode_once(signed: bytes, pool: PoolId, *, trusted: bool = False) -> Operation:
        found = known.get((signed, pool))
        if found is None:
            found = known[signed, pool] = decode_operation(signed, pool, trusted=trusted)
        return found

    swaps: dict[Any, Any] = {
        decode_operation: decode_once,
        operation_id: functools.lru_cache(maxsize=CACHED)(operation_id),
        decode_message: functools.lru_cache(maxsize=CACHED)(decode_message),
        encode_message: functools.lru_cache(maxsize=CACHED)(encode_message),
    }
    places = _places()
    for module, name, value in places:
        setattr(module, name, swaps[value])
    try:
        yield
    finally:
        for module, name, value in places:
            setattr(module, name, value)


@functools.cache
def _places() -> list[tuple[Any, str, Any]]:
    """Where the core names the functions that are looked up once: module, name and function."""
    wanted = (decode_operation, operation_id, decode_message, encode_message)
    return [
        (module, name, value)
        for key, module in sorted(sys.modules.items())
        if key.startswith("converge_p2p.") and module not in (operation_module, wire, sys.modules[__name__])
        for name, value in sorted(vars(module).items())
        if any(value is one for one in wanted)
    ]
