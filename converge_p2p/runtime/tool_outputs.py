"""Results of tools, attached to what an agent reports or says without the agent having to hold them.

Knows: the last results, by the name of their call. Must not know: who ran the tools.
Source: `docs/tools.md`.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import Any

from converge_p2p.core import limits
from converge_p2p.core.codec import encode_value
from converge_p2p.core.errors import LocalError, NotFound
from converge_p2p.core.model.decision import Decision, InvokeTool, ReportTask, SendMessage


class ToolOutputs:
    """What the tools of one agent gave last; the oldest of more than `limits.TOOL_RESULTS_KEPT_MAX` goes."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._values: OrderedDict[str, Any] = OrderedDict()

    def begin(self, call: InvokeTool) -> None:
        """A call is made: what an earlier one of its name gave counts no more, also if this one fails."""
        self._values.pop(_name(call), None)

    def note(self, call: InvokeTool, value: Any) -> None:
        """Keep what a call gave."""
        self._values[_name(call)] = value
        if len(self._values) > limits.TOOL_RESULTS_KEPT_MAX:
            self._values.popitem(last=False)

    def attach(self, decision: Decision) -> Decision:
        """Return a decision with the results that it names.

        Raises:
            NotFound: no such call gave a result.
            LocalError: the message is signed, or its payload no map.
            CodecError: a result that cannot be encoded.
        """
        if type(decision) is ReportTask and decision.result_of:
            return replace(decision, result=self._value(decision.result_of), result_of="")
        if type(decision) is SendMessage and decision.attach:
            message = decision.message
            if message.signed or message.sealed:
                raise LocalError("nothing can be attached to a message that is signed", hint="let the node sign it")
            payload = message.payload
            if not isinstance(payload, dict):
                raise LocalError("results are attached to a message whose payload is a map")
            payload |= {key: self._value(name) for key, name in decision.attach.items()}
            return SendMessage(replace(message, body=encode_value(payload)))
        return decision

    def _value(self, name: str) -> Any:
        if name not in self._values:
            raise NotFound(f"no tool call {name!r} gave a result", hint="name the call_id of an InvokeTool before this")
        return self._values[name]


def _name(call: InvokeTool) -> str:
    return call.call_id or call.tool_name
