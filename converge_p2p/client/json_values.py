"""Users' values in JSON, which has no byte strings and no references to blobs.

Knows: the three markers. Must not know: requests and answers.
Source: docs/control.md, envelope.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, Final

from converge_p2p.core import limits
from converge_p2p.core.errors import CodecError
from converge_p2p.core.model.blob_text import parse_reference, reference_text
from converge_p2p.core.types import BlobRef

_BYTES: Final = "$bytes"
_BLOB: Final = "$blob"
_ESCAPE: Final = "$escape"
_MARKERS: Final = (_BYTES, _BLOB, _ESCAPE)


def to_json_value(value: Any) -> Any:
    """Return a user's value in JSON's types: bytes become {"$bytes": "<base64>"}, and references to blobs
    {"$blob": "blob:…"}; nothing else changes.

    A map that could be taken for such a marker is wrapped in {"$escape": …}, so that `from_json_value` gives back
    exactly the value.
    """
    if isinstance(value, bytes):
        return {_BYTES: base64.b64encode(value).decode("ascii")}
    if isinstance(value, BlobRef):
        return {_BLOB: reference_text(value)}
    if isinstance(value, list | tuple):
        return [to_json_value(item) for item in value]
    if isinstance(value, dict):
        plain = {name: to_json_value(item) for name, item in value.items()}
        return {_ESCAPE: plain} if len(value) == 1 and next(iter(value)) in _MARKERS else plain
    return value


def from_json_value(value: Any, depth: int = 2 * limits.CBOR_DEPTH_MAX) -> Any:
    """Return the user's value that `to_json_value` wrote.

    Raises:
        CodecError: a byte string that is not base64, or nesting deeper than a task may hold.
        LocalError: a reference to a blob that is none.
    """
    if depth == 0:
        raise CodecError(f"nested deeper than {limits.CBOR_DEPTH_MAX} levels")
    if isinstance(value, list):
        return [from_json_value(item, depth - 1) for item in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {_BYTES}:
        try:
            return base64.b64decode(value[_BYTES], validate=True)
        except (binascii.Error, TypeError, ValueError) as error:
            raise CodecError(f'{{"{_BYTES}": …}} must hold base64 text') from error
    if set(value) == {_BLOB}:
        return parse_reference(value[_BLOB] if isinstance(value[_BLOB], str) else "")
    if set(value) == {_ESCAPE} and isinstance(value[_ESCAPE], dict):
        return {name: from_json_value(item, depth - 1) for name, item in value[_ESCAPE].items()}
    return {name: from_json_value(item, depth - 1) for name, item in value.items()}
