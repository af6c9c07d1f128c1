"""A peer-to-peer network node for software agents: pools and tasks without a centre.

Knows: the public names and where each lives. Must not know: anything heavy. A name is imported when it is first
used, so that `import converge_p2p` costs next to nothing and needs neither libp2p nor trio.
Source: PEP 562 (module `__getattr__`).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from converge_p2p.core import governance as governance
    from converge_p2p.core.errors import (
        ClaimLost as ClaimLost,
        ConvergeError as ConvergeError,
        TaskCancelled as TaskCancelled,
        TaskFailed as TaskFailed,
    )
    from converge_p2p.core.governance.admission import register_admission as register_admission
    from converge_p2p.core.governance.evaluators import register_evaluator as register_evaluator
    from converge_p2p.core.governance.invitation_line import InvitationLine as InvitationLine
    from converge_p2p.core.governance.proofs import Invitation as Invitation, Vouch as Vouch
    from converge_p2p.core.identity import Identity as Identity
    from converge_p2p.core.model import decisions as decisions
    from converge_p2p.core.model.capability import Capability as Capability
    from converge_p2p.core.model.delivery import DeliveryReceipt as DeliveryReceipt
    from converge_p2p.core.model.descriptor import AgentDescriptor as AgentDescriptor
    from converge_p2p.core.model.message import Message as Message
    from converge_p2p.core.model.network_key import NetworkKey as NetworkKey
    from converge_p2p.core.model.pool import (
        AdmissionKind as AdmissionKind,
        AssignmentRule as AssignmentRule,
        PoolPolicy as PoolPolicy,
    )
    from converge_p2p.core.model.query import CapabilityNeed as CapabilityNeed, DiscoveryQuery as DiscoveryQuery
    from converge_p2p.core.model.registry import IdentityRegistry as IdentityRegistry
    from converge_p2p.core.model.task import Task as Task, TaskView as TaskView
    from converge_p2p.core.model.topic import Topic as Topic
    from converge_p2p.core.model.topic_key import TopicKey as TopicKey
    from converge_p2p.core.model.trace import TraceContext as TraceContext
    from converge_p2p.core.types import BlobForm as BlobForm, BlobRef as BlobRef
    from converge_p2p.core.view.receipt import Receipt as Receipt
    from converge_p2p.node import (
        DiscoveryService as DiscoveryService,
        Node as Node,
        NodeConfig as NodeConfig,
        PoolHandle as PoolHandle,
        Retention as Retention,
        TaskHandle as TaskHandle,
        TaskResult as TaskResult,
        TopicHandle as TopicHandle,
    )
    from converge_p2p.node.agent_parts import AgentParts as AgentParts
    from converge_p2p.node.policy import NodePolicy as NodePolicy, TrustPolicy as TrustPolicy
    from converge_p2p.runtime.agent import Agent as Agent
    from converge_p2p.runtime.attempt import PermanentFailure as PermanentFailure, WorkContext as WorkContext
    from converge_p2p.runtime.events import (
        CoordinationEvent as CoordinationEvent,
        DecisionOutcome as DecisionOutcome,
        OutcomeKind as OutcomeKind,
    )
    from converge_p2p.runtime.executor import StandardExecutor as StandardExecutor
    from converge_p2p.runtime.fencing import Fence as Fence
    from converge_p2p.runtime.hooks import Hooks as Hooks
    from converge_p2p.runtime.inbox import Inbox as Inbox, WhenFull as WhenFull
    from converge_p2p.runtime.loop import AgentRuntime as AgentRuntime
    from converge_p2p.runtime.metrics import MemoryMetrics as MemoryMetrics, Metrics as Metrics
    from converge_p2p.runtime.safety import (
        ActionPolicy as ActionPolicy,
        ResourceLimits as ResourceLimits,
        SafetyPolicy as SafetyPolicy,
    )
    from converge_p2p.runtime.scheduler import Scheduler as Scheduler
    from converge_p2p.runtime.settings import RuntimeConfig as RuntimeConfig
    from converge_p2p.runtime.tool_process import ProcessTool as ProcessTool
    from converge_p2p.runtime.tools import FunctionTool as FunctionTool, ToolRegistry as ToolRegistry
    from converge_p2p.runtime.tracing import (
        JsonLinesExporter as JsonLinesExporter,
        MemoryExporter as MemoryExporter,
        Span as Span,
        Tracer as Tracer,
    )
    from converge_p2p.runtime.trust import TrustModel as TrustModel

__version__ = "0.1.0"

_HOME = {
    "ActionPolicy": "converge_p2p.runtime.safety",
    "AdmissionKind": "converge_p2p.core.model.pool",
    "Agent": "converge_p2p.runtime.agent",
    "AgentDescriptor": "converge_p2p.core.model.descriptor",
    "AgentParts": "converge_p2p.node.agent_parts",
    "AgentRuntime": "converge_p2p.runtime.loop",
    "AssignmentRule": "converge_p2p.core.model.pool",
    "BlobForm": "converge_p2p.core.types",
    "BlobRef": "converge_p2p.core.types",
    "Capability": "converge_p2p.core.model.capability",
    "CapabilityNeed": "converge_p2p.core.model.query",
    "ClaimLost": "converge_p2p.core.errors",
    "ConvergeError": "converge_p2p.core.errors",
    "CoordinationEvent": "converge_p2p.runtime.events",
    "DecisionOutcome": "converge_p2p.runtime.events",
    "DeliveryReceipt": "converge_p2p.core.model.delivery",
    "DiscoveryQuery": "converge_p2p.core.model.query",
    "DiscoveryService": "converge_p2p.node",
    "Fence": "converge_p2p.runtime.fencing",
    "FunctionTool": "converge_p2p.runtime.tools",
    "Hooks": "converge_p2p.runtime.hooks",
    "Identity": "converge_p2p.core.identity",
    "IdentityRegistry": "converge_p2p.core.model.registry",
    "Inbox": "converge_p2p.runtime.inbox",
    "Invitation": "converge_p2p.core.governance.proofs",
    "InvitationLine": "converge_p2p.core.governance.invitation_line",
    "JsonLinesExporter": "converge_p2p.runtime.tracing",
    "MemoryExporter": "converge_p2p.runtime.tracing",
    "MemoryMetrics": "converge_p2p.runtime.metrics",
    "Message": "converge_p2p.core.model.message",
    "Metrics": "converge_p2p.runtime.metrics",
    "NetworkKey": "converge_p2p.core.model.network_key",
    "Node": "converge_p2p.node",
    "NodeConfig": "converge_p2p.node",
    "NodePolicy": "converge_p2p.node.policy",
    "OutcomeKind": "converge_p2p.runtime.events",
    "PermanentFailure": "converge_p2p.runtime.attempt",
    "PoolHandle": "converge_p2p.node",
    "PoolPolicy": "converge_p2p.core.model.pool",
    "ProcessTool": "converge_p2p.runtime.tool_process",
    "Receipt": "converge_p2p.core.view.receipt",
    "ResourceLimits": "converge_p2p.runtime.safety",
    "Retention": "converge_p2p.node",
    "RuntimeConfig": "converge_p2p.runtime.settings",
    "SafetyPolicy": "converge_p2p.runtime.safety",
    "Scheduler": "converge_p2p.runtime.scheduler",
    "Span": "converge_p2p.runtime.tracing",
    "StandardExecutor": "converge_p2p.runtime.executor",
    "Task": "converge_p2p.core.model.task",
    "TaskCancelled": "converge_p2p.core.errors",
    "TaskFailed": "converge_p2p.core.errors",
    "TaskHandle": "converge_p2p.node",
    "TaskResult": "converge_p2p.node",
    "TaskView": "converge_p2p.core.model.task",
    "ToolRegistry": "converge_p2p.runtime.tools",
    "Topic": "converge_p2p.core.model.topic",
    "TopicHandle": "converge_p2p.node",
    "TopicKey": "converge_p2p.core.model.topic_key",
    "TraceContext": "converge_p2p.core.model.trace",
    "Tracer": "converge_p2p.runtime.tracing",
    "TrustModel": "converge_p2p.runtime.trust",
    "TrustPolicy": "converge_p2p.node.policy",
    "Vouch": "converge_p2p.core.governance.proofs",
    "WhenFull": "converge_p2p.runtime.inbox",
    "WorkContext": "converge_p2p.runtime.attempt",
    "decisions": "converge_p2p.core.model.decisions",
    "governance": "converge_p2p.core.governance",
    "register_admission": "converge_p2p.core.governance.admission",
    "register_evaluator": "converge_p2p.core.governance.evaluators",
}

__all__ = ["__version__", *_HOME]  # noqa: PLE0604 - the table is the one list of names


def __getattr__(name: str) -> object:
    """Import a public name on its first use."""
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(home)
    # A name whose home ends with it is the module itself, as in `converge_p2p.governance`.
    value: object = module if home.rpartition(".")[2] == name else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
