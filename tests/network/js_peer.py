"""The other implementation: installs js-libp2p as its lock file says, and speaks with a process of it.

Knows: npm, processes, JSON lines. Must not know: what is tested with it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

FOLDER = Path(__file__).with_name("libp2p_js")


def install(folder: Path = FOLDER) -> str:
    """Install what a folder's lock file says, and return why that cannot be done, or nothing."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        return "node and npm are not installed"
    installed, wanted = folder / "node_modules" / ".package-lock.json", folder / "package-lock.json"
    if installed.exists() and installed.stat().st_mtime >= wanted.stat().st_mtime:
        return ""
    # no scripts: everything that has to be compiled comes compiled
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return f"npm ci failed: {done.stderr.strip()[-300:]}" if done.returncode else ""


class JsPeer:
    """A running peer.

    Attributes:
        address: where it listens, with its peer id.
        id: its peer id.
    """

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._said = b""
        self.address = ""
        self.id = ""

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncIterator[JsPeer]:
        """Run one until the block ends."""
        command = ["node", "peer.mjs"]
        process = await trio.lowlevel.open_process(
            command, cwd=FOLDER, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )  # fmt: skip
        peer = cls(process)
        try:
            first = await peer._hear()
            peer.address, peer.id = first["address"], first["id"]
            yield peer
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
                for pipe in (process.stdin, process.stdout):
                    assert pipe is not None
                    await pipe.aclose()

    async def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        while b"\n" not in self._said:
            more = await self._process.stdout.receive_some()
            if not more:
                raise RuntimeError("the process of js-libp2p ended")
            self._said += more
        line, _, self._said = self._said.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    async def do(self, what: str, **arguments: Any) -> dict[str, Any]:
        """Give an order and return the answer."""
        assert self._process.stdin is not None
        await self._process.stdin.send_all(json.dumps({"do": what, **arguments}).encode() + b"\n")
        return await self._hear()
