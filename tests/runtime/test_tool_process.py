"""An untrusted tool reaches nothing, is ended whatever it does, and the node goes on."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from converge_p2p.core.errors import LocalError
from converge_p2p.runtime import sandbox, tool_process
from converge_p2p.runtime.tool_process import ProcessTool
from converge_p2p.runtime.tools import ToolFailed, ToolIsolation, ToolRegistry, ToolTimeout


def hostile(function: str, **options: Any) -> ProcessTool:
    return ProcessTool(f"hostile_tools:{function}", **options)


async def call(function: str, params: dict[str, Any] | None = None, **options: Any) -> Any:
    with trio.fail_after(60):
        return await hostile(function, **options).run(params or {})


def children_of(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = entry.read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        if int(parent) == pid:
            found.append(int(entry.parent.name))
    return found


async def test_a_tool_in_a_process_takes_plain_values_and_gives_plain_values() -> None:
    params = {"n": 1, "x": 2.5, "text": "é", "bytes": b"\x00\xff", "list": [True, None], "map": {"a": []}}
    assert await call("echo", params) == params


async def until(condition: Callable[[], bool]) -> None:
    # of another process nothing else tells
    while not condition():  # noqa: ASYNC110
        await trio.sleep(0.01)


def state_of(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


@pytest.mark.parametrize(
    ("function", "what"),
    [
        ("fail", "raised ValueError: asked to fail"),
        ("allocate_without_end", "MemoryError"),
        ("start_threads_without_end", "start new thread"),
        ("fork", "PermissionError"),
        ("become_another_program", "PermissionError"),
        ("print_without_end", "printed more than"),
        ("return_too_much", "returned more than"),
        ("return_nonsense", "TypeError"),
        ("return_nothing_finite", "not finite"),
        ("crash", "ended by SIGSEGV"),
        ("leave", "ended with status 7"),
        ("write_garbage_as_the_answer", "no value that can be used"),
        ("open_unix_socket", "PermissionError"),
        ("set_up_ring", "io_uring_setup"),
        ("raise_own_limit", "ValueError"),
        ("outlive_the_node", "PermissionError"),
    ],
)
async def test_a_tool_that_misbehaves_is_ended_and_what_it_did_is_said(function: str, what: str) -> None:
    before = children_of(os.getpid())
    with pytest.raises(ToolFailed, match=what):
        await call(function, memory_mb=512)
    assert set(children_of(os.getpid())) <= set(before)


async def test_a_tool_that_computes_for_ever_is_ended_when_its_processor_time_is_used_up() -> None:
    with pytest.raises(ToolFailed, match="used up its processor time"):
        await call("loop_for_ever", cpu_s=1)


@pytest.mark.parametrize("function", ["loop_for_ever", "sleep_for_ever"])
async def test_when_its_time_is_up_the_process_is_gone_and_others_were_served_meanwhile(function: str) -> None:
    registry, before = ToolRegistry(), children_of(os.getpid())
    registry.register(hostile(function), timeout_s=3)
    registry.register(hostile("echo"))
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:

            async def run_out() -> None:
                with pytest.raises(ToolTimeout, match="within 3 s"):
                    await registry.call(function, {})
                nursery.cancel_scope.cancel()

            nursery.start_soon(run_out)
            assert await registry.call("echo", {"a": 1}) == {"a": 1}
            await trio.sleep_forever()
    assert set(children_of(os.getpid())) <= set(before)
    assert (registry.timeouts, registry.failures, registry.abandoned) == (1, 0, 0)


async def test_without_network_no_packet_leaves_and_with_it_only_the_internet_is_reached() -> None:
    listener = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener[0].socket.getsockname()[1]
    for function in ("connect", "send_datagrams"):
        with pytest.raises(ToolFailed, match="PermissionError"):
            await call(function, {"port": port})
    assert await call("connect", {"port": port}, network=True) == "connected"
    with pytest.raises(ToolFailed, match="PermissionError"):
        await call("open_unix_socket", network=True)
    await listener[0].aclose()


async def test_a_tool_that_floods_the_network_it_was_given_ends_with_its_processor_time() -> None:
    with pytest.raises(ToolFailed, match="used up its processor time"):
        await call("send_datagrams", {"port": 9}, network=True, cpu_s=1)


async def test_files_of_the_node_can_neither_be_read_nor_written_nor_opened_to_others(tmp_path: Path) -> None:
    key = tmp_path / "node.key"
    key.write_text("secret")
    key.chmod(0o600)
    for function in ("read", "write", "change_mode"):
        with pytest.raises(ToolFailed, match="PermissionError"):
            await call(function, {"path": str(key)})
    with pytest.raises(ToolFailed, match="PermissionError"):
        await call("write", {"path": "/dev/shm/planted"})
    with pytest.raises(ToolFailed, match="PermissionError"):
        await call("read", {"path": f"/proc/{os.getpid()}/environ"})
    assert (key.read_text(), key.stat().st_mode & 0o777) == ("secret", 0o600)
    assert await call("read", {"path": str(key)}, read=[tmp_path]) == "secret", "what was named may be read"


async def test_other_processes_cannot_be_signalled() -> None:
    with pytest.raises(ToolFailed, match="PermissionError"):
        await call("kill", {"pid": os.getpid()})


async def test_nothing_of_the_environment_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "secret")
    assert "SOME_API_KEY" not in await call("environment")


async def test_where_locks_are_missing_the_tool_is_refused_unless_that_was_allowed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # the child looks the architecture up: one that is not in the table cannot be filtered
    (tmp_path / "platform.py").write_text("def machine(): return 'abacus'\ndef system(): return 'Linux'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ToolIsolation, match="keep it from the network and processes") as refused:
        await call("echo")
    assert "weaker=True" in refused.value.hint
    assert await call("echo", {"a": 1}, weaker=True) == {"a": 1}


async def test_a_process_that_started_others_is_ended_with_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    child = tmp_path / "child.py"
    pid = tmp_path / "pid"
    pid.touch()
    child.write_text(
        f"import os, time\nif not os.fork(): open({str(pid)!r}, 'w').write(str(os.getpid()))\ntime.sleep(1000)\n"
    )
    tool = hostile("echo")
    monkeypatch.setattr(tool_process, "tool_child", SimpleNamespace(__file__=str(child)))
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tool.run, {})
            await until(lambda: pid.read_text() != "")
            nursery.cancel_scope.cancel()
        # init reaps it some time later
        await until(lambda: state_of(pid.read_text()) in ("", "Z"))


def test_a_tool_ends_with_a_node_that_was_killed(tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import sys, trio
        sys.path[:0] = {path!r}
        from converge_p2p.runtime.tool_process import ProcessTool
        print("up", flush=True)
        trio.run(ProcessTool("hostile_tools:sleep_for_ever").run, {{}})
    """).format(path=sys.path)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as node:
        assert node.stdout is not None
        assert node.stdout.readline() == "up\n"

        async def watch() -> None:
            with trio.fail_after(60):
                await until(lambda: len(children_of(node.pid)) == 1)
                pid = children_of(node.pid)[0]
                tool = os.pidfd_open(pid)
                await until(lambda: "Seccomp:\t2" in Path(f"/proc/{pid}/status").read_text())
                node.kill()
                await trio.lowlevel.wait_readable(tool)
                os.close(tool)

        trio.run(watch)


