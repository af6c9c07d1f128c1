"""The agents of a user that a node hosts: found by name, and run for as long as the node runs.

Knows: imports and agents. Must not know: turns, claims or decisions (see `converge_p2p.runtime`).
Source: docs/operations.md, `--agent NAME=module:Class`.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable
from typing import Any

from converge_node.settings_check import parse_agent
from converge_p2p.core.errors import ConfigError
from converge_p2p.runtime.agent import Agent


def load_agents(texts: Iterable[str]) -> list[Agent]:
    """Import and make every agent that the settings name.

    Modules are also looked for in the working folder, as in `python -m`: a user starts the node where the work is.

    Raises:
        ConfigError: a module that cannot be imported, a class that it does not have or that cannot be made without
            arguments, or two agents of one name.
    """
    specs = [parse_agent(text) for text in texts]
    if specs and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    agents: dict[str, Agent] = {}
    for name, module, kind in specs:
        if name in agents:
            raise ConfigError(f"two agents are named {name!r}; expected one")
        agents[name] = make_agent(module, kind)
        agents[name].name = name
    return list(agents.values())


def make_agent(module: str, kind: str) -> Agent:
    """Import a class, and make an agent of it.

    Raises:
        ConfigError: it cannot be imported or made.
    """
    place = f"{module}:{kind}"
    try:
        found: Any = importlib.import_module(module)
        for part in kind.split("."):
            found = getattr(found, part)
        agent = found()
    except Exception as error:
        raise ConfigError(
            f"cannot make the agent {place}: {type(error).__name__}: {error}",
            hint="start the node where the module can be found; the class is made without arguments",
        ) from error
    if not isinstance(agent, Agent):
        raise ConfigError(f"{place} is no agent; expected a subclass of converge_p2p.Agent")
    return agent
