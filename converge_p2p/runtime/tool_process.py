"""Tools in a process of their own: their end is the end of the process, and what they reach is what they were given.

Knows: how the process is started, spoken with and ended. Must not know: how it locks itself in (see `sandbox`), or who
called the tool.
Source: `docs/decisions/0018-tool-isolation.md`. One process for each call: nothing of one call is left for the next.
"""

from __future__ import annotations

import functools
import importlib.machinery
import json
import math
import os
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import trio

from converge_p2p.core import limits
from converge_p2p.core.codec import decode_value, encode_value
from converge_p2p.core.errors import CodecError, LocalError
from converge_p2p.runtime import tool_child
from converge_p2p.runtime.tool_errors import ToolFailed, ToolIsolation

_READ_BYTES = 64 * 1024
_FILES_MAX = 64
_ENVIRONMENT = {"LANG": "C.UTF-8", "MALLOC_ARENA_MAX": "1"}
_SYSTEM_FILES = (
    "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache", "/etc/localtime",
    "/dev/null", "/dev/zero", "/dev/random", "/dev/urandom",
)  # fmt: skip
_NETWORK_FILES = ("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/ssl", "/usr/share/ca-certificates")


class ProcessTool:
    """A function of a module, run in a process that reaches nothing but the files it needs.

    Attributes:
        name, description, parameters, side_effects: see `tools.Tool`.
        isolated: true; a registry bounds how many such processes run at once.
    """

    isolated = True
    side_effects = False

    def __init__(
        self,
        function: str,
        *,
        name: str = "",
        description: str = "",
        parameters: Mapping[str, Any] | None = None,
        memory_mb: int = 512,
        cpu_s: float = 30.0,
        network: bool = False,
        read: Iterable[str | Path] = (),
        weaker: bool = False,
    ) -> None:
        """Describe a tool. Its module is not imported here: importing runs its code.

        Args:
            function: `module:function`; the function takes a map, and returns a value of numbers, text, bytes, lists
                and maps with text keys. It is a plain one.
            name: None takes the function's.
            description: for a model, or a person.
            parameters: JSON schema of the map; None takes any map.
            memory_mb: address space of the process, 64 to `limits.TOOL_MEMORY_MB_MAX` MiB; an interpreter takes 40.
            cpu_s: processor time, above 0, at most `limits.TOOL_CPU_S_MAX`; whole seconds, rounded up.
            network: it may use the internet (TCP, UDP), and the files that name resolution takes.
            read: files and folders that it may read, beside Python's libraries and its own module or package.
            weaker: run it even where the system lacks some of the locks. Otherwise it is refused there.

        Raises:
            LocalError: an argument out of its range, or a module that is not found.
        """
        module, separator, place = function.partition(":")
        if (
            not separator
            or not place
            or not all(part.isidentifier() for part in (*module.split("."), *place.split(".")))
        ):
            raise LocalError(f"{function!r} is no function; expected module:function")
        if type(memory_mb) is not int or not 64 <= memory_mb <= limits.TOOL_MEMORY_MB_MAX:
            raise LocalError(f"memory_mb is {memory_mb!r}; expected 64 to {limits.TOOL_MEMORY_MB_MAX}")
        if isinstance(cpu_s, bool) or not isinstance(cpu_s, int | float) or not 0 < cpu_s <= limits.TOOL_CPU_S_MAX:
            raise LocalError(f"cpu_s is {cpu_s!r}; expected more than 0, at most {limits.TOOL_CPU_S_MAX}")
        self.name = name or place.rpartition(".")[2]
        self.description = description
        self.parameters = parameters
        self._network = network
        self._request = {
            "module": module,
            "function": place,
            "memory_bytes": memory_mb << 20,
            "cpu_s": math.ceil(cpu_s),
            "files": _FILES_MAX,
            "network": network,
            "weaker": weaker,
            "read": [*_libraries(network), *_files_of(module), *(str(Path(path).absolute()) for path in read)],
        }

    async def run(self, params: Mapping[str, Any]) -> Any:
        """Run the function once.

        Raises:
            ToolFailed: it raised, was ended by one of its limits, wrote too much, or gave no value.
            ToolIsolation: this system lacks a lock.

        Cancellation: the process is killed, and its end waited for.
        """
        sent = encode_value(dict(params))
        child = _Child(self._request)
        await child.start(self.name)
        try:
            return _value(self.name, await child.serve(sent))
        finally:
            child.close()


