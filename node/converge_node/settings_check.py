"""The value checks of the settings that a type cannot express.

Knows: what an address, a pool and a handler look like as text. Must not know: libp2p, whose import costs seconds and
which client commands therefore never load; the network room has the last word on an address.
Source: multiaddr text form; `OBJECTIVE=module:function[@CONCURRENCY]` of `docs/operations.md`.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from converge_p2p.core import limits
from converge_p2p.core.errors import ConfigError, LimitExceeded, LocalError
from converge_p2p.core.model.topic import Topic

_ADDRESS: Final = re.compile(r"/(ip4|ip6|dns|dns4|dns6|dnsaddr)/[^/\s]+(/[^/\s]+)*")
_TCP: Final = re.compile(r"/tcp/(\d{1,5})(/|$)")
_PEER: Final = re.compile(r"/p2p/[1-9A-HJ-NP-Za-km-z]{20,}$")
_HOST_PORT: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):(?P<port>\d{1,5})")
_POOL_ID: Final = re.compile(r"[0-9a-f]{64}")
_AGENT = re.compile(r"(?P<name>[A-Za-z0-9_.-]{1,64})=(?P<module>[\w.]+):(?P<kind>[\w.]+)", re.ASCII)
_HANDLER: Final = re.compile(
    r"(?P<objective>[^=]+)=(?P<module>\w+(\.\w+)*):(?P<function>\w+(\.\w+)*)(@(?P<concurrency>\d{1,9}))?"
)
_PLACE: Final = re.compile(r"\w+(\.\w+)*:\w+(\.\w+)*")
_RULE: Final = re.compile(rf"(?P<name>[^=]+)=(?P<place>{_PLACE.pattern})")

OPEN_POOLS: Final = "open"
"""In place of a pool id: every announced open pool that has work for one of the handlers."""


@dataclass(frozen=True, slots=True)
class HandlerSpec:
    """Which function does tasks of an objective, and how many at a time (None: the default of the settings)."""

    objective: str
    module: str
    function: str
    concurrency: int | None = None


def check_address(text: str, *, peer: bool) -> None:
    """Check the form of a multiaddr.

    Args:
        peer: it must end with the id of the peer that is to be found there.

    Raises:
        ConfigError: not of that form.
    """
    if not _ADDRESS.fullmatch(text):
        raise ConfigError(f"{text!r} is not a multiaddr; expected for example /ip4/192.0.2.1/tcp/4001")
    if peer and not _PEER.search(text):
        raise ConfigError(
            f"{text!r} does not say which peer is there; expected an address that ends with /p2p/<peer id>",
            hint="the other node prints its full addresses when it starts, and with `converge-node id`",
        )
    port = _TCP.search(text)
    if not text.startswith("/dnsaddr/") and (port is None or int(port.group(1)) > 65535):
        raise ConfigError(f"{text!r} names no TCP port from 0 to 65535")


def check_host_port(text: str) -> tuple[str, int]:
    """Return host and port of `host:port` or `[IPv6 address]:port`. Raises `ConfigError` if it is of another form."""
    match = _HOST_PORT.fullmatch(text)
    if match is None or int(match["port"]) > 65535:
        raise ConfigError(f"{text!r} is not host:port; expected for example 127.0.0.1:4080 or [::1]:4080")
    return text.rpartition(":")[0].strip("[]"), int(match["port"])


def check_pool(text: str) -> None:
    """Check a pool to join at start: 64 lowercase hexadecimal digits, or `open`.

    Raises:
        ConfigError: anything else.
    """
    if text != OPEN_POOLS and not _POOL_ID.fullmatch(text):
        raise ConfigError(
            f"{text!r} is not a pool id; expected 64 lowercase hexadecimal digits, or {OPEN_POOLS!r}",
            hint="`converge-node pool ls` shows the ids of the pools that a running node knows",
        )


def parse_handler(text: str) -> HandlerSpec:
    """Read `OBJECTIVE=module:function[@CONCURRENCY]`.

    Raises:
        ConfigError: not of that form, or a concurrency out of bounds.
    """
    match = _HANDLER.fullmatch(text)
    if match is None:
        raise ConfigError(f"{text!r} is not a handler; expected OBJECTIVE=module:function or …@CONCURRENCY")
    count = match["concurrency"]
    if count is not None and not 1 <= int(count) <= limits.HANDLER_CONCURRENCY_MAX:
        raise ConfigError(f"{text!r}: the concurrency must be 1 to {limits.HANDLER_CONCURRENCY_MAX}")
    return HandlerSpec(match["objective"], match["module"], match["function"], None if count is None else int(count))


def parse_agent(text: str) -> tuple[str, str, str]:
    """Read `NAME=module:Class`, and return the three.

    Raises:
        ConfigError: not of that form.
    """
    match = _AGENT.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"{text!r} is not an agent; expected NAME=module:Class",
            hint="a name has letters, digits, dots, hyphens and underscores",
        )
    return match["name"], match["module"], match["kind"]


def parse_rule(text: str) -> tuple[str, str]:
    """Read `NAME=module:object`; return the name and the place.

    Raises:
        ConfigError: not of that form.
    """
    match = _RULE.fullmatch(text)
    if match is None:
        raise ConfigError(f"{text!r} is not a rule; expected NAME=module:function")
    return match["name"], match["place"]


def check_place(text: str) -> None:
    """Check `module:function`, or nothing. Raises `ConfigError` if it is not of that form."""
    if text and not _PLACE.fullmatch(text):
        raise ConfigError(f"{text!r} is not a function; expected module:function")


def check_kind(text: str, *, any_allowed: bool) -> None:
    """Check the name of a kind of decision.

    Raises:
        ConfigError: there is none of that name.
    """
    from converge_p2p.core.model import decision

    kind = getattr(decision, text, None)
    if any_allowed and text == "*":
        return
    if not isinstance(kind, type) or not issubclass(kind, decision.Decision) or kind is decision.Decision:
        known = sorted(each.__name__ for each in decision.Decision.__subclasses__())
        close = difflib.get_close_matches(text, known, n=1)
        meant = f"; did you mean {close[0]}?" if close else ""
        raise ConfigError(f"{text!r} is no kind of decision{meant}", hint=f"there are {', '.join(known)}")


def parse_topic(text: str) -> Topic:
    """Read `namespace` or `namespace@version`.

    Raises:
        ConfigError: not the name of a topic.
    """
    namespace, _, version = text.partition("@")
    try:
        return Topic(namespace, version=version or None)
    except (LocalError, LimitExceeded) as error:
        raise ConfigError(f"{text!r} is not a topic: {error}", hint="write for example acme/translate") from error


def topic_text(topic: Topic) -> str:
    """Write what `parse_topic` reads. Attributes, which only programs give to topics, are left out."""
    return topic.namespace if topic.version is None else f"{topic.namespace}@{topic.version}"


def parse_private_topic(text: str) -> tuple[Topic, Path]:
    """Read `TOPIC=path of its key file`.

    Raises:
        ConfigError: not of that form.
    """
    name, separator, path = text.partition("=")
    if not separator or not path:
        raise ConfigError(f"{text!r} is not a private topic; expected TOPIC=path of its key file")
    return parse_topic(name), Path(path).expanduser()
