"""What an import may bring along: the promise that a light use of the library stays light.

Knows: which modules are heavy. Wall-clock times are measured in `docs/benchmarks.md`, never asserted here.
Each import runs in a fresh process, since this one has long imported everything.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = frozenset(
    {"trio", "libp2p", "multiaddr", "asyncio", "sqlite3", "msgspec", "click", "rich", "httpx", "starlette", "structlog"}
)

EXTRAS = frozenset(
    {
        "httpx",
        "httpx2",
        "openai",
        "anthropic",
        "mistralai",
        "mcp",
        "mcp_types",
        "pydantic",
        "jsonschema",
        "opentelemetry",
    }
)

_PRINT_MODULES = "import json, sys; print(json.dumps(sorted(sys.modules)))"

_IMPORT_WHOLE_CORE = """
import importlib, pkgutil
import converge_p2p.core
for found in pkgutil.walk_packages(converge_p2p.core.__path__, "converge_p2p.core."):
    importlib.import_module(found.name)
"""

_RUN_COMMAND = """
import sys
from converge_node.cli import main
sys.argv = ["converge-node", *{arguments!r}]
sys.stdout, kept = open({null!r}, "w"), sys.stdout
try:
    main()
except SystemExit as stopped:
    assert stopped.code in (0, None), stopped.code
sys.stdout = kept
"""


def modules_after(code: str) -> set[str]:
    """Return the names of all modules that a fresh interpreter holds after it ran `code`."""
    run = subprocess.run(
        [sys.executable, "-P", "-c", f"{code}\n{_PRINT_MODULES}"],
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        # this checkout, also if the environment has another one installed
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'node'}"},
    )
    assert run.returncode == 0, run.stderr
    return set(json.loads(run.stdout.splitlines()[-1]))


def top_level(modules: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules}


def test_importing_the_package_brings_nothing_from_outside_the_standard_library() -> None:
    brought = top_level(modules_after("import converge_p2p") - modules_after("pass"))
    assert "converge_p2p" in brought
    assert brought - {"converge_p2p"} <= set(sys.stdlib_module_names)
    assert not brought & HEAVY


def test_importing_the_package_imports_none_of_its_rooms() -> None:
    rooms = {name for name in modules_after("import converge_p2p") if name.startswith("converge_p2p.")}
    assert rooms == set()


def test_the_whole_core_runs_without_event_loop_network_and_database() -> None:
    modules = modules_after(_IMPORT_WHOLE_CORE)
    assert "converge_p2p.core.replica.events" in modules, "the walk did not reach the replica"
    assert not top_level(modules) & HEAVY


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["version"], ["status", "--help"], ["peers", "ls", "--help"], ["pool", "create", "--help"]],
    ids=" ".join,
)
def test_a_client_command_never_imports_the_network(arguments: list[str]) -> None:
    modules = modules_after(_RUN_COMMAND.format(arguments=arguments, null="/dev/null"))
    assert not top_level(modules) & {"libp2p", "multiaddr", "trio"}


def test_the_top_level_help_imports_no_server_client_or_terminal_library() -> None:
    modules = modules_after(_RUN_COMMAND.format(arguments=["--help"], null="/dev/null"))
    assert not top_level(modules) & {"starlette", "hypercorn", "httpx", "rich", "structlog"}


@pytest.mark.parametrize(
    "code",
    [
        "import converge_p2p",
        "import converge_p2p.extensions.llm as llm; llm.LLMAgent, llm.OpenAIChat, llm.OpenAICompatibleChat",
        "import converge_p2p.extensions.otel",
        "import converge_p2p.extensions.mcp as mcp; mcp.bridged_tools, mcp.McpServer",
        "import converge_p2p.runtime.tools, converge_p2p.runtime.tool_process",
        _RUN_COMMAND.format(arguments=["--help"], null="/dev/null"),
        _RUN_COMMAND.format(arguments=["mcp", "--help"], null="/dev/null"),
    ],
)
def test_what_an_extra_installs_is_imported_when_it_is_used_and_not_before(code: str) -> None:
    assert not top_level(modules_after(code)) & EXTRAS
