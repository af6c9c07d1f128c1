"""From the settings to what a node lets happen: values, and the user's own rules found by name.

Knows: the sections of the settings, imports, and the registers of the library. Must not know: a running node.
Source: docs/policy.md.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

from converge_node.config import Config
from converge_node.policy_sections import ANY
from converge_node.settings_check import parse_rule
from converge_p2p.core.errors import ConfigError, ConvergeError
from converge_p2p.core.governance.admission import register_admission
from converge_p2p.core.governance.custom import GovernanceModel
from converge_p2p.core.governance.evaluators import register_evaluator
from converge_p2p.core.governance.model_check import register_model
from converge_p2p.node.policy import NodePolicy, TrustPolicy
from converge_p2p.runtime.safety import ActionPolicy, ResourceLimits, SafetyPolicy


def node_policy(config: Config) -> NodePolicy:
    """Register the rules that the settings name, and return the policy they describe.

    Raises:
        ConfigError: a module that cannot be imported, a name it does not have, or what it names does not do.
    """
    _register("governance.models", config.governance.models, _register_model)
    _register("governance.evaluators", config.governance.evaluators, register_evaluator)
    _register("admission.rules", config.admission.rules, register_admission)
    opinion = find_object("governance.opinion", config.governance.opinion) if config.governance.opinion else None
    safety, trust = config.safety, config.trust
    return NodePolicy(
        safety=SafetyPolicy(
            resources=ResourceLimits(
                cpu=safety.cpu or None,
                memory_mb=safety.memory_mb or None,
                network_requests=None if safety.network_requests < 0 else safety.network_requests,
                network_period_s=safety.network_period_s,
            ),
            actions=ActionPolicy.named(None if ANY in safety.allow else safety.allow, denied=safety.deny),
        ),
        trust=TrustPolicy(
            default=trust.default,
            rate=trust.rate,
            half_life_s=trust.half_life_s or None,
            learn=trust.learn,
            discovery_threshold=trust.discovery_threshold,
            join_threshold=trust.join_threshold,
        ),
        opinion=opinion,
    )


def find_object(key: str, place: str) -> Any:
    """Import what `module:object` names. Modules are also looked for in the working folder, as in `python -m`.

    Raises:
        ConfigError: it is not there, or cannot be called.
    """
    module, _, path = place.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:
        raise ConfigError(
            f"{key}: cannot import {module}: {type(error).__name__}: {error}",
            hint="start the node where the module can be found, or set PYTHONPATH",
        ) from error
    for name in path.split("."):
        found = getattr(found, name, None)
    if found is None or not (callable(found) or isinstance(found, GovernanceModel)):
        raise ConfigError(f"{key}: {place} is not something that the module has and that can be called")
    return found


def _register(key: str, texts: Iterable[str], register: Callable[[str, Any], None]) -> None:
    for text in texts:
        name, place = parse_rule(text)
        try:
            register(name, find_object(key, place))
        except ConfigError:
            raise
        except ConvergeError as error:
            raise ConfigError(f"{key}: {text}: {error}", hint=error.hint) from error


def _register_model(name: str, model: Any) -> None:
    # a class of models without settings of its own stands for the one it makes
    made = model() if isinstance(model, type) and issubclass(model, GovernanceModel) else model
    if not isinstance(made, GovernanceModel):
        raise ConfigError(f"governance.models: {name} is no GovernanceModel")
    register_model(name, made)
