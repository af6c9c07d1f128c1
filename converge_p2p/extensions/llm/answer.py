"""From a model's text to decisions: what may be said, checked, and with whom and what it may deal.

Knows: the JSON that a model is asked for, and the short names of one turn. Must not know: providers, or how decisions
are carried out.
Source: `docs/llm.md`. A model names people, tasks and pools by short names it was shown, never by ids: what it was not
shown it cannot reach. Who sends is not a part of its answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from converge_p2p.core import limits
from converge_p2p.core.errors import ConvergeError, LocalError
from converge_p2p.core.model.decision import (
    ClaimTask,
    Decision,
    InvokeTool,
    ReleaseTask,
    ReportTask,
    SendMessage,
    SubmitTask,
)
from converge_p2p.core.model.message import Message
from converge_p2p.core.model.task import Task, TaskView
from converge_p2p.core.model.topic import Topic
from converge_p2p.core.types import AgentId, PoolId
from converge_p2p.runtime.tool_errors import BadArguments
from converge_p2p.runtime.tool_schema import Parameters

_TEXT = {"type": "string", "maxLength": limits.TEXT_BYTES_MAX}
_NAME = {"type": "string", "minLength": 1, "maxLength": limits.NAME_BYTES_MAX}
_MAP = {"type": "object"}

_TRUTH = {"type": "boolean"}

_FIELDS: dict[type[Decision], tuple[str, dict[str, Any], list[str]]] = {
    SendMessage: ("send_message", {"to": _NAME, "topic": _NAME, "payload": {}, "attach": _MAP}, ["payload"]),
    ClaimTask: ("claim_task", {"task": _NAME}, ["task"]),
    ReportTask: ("report_task", {"task": _NAME, "result": {}, "result_of": _NAME, "failed": _TRUTH}, ["task"]),
    ReleaseTask: ("release_task", {"task": _NAME, "failed": _TRUTH, "reason": _TEXT}, ["task"]),
    InvokeTool: ("invoke_tool", {"tool": _NAME, "params": _MAP, "call": _NAME, "task": _NAME}, ["tool", "params"]),
    SubmitTask: ("submit_task", {"pool": _NAME, "objective": _NAME, "inputs": _MAP}, ["pool", "objective", "inputs"]),
}

ACTIONS: frozenset[type[Decision]] = frozenset(_FIELDS)
"""Kinds of decisions that a model can be allowed to take."""


class BadAnswer(BadArguments):
    """The model's text is not what was asked for; the message is for the model."""

    code = "bad_answer"


@dataclass(slots=True)
class Names:
    """The short names of what a model was shown.

    Attributes:
        people, tasks, pools: by short name.
        topics: by the text it was shown.
    """

    people: dict[str, AgentId] = field(default_factory=dict)
    tasks: dict[str, TaskView] = field(default_factory=dict)
    pools: dict[str, PoolId] = field(default_factory=dict)
    topics: dict[str, Topic] = field(default_factory=dict)


class Grammar:
    """What a model may answer."""

    def __init__(self, allowed: Collection[type[Decision]]) -> None:
        """Write the schema of the answer.

        Args:
            allowed: kinds of decisions, of `ACTIONS`.

        Raises:
            LocalError: a kind that a model cannot be given.
        """
        for kind in allowed:
            if kind not in _FIELDS:
                names = ", ".join(sorted(each.__name__ for each in _FIELDS))
                raise LocalError(f"a model cannot be given {getattr(kind, '__name__', kind)}; it can be given {names}")
        self.actions = {_FIELDS[kind][0]: kind for kind in _FIELDS if kind in allowed}
        self._bodies = {
            name: Parameters(
                {
                    "type": "object",
                    "properties": {"action": {"const": name}, **_FIELDS[kind][1]},
                    "required": ["action", *_FIELDS[kind][2]],
                    "additionalProperties": False,
                }
            )
            for name, kind in self.actions.items()
        }

    def describe(self) -> str:
        """Say in words what the answer is, for the model."""
        lines = []
        for name, kind in self.actions.items():
            fields, required = _FIELDS[kind][1], _FIELDS[kind][2]
            shown = ", ".join(f'"{each}"' + ("" if each in required else "?") for each in fields)
            lines.append(f'- {{"action": "{name}", {shown}}}')
        return "\n".join(lines)

    def decisions(self, text: str, names: Names, me: AgentId) -> list[Decision]:
        """Read a model's answer.

        Args:
            text: what it said.
            names: what it was shown.
            me: whose messages it writes.

        Raises:
            BadAnswer: what is wrong with it, and what was expected.
        """
        answer = read_json(text)
        listed = answer.get("decisions")
        if not isinstance(listed, list):
            raise BadAnswer('expected {"decisions": [...]}, an empty list for nothing')
        if len(listed) > limits.LLM_DECISIONS_MAX:
            raise BadAnswer(f"expected at most {limits.LLM_DECISIONS_MAX} decisions, not {len(listed)}")
        return [self._decision(item, index, names, me) for index, item in enumerate(listed)]

    def _decision(self, item: Any, index: int, names: Names, me: AgentId) -> Decision:
        where = f"decisions[{index}]"
        action = item.get("action") if isinstance(item, dict) else None
        if not isinstance(action, str) or action not in self.actions:
            known = ", ".join(self.actions) or "none"
            raise BadAnswer(f"{where}: action is {str(action)[:60]!r}; expected one of {known}")
        try:
            self._bodies[action].check(item)
            return _MAKERS[self.actions[action]](item, names, me)
        except BadAnswer as error:
            raise BadAnswer(f"{where}: {error}") from error
        except ConvergeError as error:
            raise BadAnswer(f"{where}: {str(error)[:300]}") from error


