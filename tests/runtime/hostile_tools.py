"""Tools that misbehave in every way we know, for `test_tool_process`. Each takes a map, as any tool does."""

from __future__ import annotations

import ctypes
import os
import resource
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any


def echo(params: dict[str, Any]) -> Any:
    return params


def loop_for_ever(params: dict[str, Any]) -> None:
    while True:
        pass


def sleep_for_ever(params: dict[str, Any]) -> None:
    time.sleep(100_000)


def allocate_without_end(params: dict[str, Any]) -> None:
    kept = []
    while True:
        kept.append(bytearray(1 << 20))


def start_threads_without_end(params: dict[str, Any]) -> None:
    while True:
        threading.Thread(target=time.sleep, args=(100_000,), daemon=True).start()


def fail(params: dict[str, Any]) -> None:
    raise ValueError("asked to fail")


def fork(params: dict[str, Any]) -> int:
    return os.fork()


def become_another_program(params: dict[str, Any]) -> None:
    os.execv(sys.executable, [sys.executable, "-c", "1"])


def print_without_end(params: dict[str, Any]) -> None:
    while True:
        sys.stdout.write("x" * 4096)


def return_too_much(params: dict[str, Any]) -> str:
    return "x" * (4 << 20)


def return_nonsense(params: dict[str, Any]) -> Any:
    return object()


def return_nothing_finite(params: dict[str, Any]) -> float:
    return float("nan")


def crash(params: dict[str, Any]) -> None:
    ctypes.string_at(0)


def leave(params: dict[str, Any]) -> None:
    os._exit(7)


def write_garbage_as_the_answer(params: dict[str, Any]) -> None:
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, b"\xc1" * 8)
        except OSError:
            pass
    os._exit(0)


def connect(params: dict[str, Any]) -> str:
    with socket.socket() as opened:
        opened.connect(("127.0.0.1", params["port"]))
    return "connected"


def send_datagrams(params: dict[str, Any]) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as opened:
        while True:
            opened.sendto(b"x", ("127.0.0.1", params["port"]))


def open_unix_socket(params: dict[str, Any]) -> None:
    socket.socket(socket.AF_UNIX).close()


def set_up_ring(params: dict[str, Any]) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(425, 1, ctypes.create_string_buffer(120)) < 0:
        raise OSError(ctypes.get_errno(), "io_uring_setup")
    return 1


def read(params: dict[str, Any]) -> str:
    return Path(params["path"]).read_text()


def write(params: dict[str, Any]) -> None:
    Path(params["path"]).write_text("planted")


def change_mode(params: dict[str, Any]) -> None:
    Path(params["path"]).chmod(0o777)


def kill(params: dict[str, Any]) -> None:
    os.kill(params["pid"], 9)


def outlive_the_node(params: dict[str, Any]) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(1, 0, 0, 0, 0):
        raise PermissionError("prctl")


def raise_own_limit(params: dict[str, Any]) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def environment(params: dict[str, Any]) -> dict[str, str]:
    return dict(os.environ)
