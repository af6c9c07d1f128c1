"""Arguments of tools, checked against a JSON schema before the tool sees them.

Knows: JSON schema (draft 2020-12), bounded. Must not know: tools, or who calls them.
Source: `docs/tools.md`; the `jsonschema` package, imported when the first schema is given. Nothing is fetched: a
reference leads to a place in the same schema, or is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from converge_p2p.core import limits
from converge_p2p.core.codec import encode_value
from converge_p2p.core.errors import CodecError, LimitExceeded, LocalError
from converge_p2p.runtime.tool_errors import BadArguments

_MESSAGE_CHARS_MAX = 300
_VALUES = frozenset({"const", "enum", "default", "examples"})


class Parameters:
    """The schema of one tool's arguments, or of a model's answer."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        """Check and compile a schema.

        Args:
            schema: a JSON schema, draft 2020-12. A `pattern` in it is run as it stands: write none that can take long.

        Raises:
            LocalError: no schema, one with references to elsewhere, or one that is too large.
        """
        from jsonschema import Draft202012Validator
        from jsonschema.exceptions import SchemaError

        try:
            text = json.dumps(schema, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise LocalError(f"the schema is not JSON: {error}") from error
        if len(text) > limits.TOOL_SCHEMA_BYTES_MAX:
            raise LocalError(f"the schema has {len(text)} bytes; expected at most {limits.TOOL_SCHEMA_BYTES_MAX}")
        self.schema: dict[str, Any] = json.loads(text)
        _check_references(self.schema)
        try:
            Draft202012Validator.check_schema(self.schema)
        except SchemaError as error:
            raise LocalError(f"not a JSON schema: {error.message} at {error.json_path}") from error
        self._validator = Draft202012Validator(self.schema)

    def check(self, value: Any) -> None:
        """Check a value.

        Raises:
            BadArguments: it does not fit; the message says where, and what was expected.
        """
        try:
            error = next(iter(self._validator.iter_errors(value)), None)
        except Exception as problem:
            # a reference that leads nowhere, a schema that refers to itself without end
            raise BadArguments(f"the schema cannot be applied: {type(problem).__name__}") from problem
        if error is not None:
            what = error.message
            if len(what) > _MESSAGE_CHARS_MAX:
                # it shows the whole value, and the rule last
                what = f"the value does not satisfy {error.validator} {_clip(str(error.validator_value))}"
            raise BadArguments(f"{what} (at {error.json_path})")


def checked_params(params: Mapping[str, Any], parameters: Parameters | None) -> dict[str, Any]:
    """Return arguments that are plain, bounded, and fit the schema if there is one.

    Raises:
        BadArguments: not a map of plain values, or they do not fit.
        LimitExceeded: more than `limits.TOOL_PARAMS_BYTES_MAX` bytes.
    """
    plain = dict(params) if isinstance(params, Mapping) else params
    try:
        if not isinstance(plain, dict):
            raise CodecError(f"{type(params).__name__} is no map")
        size = len(encode_value(plain))
    except CodecError as error:
        raise BadArguments(f"arguments are a map of text to plain values: {error}") from error
    if size > limits.TOOL_PARAMS_BYTES_MAX:
        raise LimitExceeded("TOOL_PARAMS_BYTES_MAX", f"arguments have at most {limits.TOOL_PARAMS_BYTES_MAX} bytes")
    if parameters is not None:
        parameters.check(plain)
    return plain


def without_patterns(schema: Any) -> Any:
    """Return a schema of a stranger without its regular expressions, which could be made to take for ever.

    What is no schema but a value of its author's (`const`, `enum`, `default`, `examples`) stays as it is.
    """
    if isinstance(schema, list):
        return [without_patterns(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    gone = {"pattern"} if isinstance(schema.get("pattern"), str) else set()
    if isinstance(schema.get("patternProperties"), Mapping):
        # what the expressions let in would be taken for superfluous
        gone |= {"patternProperties", "additionalProperties", "unevaluatedProperties"}
    return {
        key: value if key in _VALUES else without_patterns(value) for key, value in schema.items() if key not in gone
    }


def _check_references(schema: Any) -> None:
    if isinstance(schema, dict):
        for key, value in schema.items():
            if key in ("$ref", "$dynamicRef") and isinstance(value, str) and not value.startswith("#"):
                raise LocalError(f"the schema refers to {_clip(value)}; only references within it are followed")
            _check_references(value)
    elif isinstance(schema, list):
        for item in schema:
            _check_references(item)


def _clip(text: str) -> str:
    return text if len(text) <= _MESSAGE_CHARS_MAX else text[: _MESSAGE_CHARS_MAX - 1] + "…"
