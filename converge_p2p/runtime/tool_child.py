"""The process of an untrusted tool: reads what to do, locks itself in, runs the function, writes what came out.

Knows: its request on standard input, and where the answer goes. Must not know: who asked.
Source: `docs/decisions/0018-tool-isolation.md`. Started as a script, with nothing of the node's environment, by
`tool_process`. The module of the tool is imported behind the locks: importing runs its code.
"""

from __future__ import annotations

import sys
from typing import Any


def main() -> None:
    """Serve one request and end."""
    import json
    import os

    size = int.from_bytes(sys.stdin.buffer.read(4), "big")
    request = json.loads(sys.stdin.buffer.read(size))
    sys.path[:] = request["path"]

    import importlib

    import msgpack

    from converge_p2p.runtime import sandbox

    params = msgpack.unpackb(sys.stdin.buffer.read(), raw=False)
    sandbox.die_with(request["parent"])
    missing = sandbox.lock_down(
        sandbox.Limits(request["memory_bytes"], request["cpu_s"], request["files"]),
        sandbox.Reach(request["network"], request["read"], request["path"]),
    )
    if missing and not request["weaker"]:
        answer: dict[str, Any] = {"missing": sorted(missing)}
    else:
        try:
            found: Any = importlib.import_module(request["module"])
            for name in request["function"].split("."):
                found = getattr(found, name)
            answer = {"value": found(params)}
            packed = msgpack.packb(answer, use_bin_type=True)
        except BaseException as error:  # noqa: BLE001 - whatever foreign code raises is the answer
            answer = {"error": f"{type(error).__name__}: {error}"[:2000]}
            packed = msgpack.packb(answer, use_bin_type=True, unicode_errors="replace")
        _write(request["answer"], packed)
        try:
            sys.stdout.flush()
        finally:
            # neither what the tool left for the interpreter's end nor its threads are waited for
            os._exit(0)
    _write(request["answer"], msgpack.packb(answer))


def _write(descriptor: int, data: bytes) -> None:
    import os

    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


if __name__ == "__main__":
    main()