class _Child:
    """One process, from its start to its end."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        self._request = request
        self.answer = bytearray()
        self.output = bytearray()
        self.excess = ""

    async def start(self, name: str) -> None:
        """Start the process. Cancellation: it is started all the same, so that there is something to end."""
        self._answer, self._theirs = os.pipe()
        token, started = trio.lowlevel.current_trio_token(), trio.Event()
        starting = _starter().submit(
            subprocess.Popen,
            [sys.executable, "-I", "-B", "-X", "utf8", tool_child.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd="/",
            env=_ENVIRONMENT,
            pass_fds=(self._theirs,),
            start_new_session=True,
        )
        starting.add_done_callback(lambda _: token.run_sync_soon(started.set))
        with trio.CancelScope(shield=True):
            await started.wait()
        os.close(self._theirs)
        try:
            self.process = starting.result()
        except OSError as error:
            os.close(self._answer)
            raise ToolFailed(f"tool {name!r} cannot be started: {error}") from error

    def close(self) -> None:
        """End the process if it has not ended."""
        self._kill()
        # it was waited for; one that the kernel holds longer must not hold the node
        self.process.poll()

    async def serve(self, params: bytes) -> _Child:
        """Hand the request over, and read until the process ended."""
        own = {"answer": self._theirs, "parent": os.getpid(), "path": _import_path()}
        head = json.dumps({**self._request, **own}).encode()
        process = self.process
        assert process.stdin is not None
        assert process.stdout is not None
        ended = os.pidfd_open(process.pid)
        # each stream has a descriptor of its own, and closes it
        requests, outputs, answers = (
            trio.lowlevel.FdStream(os.dup(process.stdin.fileno())),
            trio.lowlevel.FdStream(os.dup(process.stdout.fileno())),
            trio.lowlevel.FdStream(self._answer),
        )
        process.stdin.close()
        process.stdout.close()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_feed, requests, len(head).to_bytes(4, "big") + head + params)
                nursery.start_soon(self._read, outputs, self.output, limits.TOOL_OUTPUT_BYTES_MAX, "printed")
                nursery.start_soon(self._read, answers, self.answer, limits.TOOL_RESULT_BYTES_MAX, "returned")
                await trio.lowlevel.wait_readable(ended)
            process.wait()
        finally:
            self._kill()
            with trio.CancelScope(shield=True):
                for stream in (requests, outputs, answers):
                    await stream.aclose()
                with trio.move_on_after(limits.TOOL_KILL_S):
                    await trio.lowlevel.wait_readable(ended)
            os.close(ended)
        return self

    async def _read(self, stream: trio.lowlevel.FdStream, into: bytearray, bound: int, what: str) -> None:
        while data := await stream.receive_some(_READ_BYTES):
            into += data
            if len(into) > bound:
                self.excess = f"{what} more than {bound} bytes"
                self._kill()
                return

    def _kill(self) -> None:
        if self.process.returncode is None:
            try:
                # where the locks are weaker, it may have started others, which are in its group
                os.killpg(self.process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass


@functools.cache
def _starter() -> ThreadPoolExecutor:
    """One thread that lives as long as the node: the kernel ends a tool when the thread that started it ends."""
    return ThreadPoolExecutor(1, thread_name_prefix="tool starter")


async def _feed(stream: trio.lowlevel.FdStream, data: bytes) -> None:
    try:
        await stream.send_all(data)
    except trio.BrokenResourceError:
        # it ended before it read everything; how, its end says
        pass
    await stream.aclose()


def _value(name: str, child: _Child) -> Any:
    code = child.process.returncode
    said = bytes(child.output).decode("utf-8", "replace")[-500:].strip()
    tail = f"; it last printed: {said}" if said else ""
    if child.excess:
        raise ToolFailed(f"tool {name!r} {child.excess}, and was ended")
    if code == -signal.SIGXCPU:
        raise ToolFailed(f"tool {name!r} used up its processor time, and was ended{tail}")
    if not child.answer:
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        raise ToolFailed(f"tool {name!r} {how}, without an answer{tail}")
    try:
        answer = decode_value(bytes(child.answer))
        if not isinstance(answer, dict):
            raise CodecError("no map")
        encode_value(answer)
    except CodecError as error:
        raise ToolFailed(f"tool {name!r} gave no value that can be used: {error}") from error
    if "missing" in answer:
        raise ToolIsolation(
            f"tool {name!r} was not run: this system cannot keep it from {_listed(answer['missing'])}",
            hint="it takes Linux 6.2 with seccomp and Landlock on x86_64 or aarch64; `weaker=True` does without",
        )
    if "error" in answer:
        raise ToolFailed(f"tool {name!r} raised {str(answer['error'])[:2000]}{tail}")
    return answer.get("value")


def _listed(missing: Any) -> str:
    return " and ".join({"network": "the network", "files": "files"}.get(str(each), str(each)) for each in missing)


def _import_path() -> list[str]:
    # the child runs in another folder
    return [os.path.abspath(each or ".") for each in sys.path]


def _libraries(network: bool) -> list[str]:
    """What any Python program reads: the interpreter's libraries, and those that are installed for it."""
    places = {sys.prefix, sys.base_prefix, sys.exec_prefix}
    installed = {os.path.join(place, "lib") for place in places if place not in ("/", "/usr")}
    installed |= {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return [*sorted(installed), *_SYSTEM_FILES, *(_NETWORK_FILES if network else ())]


def _files_of(module: str) -> Sequence[str]:
    """Find a module without importing it: its file, or the folder of the package it is in."""
    top = importlib.machinery.PathFinder.find_spec(module.partition(".")[0])
    if top is None or (top.origin is None and not top.submodule_search_locations):
        raise LocalError(f"there is no module {module}", hint="start the node where it can be found, or set PYTHONPATH")
    own = Path(tool_child.__file__).parents[1]
    found = list(top.submodule_search_locations or ()) or [str(top.origin)]
    # the child's own code as well
    return [*found, str(own)]
