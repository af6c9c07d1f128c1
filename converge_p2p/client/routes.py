"""A route of the control interface, made from the signature of the method that asks it.

Knows: how a signature becomes path, query, body and answer. Must not know: which routes there are (see `api`), or HTTP
clients.
Source: docs/decisions/0025-control-schema.md. One declaration serves the server's routes, the document of the
interface, and both clients.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import IO, TYPE_CHECKING, Any, Concatenate, Final, Generic, ParamSpec, TypeVar, overload
from urllib.parse import quote, urlencode

import msgspec

from converge_p2p.core.errors import LocalError

if TYPE_CHECKING:
    from converge_p2p.client.aio import AsyncClient
    from converge_p2p.client.sync import Client

P = ParamSpec("P")
T = TypeVar("T")

_PLACE: Final = re.compile(r"\{(\w+)\}")


class Scope(IntEnum):
    """What somebody may do at the control interface; each includes those before it."""

    READ = 1
    WRITE = 2
    ADMIN = 3


class Form(Enum):
    """What an answer is sent as."""

    ENVELOPE = "application/json"
    EVENTS = "text/event-stream"
    TEXT = "text/plain"
    BYTES = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Route:
    """One route.

    Attributes:
        name: of the method of the clients; unique.
        method, path: with parameters of the path as `{name}`.
        scope: who may ask.
        answer: the type of the data, or of each event of a stream.
        body, query: their types, or None.
        form: of the answer; a failure has an envelope in any form.
        raw: a content is sent instead of a body in JSON.
        wait_s: how long the node may take beyond what an answer takes.
        summary: one sentence.
    """

    name: str
    method: str
    path: str
    scope: Scope
    answer: Any
    body: type[msgspec.Struct] | None
    query: type[msgspec.Struct] | None
    form: Form
    raw: bool
    wait_s: float
    summary: str

    @property
    def places(self) -> tuple[str, ...]:
        """The names of the parameters of the path."""
        return tuple(_PLACE.findall(self.path))


@dataclass(frozen=True, slots=True)
class Question:
    """A route with everything filled in.

    Attributes:
        target: path and query.
        body: JSON, or None.
        content: an open file that is sent instead, from its present place to its end.
        to: an open file that the answer is written to.
        wait_s: how long the node may take beyond what an answer takes.
    """

    route: Route
    target: str
    body: bytes | None
    content: IO[bytes] | None
    to: IO[bytes] | None
    wait_s: float


class Declared(Generic[P, T]):
    """A method of the interface, not yet bound to a client."""

    def __init__(
        self, verb: str, path: str, scope: Scope, function: Callable[..., T], *, form: Form, wait_s: float = 0.0
    ) -> None:
        self._verb, self._path, self._scope = verb, path, scope
        self._form, self._wait_s = form, wait_s
        self._function = function
        self._route: Route | None = None
        self.__doc__ = function.__doc__
        self.__name__ = function.__name__

    @property
    def route(self) -> Route:
        """The route. It is worked out when it is first used, so that an import costs nothing."""
        if self._route is None:
            kinds = typing.get_type_hints(self._function, include_extras=True)
            self._route = Route(
                name=self.__name__,
                method=self._verb,
                path=self._path,
                scope=self._scope,
                answer=kinds["return"],
                body=_struct(kinds.get("body")),
                query=_struct(kinds.get("query")),
                form=self._form,
                raw="content" in kinds,
                wait_s=self._wait_s,
                summary=(self.__doc__ or "").partition("\n")[0],
            )
        return self._route

    def question(self, *args: Any, **kwargs: Any) -> Question:
        """Fill in the route.

        Raises:
            LocalError: a name in the path is empty.
            TypeError: as a call of the method would.
        """
        bound = inspect.signature(self._function).bind(None, *args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        for place in self.route.places:
            if not str(given[place]):
                raise LocalError(f"no {place} is named", hint=f"what was given for the {place} is empty")
        path = _PLACE.sub(lambda place: quote(str(given[place[1]]), safe=""), self._path)
        query = msgspec.to_builtins(given.get("query")) or {}
        said = urlencode({name: _word(value) for name, value in query.items() if value is not None})
        body, content = given.get("body"), given.get("content")
        data = None
        if self._verb != "GET" and content is None:
            data = b"{}" if body is None else msgspec.json.encode(body)
        wait_s = self._wait_s + 2 * getattr(body, "timeout_s", 0.0)
        return Question(self.route, f"{path}?{said}" if said else path, data, content, given.get("to"), wait_s)


class Method(Declared[P, T]):
    """A method with one answer."""

    @overload
    def __get__(self, client: None, owner: Any) -> Method[P, T]: ...
    @overload
    def __get__(self, client: Client, owner: Any) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: AsyncClient, owner: Any) -> Callable[P, Awaitable[T]]: ...
    def __get__(self, client: Any, owner: Any) -> Any:
        """Return the method of a client."""
        if client is None:
            return self
        return _bound(self, lambda *args, **kwargs: client.ask(self.question(*args, **kwargs)))


class Stream(Declared[P, T]):
    """A method whose answer goes on."""

    @overload
    def __get__(self, client: None, owner: Any) -> Stream[P, T]: ...
    @overload
    def __get__(self, client: Client, owner: Any) -> Callable[P, Iterator[T]]: ...
    @overload
    def __get__(
        self, client: AsyncClient, owner: Any
    ) -> Callable[P, AbstractAsyncContextManager[AsyncIterator[T]]]: ...
    def __get__(self, client: Any, owner: Any) -> Any:
        """Return the method of a client."""
        if client is None:
            return self
        return _bound(self, lambda *args, **kwargs: client.listen(self.question(*args, **kwargs)))


def _word(value: Any) -> Any:
    """Return a value of a query as JSON writes it."""
    return str(value).lower() if isinstance(value, bool) else value


def _struct(kind: Any) -> Any:
    """Return the type of an argument that may be left out."""
    return next((each for each in typing.get_args(kind) if each is not type(None)), kind)


def _bound(declared: Declared[Any, Any], call: Callable[..., Any]) -> Callable[..., Any]:
    call.__name__, call.__doc__ = declared.__name__, declared.__doc__
    return call


def ask(
    route: str, scope: Scope = Scope.READ, *, form: Form = Form.ENVELOPE, wait_s: float = 0.0
) -> Callable[[Callable[Concatenate[Any, P], T]], Method[P, T]]:
    """Declare a method: the parameters named in the path, `query` and `body` are sent; its own body is never run.

    `content` is an open file that is sent instead of a body, and `to` one that the answer is written to.

    Args:
        route: "GET /path/{parameter}".
        form: of the answer; EVENTS is for `listen`.
        wait_s: how long the node may take beyond what an answer takes.
    """
    verb, _, path = route.partition(" ")
    return lambda function: Method(verb, path, scope, function, form=form, wait_s=wait_s)


def listen(path: str) -> Callable[[Callable[Concatenate[Any, P], T]], Stream[P, T]]:
    """Declare a stream, as `ask` declares a method; what it returns is one event."""
    return lambda function: Stream("GET", path, Scope.READ, function, form=Form.EVENTS)
