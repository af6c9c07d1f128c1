"""How long it takes until the package, and the program's help, are there.

Knows: fresh processes and their wall-clock time. Must not know: what happens inside them.
Each figure is the median over runs in fresh processes, less that of an empty interpreter, after one run that warms the
caches of files.
"""

from __future__ import annotations

import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

RUNS = 15


def median_ms(command: list[str]) -> float:
    """Return the median wall-clock time of a command, in milliseconds."""
    times = []
    for run in range(RUNS + 1):
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        if run:
            times.append((time.perf_counter() - started) * 1000)
    return statistics.median(times)


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


if __name__ == "__main__":
    main()
