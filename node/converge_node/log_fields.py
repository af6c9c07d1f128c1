"""What every log record is given, and what none may show.

Knows: the fields of records, and what secrets look like. Must not know: where a record goes.
Source: docs/observability.md, logs. Secrets are not logged in the first place; this is the net below that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping
from typing import Any, Final

from converge_p2p.runtime.tracing import current

REMOVED: Final = "[removed]"
_DEPTH_MAX: Final = 12

_NAMES: Final = re.compile(
    r"(?i)(^|_)(pass(phrase|word)?|secret|seed|psk|api_?key|auth(orization)?|bearer|credentials?|cookie|private_key|"
    r"network_key|topic_key|payload_key|invitation|ticket)$|^token$"
)
"""Names of fields whose text is not shown. What only says where a secret is, as `passphrase_file`, is."""

_FORMS: Final = re.compile(
    r"converge[0-9]{1,4}:[A-Za-z0-9_-]{8,}(:[0-9a-f]*)?"  # an invitation line
    r"|/key/swarm/psk/[^\s\"]*(\s+/base(16|64)/)?\s*[0-9A-Za-z+/=]*"  # a swarm.key
    r"|\bconverge-key[^\n\"]{0,80}\n[0-9a-f]{16,}"  # a key file
    r"|(?i:\bbearer\s+)[A-Za-z0-9._~+/-]{8,}=*"
    r"|\b(sk|pk|xox[abp]|gh[pousr]|hf)[-_][A-Za-z0-9_-]{12,}"
)
"""Secrets that can be told by their form, in any text."""


def add_trace(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Name the trace that the record was written in."""
    if (context := current()) is not None:
        event.setdefault("trace", context.trace_id.hex())
    return event


def remove_secrets(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Put a word in the place of every secret that can be told by its name or form."""
    for name, value in event.items():
        event[name] = _cleaned(name, value, 0)
    return event


def remove_from_text(_logger: Any, _method: str, text: Any) -> Any:
    """The same, in a line that is finished: tracebacks are in it as text."""
    return clean(text) if isinstance(text, str) else text


def clean(text: str) -> str:
    """Return text without secrets that can be told by their form."""
    return _FORMS.sub(REMOVED, text)


def clean_value(name: str, value: Any) -> Any:
    """Return a value of that name without secrets, at any depth."""
    return _cleaned(name, value, 0)


def _cleaned(name: str, value: Any, depth: int) -> Any:
    if isinstance(value, str):
        return REMOVED if value and _NAMES.search(name) else clean(value)
    if isinstance(value, bytes | bytearray):
        return REMOVED if value and _NAMES.search(name) else value
    if depth >= _DEPTH_MAX:
        return value
    if isinstance(value, Mapping):
        return {key: _cleaned(str(key), item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_cleaned(name, item, depth + 1) for item in value]
    return value
