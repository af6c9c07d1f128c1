"""The document of the control interface, the routes that are served, and the answers that come: all of one schema."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
import trio
from control_kit import KEY, Ground, asking, ground
from node_fakes import FakePeer
from peer_fakes import peer_of

from converge_node.cli.main import invoke
from converge_node.control.app import ENDPOINTS, ControlApi
from converge_node.control.openapi import openapi_document
from converge_p2p.client import schema
from converge_p2p.client.api import all_routes
from converge_p2p.client.routes import Form
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.pool import AdmissionKind
from converge_p2p.core.model.topic import Topic
from converge_p2p.core.oplog.succession import rotation

OTHER = Identity.from_seed(b"\1" * 32)
PEER = peer_of(OTHER)
DOCUMENT: dict[str, Any] = msgspec.to_builtins(openapi_document())


def checked(kind: dict[str, Any], value: Any) -> None:
    """Raise unless a value is of a schema of the document."""
    jsonschema.Draft202012Validator({**kind, "components": DOCUMENT["components"]}).validate(value)


def bodies(known: Ground) -> dict[str, Any]:
    """A request for each route that needs more than its name, which succeeds."""
    consent, word = rotation(known.pool.id, known.node.identity, OTHER)
    return {
        "rotate": {
            "pool": known.pool.id.hex(),
            "successor": OTHER.public_key.hex(),
            "signature": consent.signature.hex(),
            "authorisation": word.signature.hex(),
        },
        "set_log_level": {"level": "warning"},
        "join_topic": {"topic": "acme/new"},
        "leave_topic": {"topic": "acme/new"},
        "publish": {"topic": "acme/kept", "payload": {"n": 1}},
        "follow": None,
        "create_pool": {"name": "another", "governance": "democratic"},
        "vouch": {"agent": OTHER.id},
        "move": {"renew": True},
        "say": {"choice": "yes"},
        "submit": {"objective": "index", "inputs": {"n": 2}},
        "submit_home": {"objective": "index"},
        "judge": None,
        "let_pass": None,
        "dispute": {"reason": "wrong"},
        "add_peer": {"peer": f"/ip4/192.0.2.1/tcp/1/p2p/{PEER}"},
        "connect_peer": {"peer": PEER},
        "disconnect_peer": {"peer": PEER},
        "block_peer": {"peer": PEER, "seconds": 60},
        "unblock_peer": {"peer": PEER},
        "forget_peer": {"peer": PEER},
        "ping": {"peer": PEER},
        "cite": {"digest": KEY, "size": 3, "value": KEY},
    }


def test_the_document_and_the_application_have_the_same_routes() -> None:
    documented = {
        (path, verb.upper(), operation["operationId"])
        for path, operations in DOCUMENT["paths"].items()
        for verb, operation in operations.items()
    }
    declared = {(route.path, route.method, route.name) for route in all_routes().values()}
    app = ControlApi(None).app()  # type: ignore[arg-type]
    served = {(route.path, verb) for route in app.routes for verb in route.methods - {"HEAD"}}  # type: ignore[attr-defined]
    assert documented == declared
    assert served == {(path, verb) for path, verb, _ in declared} | {("/openapi.json", "GET")}
    assert set(ENDPOINTS) == set(all_routes())


def test_the_page_lists_every_route() -> None:
    page = (Path(__file__).parents[2] / "docs" / "control.md").read_text(encoding="utf-8")
    listed = set[str]()
    for line in page.splitlines():
        if found := re.findall(r"`([^`]+)`", line.split("|")[1] if line.startswith("| `") else ""):
            verb, _, parent = found[0].rpartition("/")[0].partition(" ")
            # a row may name several routes that differ in the last word
            listed |= {name if " " in name else f"{verb} {parent}/{name}" for name in found}
    assert {f"{route.method} {route.path}" for route in all_routes().values()} <= listed


def test_the_document_is_valid_and_every_reference_leads_somewhere() -> None:
    assert DOCUMENT["openapi"] == "3.1.0"
    text = json.dumps(DOCUMENT)
    for name in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert name in DOCUMENT["components"]["schemas"]
    for kind in DOCUMENT["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(kind)
    for path, operations in DOCUMENT["paths"].items():
        for operation in operations.values():
            places = {one["name"] for one in operation["parameters"] if one["in"] == "path"}
            assert places == {part[1:-1] for part in path.split("/") if part.startswith("{")}
            assert operation["x-scope"] in ("read", "write", "admin")
            assert operation["summary"].endswith(".")


async def test_every_route_answers_as_the_document_says() -> None:
    known = await ground()
    known.node.fake_peers = [FakePeer(OTHER)]
    known.node.announced.clear()
    known.node.discovery.know(known.node.identity, name="me")
    motion = ""
    await known.state.meshes.join(known.node, Topic("acme/kept"), None)
    known.node.joins.requests.hold(known.pool.id, known.node.public_key)
    tokened = await known.node.create_pool("tokened", admission=AdmissionKind.TOKEN)
    given = bodies(known)
    async with asking(known) as http:
        line = (await http.post("/v1/invitations", json={})).json()["data"]["text"]
        given["follow"] = {"text": line}
        for route in all_routes().values():
            if route.form is not Form.ENVELOPE or route.name in ("judge", "let_pass"):
                continue
            if route.name == "result":
                await known.pool.cancel(known.task)
            special = {"invite": tokened.id.hex(), "join_pool": "ab" * 32, "leave_pool": "ab" * 32}
            places = {
                "pool": special.get(route.name, known.pool.id.hex()),
                "task": known.task.hex(),
                "motion": motion,
                "peer": PEER,
                "agent": known.node.id,
                "name": "a",
            }
            path = route.path.format(**places)
            sent = {"json": given.get(route.name)} if route.body else {"content": b"whole"} if route.raw else {}
            if route.name == "topic_peers":
                sent = {"params": {"topic": "acme/kept"}}
            answer = await http.request(route.method, path, **sent)
            assert answer.status_code == 200, (route.name, answer.text)
            operation = DOCUMENT["paths"][route.path][route.method.lower()]
            checked(operation["responses"]["200"]["content"]["application/json"]["schema"], answer.json())
            msgspec.convert(answer.json()["data"], route.answer)
            if route.name == "put_blob":
                given["remove_blob"] = {"blob": answer.json()["data"]["id"]}
            if route.name == "move":
                motion = answer.json()["data"]["id"]
            if route.name == "put_blob":
                content = await http.get("/v1/blobs/content", params={"reference": answer.json()["data"]["reference"]})
                assert (content.content, content.headers["content-type"]) == (b"whole", "application/octet-stream")
        assert (await http.get("/metrics")).headers["content-type"].startswith("text/plain")
        assert (await http.get("/openapi.json")).json() == DOCUMENT
    assert len(known.stops) == 1


async def test_errors_are_as_the_document_says_and_nothing_is_ready_before_the_node_is() -> None:
    known = await ground()
    known.state.ready = False
    failure = DOCUMENT["components"]["schemas"]["Failure"]
    async with asking(known) as http:
        asked = {
            "/v1/status": 503, "/v1/pools/demo/tasks?limit=0": 400, "/v1/pools/demo/tasks?colour=red": 400,
            "/v1/topics/watch": 400, "/v1/pools/demo/watch?timeout_s=nan": 400, "/v1/none": 404, "/v1/shutdown": 400,
        }  # fmt: skip
        for path, status in asked.items():
            answer = await http.get(path)
            assert answer.status_code == status, path
            checked(failure, answer.json())
        ready = await http.get("/readyz")
        assert (ready.status_code, ready.json()["ok"], ready.json()["data"]["ready"]) == (503, True, False)
        known.state.ready = True
        assert (await http.get("/v1/pools/none")).status_code == 404
        assert (await http.post("/v1/pools/demo/tasks", content=b"{")).json()["error"]["code"] == "usage"


async def test_each_event_of_a_stream_is_as_the_document_says() -> None:
    known = await ground()
    event = DOCUMENT["paths"]["/v1/pools/{pool}/tasks/{task}/watch"]["get"]["responses"]["200"]["content"]
    await known.pool.cancel(known.task)
    async with asking(known) as http:
        with trio.fail_after(20):
            answer = await http.get(f"/v1/pools/demo/tasks/{known.task.hex()}/watch")
    (data,) = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    checked(event["text/event-stream"]["x-event-data"], json.loads(data))
    assert msgspec.convert(json.loads(data)["data"], schema.TaskDetail).state == "cancelled"
    assert known.state.streams == 0


def test_the_document_is_written_by_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["api", "openapi"]) == 0
    assert json.loads(capsys.readouterr().out) == DOCUMENT