def read_json(text: str) -> dict[str, Any]:
    """Find the JSON map in a model's text, which may stand in a fence or after words.

    Raises:
        BadAnswer: there is none.
    """
    start = text.find("{")
    if start < 0:
        raise BadAnswer('the answer holds no JSON; expected {"decisions": [...]} and nothing else')
    try:
        value, _ = json.JSONDecoder(parse_constant=_refuse_constant).raw_decode(text, start)
    except (ValueError, RecursionError) as error:
        raise BadAnswer(f"the answer is no JSON: {str(error)[:200]}") from error
    assert isinstance(value, dict), "it begins with a brace"
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _message(item: Mapping[str, Any], names: Names, me: AgentId) -> Decision:
    to, topic = item.get("to"), item.get("topic")
    if (to is None) == (topic is None):
        raise BadAnswer('a message goes "to" somebody, or to a "topic"; expected one of the two')
    recipient = None if to is None else _known(names.people, to, "somebody")
    topics = [] if topic is None else [_known(names.topics, topic, "topic")]
    attach = item.get("attach", {})
    if any(not isinstance(value, str) for value in attach.values()):
        raise BadAnswer('"attach" maps keys of the payload to names of calls')
    # the sender is the agent, whatever a model writes
    return SendMessage(Message.create(me, item["payload"], recipient=recipient, topics=topics), attach)


def _claim(item: Mapping[str, Any], names: Names, _me: AgentId) -> Decision:
    view = _known(names.tasks, item["task"], "task")
    return ClaimTask(view.pool_id, view.id)


def _report(item: Mapping[str, Any], names: Names, _me: AgentId) -> Decision:
    view = _known(names.tasks, item["task"], "task")
    result_of = item.get("result_of", "")
    if bool(result_of) == ("result" in item):
        raise BadAnswer('a report has a "result", or "result_of", the name of a call; expected one of the two')
    return ReportTask(view.pool_id, view.id, item.get("result"), item.get("failed", False), result_of)


def _release(item: Mapping[str, Any], names: Names, _me: AgentId) -> Decision:
    view = _known(names.tasks, item["task"], "task")
    return ReleaseTask(view.pool_id, view.id, item.get("failed", False), item.get("reason", ""))


def _invoke(item: Mapping[str, Any], names: Names, _me: AgentId) -> Decision:
    task = item.get("task")
    view = None if task is None else _known(names.tasks, task, "task")
    pool_id, task_id = (None, None) if view is None else (view.pool_id, view.id)
    return InvokeTool(item["tool"], item["params"], item.get("call", ""), pool_id, task_id)


def _submit(item: Mapping[str, Any], names: Names, _me: AgentId) -> Decision:
    return SubmitTask(_known(names.pools, item["pool"], "pool"), Task(item["objective"], item["inputs"]))


_MAKERS: dict[type[Decision], Callable[[Mapping[str, Any], Names, AgentId], Decision]] = {
    SendMessage: _message, ClaimTask: _claim, ReportTask: _report, ReleaseTask: _release, InvokeTool: _invoke,
    SubmitTask: _submit,
}  # fmt: skip


def _known(table: Mapping[str, Any], name: str, what: str) -> Any:
    if name not in table:
        raise BadAnswer(f"no {what} is named {name[:60]!r}; expected one of {_listed(list(table))}")
    return table[name]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) or "none"
