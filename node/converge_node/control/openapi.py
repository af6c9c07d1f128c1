"""The document of the control interface, in OpenAPI 3.1, made from the routes and the schema.

Knows: the form of such a document. Must not know: how requests are served.
Source: OpenAPI Specification 3.1.0.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from converge_node.error_catalogue import http_statuses
from converge_p2p import __version__
from converge_p2p.client.api import all_routes
from converge_p2p.client.routes import Form, Route
from converge_p2p.client.schema import VERSION, ErrorItem, HealthItem

_REFERENCE: Final = "#/components/schemas/{name}"


class Failure(msgspec.Struct, frozen=True):
    """The envelope of an error."""

    v: int
    ok: bool
    error: ErrorItem


def openapi_document() -> dict[str, Any]:
    """Return the document."""
    routes = tuple(all_routes().values())
    kinds = [kind for route in routes for kind in (route.answer, route.body or ErrorItem, route.query or ErrorItem)]
    schemas, components = msgspec.json.schema_components([*kinds, Failure], ref_template=_REFERENCE)
    paths: dict[str, dict[str, Any]] = {}
    for index, route in enumerate(routes):
        answer, body, query = schemas[3 * index : 3 * index + 3]
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(
            route, answer, body if route.body else None, _resolved(query, components) if route.query else None
        )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "converge-node control interface",
            "version": __version__,
            "description": f"Version {VERSION} of the envelope. See docs/control.md.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": {name: components[name] for name in sorted(components)},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        # over TCP; whoever may open the Unix socket needs none
        "security": [{"token": []}, {}],
    }


def _operation(
    route: Route, answer: dict[str, Any], body: dict[str, Any] | None, query: dict[str, Any] | None
) -> dict[str, Any]:
    parameters = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in route.places]
    if query is not None:
        needed = query.get("required", [])
        parameters += [
            {"name": name, "in": "query", "required": name in needed, "schema": kind}
            for name, kind in query["properties"].items()
        ]
    envelope = {
        "type": "object",
        "required": ["v", "ok", "data"],
        "properties": {"v": {"const": VERSION}, "ok": {"const": True}, "data": answer},
    }
    content: dict[str, Any] = {"schema": {"type": "string"}}
    match route.form:
        case Form.ENVELOPE:
            content = {"schema": envelope}
        case Form.EVENTS:
            content = {"schema": {"type": "string", "description": "events whose data is"}, "x-event-data": envelope}
        case Form.BYTES:
            content = {"schema": {"type": "string", "format": "binary"}}
    done = {"description": "done", "content": {route.form.value: content}}
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "x-scope": route.scope.name.lower(),
        "parameters": parameters,
        "responses": {"200": done} | _failures(route, envelope),
    }
    if route.raw:
        binary = {Form.BYTES.value: {"schema": {"type": "string", "format": "binary"}}}
        operation["requestBody"] = {"required": True, "content": binary}
    if body is not None:
        needed_fields = bool(route.body) and any(
            field.required for field in msgspec.structs.fields(route.body or ErrorItem)
        )
        operation["requestBody"] = {"required": needed_fields, "content": {"application/json": {"schema": body}}}
    return operation


def _failures(route: Route, envelope: dict[str, Any]) -> dict[str, Any]:
    failure = {"application/json": {"schema": {"$ref": _REFERENCE.format(name=Failure.__name__)}}}
    found = {
        str(status): {"description": ", ".join(codes), "content": failure}
        for status, codes in sorted(http_statuses().items())
    }
    if route.answer is HealthItem:
        found["503"] = {"description": "not so", "content": {"application/json": {"schema": envelope}}}
    return found


def _resolved(schema: dict[str, Any], components: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = components[schema["$ref"].rpartition("/")[2]]
    return found