@pytest.mark.parametrize(
    ("function", "options", "what"),
    [
        ("hostile_tools", {}, "expected module:function"),
        ("hostile_tools:", {}, "expected module:function"),
        ("../x:y", {}, "expected module:function"),
        ("no_such_module_here:f", {}, "no module"),
        ("hostile_tools:echo", {"memory_mb": 1}, "memory_mb"),
        ("hostile_tools:echo", {"memory_mb": float("nan")}, "memory_mb"),
        ("hostile_tools:echo", {"cpu_s": float("nan")}, "cpu_s"),
        ("hostile_tools:echo", {"cpu_s": -1}, "cpu_s"),
        ("hostile_tools:echo", {"cpu_s": 1e9}, "cpu_s"),
    ],
)
def test_a_tool_that_cannot_be_is_refused_when_it_is_made(function: str, options: dict[str, Any], what: str) -> None:
    with pytest.raises(LocalError, match=what):
        ProcessTool(function, **options)


def test_a_module_is_not_imported_into_the_node() -> None:
    sys.modules.pop("hostile_tools", None)
    hostile("echo")
    assert "hostile_tools" not in sys.modules


def test_a_filter_never_jumps_past_its_end() -> None:
    for known in sandbox.ARCHITECTURES.values():
        for network in (False, True):
            program = sandbox._program(known, 4711, network=network)
            assert len(program) < 4096
            for index, (code, if_true, if_false, _) in enumerate(program):
                assert code != sandbox._RETURN or (if_true, if_false) == (0, 0)
                assert index + 1 + max(if_true, if_false) < len(program) or code == sandbox._RETURN
