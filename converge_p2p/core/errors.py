"""The error tree. Every error the library raises on purpose is one of these.

Knows: whose fault an error is. A message says what was wrong, what was expected, and what to do.
Must not know: how an error is shown (the command line and the control API map `code` and `hint`).
Source: blame in the error type, after h11.
"""

from __future__ import annotations


class ConvergeError(Exception):
    """Base of all errors of this library.

    Attributes:
        code: stable machine-readable name, lower case with underscores.
        hint: what the reader can do about it; empty if nothing.
    """

    code = "error"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class LocalError(ConvergeError):
    """The caller asked for something that cannot be done. Nothing was changed."""

    code = "invalid_request"


class NotFound(LocalError):
    """The pool, task, agent or key that was named is not known here."""

    code = "not_found"


class Conflict(LocalError):
    """The request contradicts what is already settled or exists."""

    code = "conflict"


class NoContentKey(LocalError):
    """A private pool's content key is not here (yet), and without it nothing can be sealed."""

    code = "no_content_key"


class NotAuthorised(LocalError):
    """The local identity may not do this."""

    code = "not_authorised"


class Undecided(LocalError):
    """The electors of the pool have not agreed to it yet. It can be asked for again, and goes on then."""

    code = "undecided"


class OwnChainUnsure(LocalError):
    """The store may be an old copy, and others have not said yet how far the own operations go: nothing is signed."""

    code = "own_chain_unsure"


class StoreFull(LocalError):
    """The store holds as much as its operator allows, so this node begins nothing more of its own."""

    code = "store_full"


class ClaimLost(LocalError):
    """The claim is no longer held, so the result cannot be reported in its round."""

    code = "claim_lost"


class TaskFailed(ConvergeError):
    """The task was settled as failed; the reason is the message."""

    code = "task_failed"


class TaskCancelled(ConvergeError):
    """The task was settled as cancelled by its submitter."""

    code = "task_cancelled"


class LimitExceeded(ConvergeError):
    """A named bound of `limits` was reached."""

    code = "limit_exceeded"

    def __init__(self, limit: str, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.limit = limit


class CodecError(ConvergeError):
    """Bytes are not in the one accepted encoding."""

    code = "bad_encoding"


class SignatureError(ConvergeError):
    """A signature does not verify, or a key does not belong to the id it is used for."""

    code = "bad_signature"


class RemoteViolation(ConvergeError):
    """A peer broke the protocol. The peer is to blame, not the caller.

    Attributes:
        peer: who, if known.
        reason: short stable name, used as a metric label.
    """

    code = "remote_violation"

    def __init__(self, reason: str, message: str, *, peer: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.peer = peer


class StoreError(ConvergeError):
    """The store is damaged, locked, full, or of another schema version."""

    code = "store_error"


class ConfigError(ConvergeError):
    """A configuration key or value is wrong."""

    code = "bad_configuration"


class NetworkError(ConvergeError):
    """A peer cannot be reached, or an address cannot be listened on."""

    code = "network_error"
