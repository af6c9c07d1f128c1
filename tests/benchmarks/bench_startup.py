"""How long it takes until the package, the program's help, a node, and the answers of its commands are there.

Knows: fresh processes and their wall-clock time. Must not know: what happens inside them.
Each figure is the median over runs in fresh processes, less that of an empty interpreter, after one run that warms the
caches of files.
"""

from __future__ import annotations

import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUNS = 15
NODE_RUNS = 5
COMMANDS = (("status",), ("id",), ("peers", "ls"), ("pool", "ls"), ("task", "ls", "one"))


def median_ms(command: list[str]) -> float:
    """Return the median wall-clock time of a command, in milliseconds."""
    times = []
    for run in range(RUNS + 1):
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        if run:
            times.append((time.perf_counter() - started) * 1000)
    return statistics.median(times)


def measure_node(program: str, folder: Path) -> tuple[float, float, dict[str, float]]:
    """Start and stop a node in a new home again and again, and ask it.

    Returns:
        Medians in milliseconds: until it says that it is ready, from SIGTERM to its end, and of each client command.
    """
    ready_ms, end_ms = [], []
    asked: dict[str, float] = {}
    for run in range(NODE_RUNS):
        home = str(folder / str(run))
        command = [program, "--home", home, "--json", "run", "--listen", "/ip4/127.0.0.1/tcp/0"]
        began = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as node:
            assert node.stdout is not None
            node.stdout.readline()
            ready_ms.append((time.perf_counter() - began) * 1000)
            try:
                if not run:
                    made = [program, "--home", home, "pool", "create", "one", "--governance", "dictatorial"]
                    subprocess.run(made, check=True, stdout=subprocess.DEVNULL)
                    asked = {" ".join(words): median_ms([program, "--home", home, *words]) for words in COMMANDS}
            finally:
                began = time.perf_counter()
                node.terminate()
                node.wait()
            end_ms.append((time.perf_counter() - began) * 1000)
    return statistics.median(ready_ms), statistics.median(end_ms), asked


def main() -> None:
    """Print one line for each figure."""
    empty = median_ms([sys.executable, "-c", "pass"])
    print(f"Python {platform.python_version()}, {RUNS} runs each; an empty interpreter takes {empty:.0f} ms")
    for name, code in (
        ("import converge_p2p", "import converge_p2p"),
        ("import converge_p2p.core.replica.machine", "import converge_p2p.core.replica.machine"),
        ("from converge_p2p import Node", "from converge_p2p import Node"),
    ):
        print(f"{name}: {median_ms([sys.executable, '-c', code]) - empty:.0f} ms more")
    program = Path(sys.executable).with_name("converge-node")
    print(f"converge-node --help: {median_ms([str(program), '--help']):.0f} ms in all")
    with tempfile.TemporaryDirectory() as text:
        ready, end, asked = measure_node(str(program), Path(text))
    print(f"a node in a new home: ready after {ready:.0f} ms, gone {end:.0f} ms after SIGTERM; {NODE_RUNS} runs")
    for name, took in asked.items():
        print(f"converge-node {name}: {took:.0f} ms in all")


if __name__ == "__main__":
    main()
