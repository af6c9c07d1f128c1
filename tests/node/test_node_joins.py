"""Join requests and peers at the control interface and the command line: what is asked for, and what is refused."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from control_kit import asking, ground
from peer_fakes import peer_of

from converge_node.cli.main import invoke
from converge_node.config import load_settings
from converge_node.errors import ExitCode
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.pool import AdmissionKind

OTHER, THIRD = (Identity.from_seed(bytes([number]) * 32) for number in (1, 2))
PEER = peer_of(OTHER)


async def test_who_asks_is_listed_named_by_a_prefix_and_admitted_or_refused() -> None:
    known = await ground()
    for each in (OTHER, THIRD):
        known.node.joins.requests.hold(known.pool.id, each.public_key)
    async with asking(known) as http:

        async def post(path: str, body: Any = None) -> tuple[int, Any]:
            answer = await http.post(f"/v1/{path}", json=body or {})
            document = answer.json()
            return answer.status_code, document["data"] if document["ok"] else document["error"]["code"]

        status, item = await post(f"pools/demo/joins/{OTHER.id[:12]}/admit", {"vote": True, "reason": "fine"})
        assert (status, item["state"], item["motion"]) == (200, "pending", (b"m" * 32).hex())
        status, item = await post(f"pools/demo/joins/{OTHER.id[:12]}/admit")
        assert (status, item["state"], item["agent_id"]) == (200, "admitted", OTHER.id)
        status, item = await post(f"pools/demo/joins/{THIRD.id}/refuse", {"reason": "no room"})
        assert (status, item["state"], item["reason"]) == (200, "refused", "no room")
        for path, code in (
            ("pools/demo/joins/abc/refuse", (400, "invalid_request")),
            (f"pools/demo/joins/{OTHER.id[:11]}/admit", (400, "invalid_request")),
            (f"pools/demo/joins/{'0' * 64}/admit", (404, "not_found")),
            ("pools/none/joins/abcdef/refuse", (404, "not_found")),
            (f"pools/{'ab' * 32}/withdraw", (404, "not_found")),
        ):
            assert await post(path) == code, path
        assert (await post(f"pools/demo/joins/{THIRD.id}/refuse", {"reason": "x" * 300}))[1] == "usage"
        status, item = await post(f"pools/{'ab' * 32}/ask", {"note": "hello"})
        assert (status, item["own"], item["state"], item["note"]) == (200, True, "pending", "hello")
        everything = (await http.get("/v1/joins")).json()["data"]
        assert [item["own"] for item in everything] == [False, False, True]
        ours = (await http.get("/v1/joins", params={"pool": "demo"})).json()["data"]
        assert {item["pool"] for item in ours} == {known.pool.id.hex()}


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        ({"admit": [f"key:{OTHER.public_key.hex()}"]}, "set admission"),
        ({"admission": "vouched", "admission_need": 1}, "set admission to VOUCHED"),
        ({"admission": "whitelist", "admit": [f"key:{OTHER.public_key.hex()}"]}, f"admit {OTHER.id}"),
        ({"admission": "custom"}, "invalid_request"),
    ],
)
async def test_the_electors_can_be_asked_for_another_admission(body: dict[str, Any], outcome: str) -> None:
    known = await ground()
    async with asking(known) as http:
        answer = (await http.post("/v1/pools/demo/motions", json=body)).json()
    if not answer["ok"]:
        # by name nobody is admitted to an open pool, and an own rule is chosen at the founding
        assert answer["error"]["code"] == "invalid_request"
        assert "admission" not in body or outcome == "invalid_request"
        return
    assert any(asked.startswith(outcome) for asked in answer["data"]["asks"]), answer["data"]["asks"]


async def test_the_terms_in_force_are_shown() -> None:
    known = await ground()
    listed = await known.node.create_pool(
        "listed", admission=AdmissionKind.WHITELIST, whitelist=[f"key:{OTHER.public_key.hex()}"]
    )
    async with asking(known) as http:
        item = (await http.get(f"/v1/pools/{listed.id.hex()}/terms")).json()["data"]
    assert (item["admission"], item["whitelist"], item["policy"]["assignment"]) == ("whitelist", [OTHER.id], "first")
    assert item["policy"]["claim_ttl_ms"] == listed.spec.policy.claim_ttl_ms


async def test_a_peer_is_kept_out_for_a_time_or_for_ever_and_forgotten() -> None:
    known = await ground()
    async with asking(known) as http:
        for path, body, status, about in (
            ("peers/block", {"peer": PEER, "seconds": 60}, 200, {"blocked": True, "blocked_s": 60.0}),
            ("peers/block", {"peer": PEER}, 200, {"blocked": True, "blocked_s": None}),
            ("peers/unblock", {"peer": PEER}, 200, {"blocked": False}),
            ("peers/unblock", {"peer": PEER}, 404, {}),
            ("peers/add", {"peer": f"/ip4/192.0.2.1/tcp/1/p2p/{PEER}"}, 200, {"addresses": ["/ip4/192.0.2.1/tcp/1"]}),
            ("peers/add", {"peer": PEER}, 400, {}),
            ("peers/forget", {"peer": PEER}, 200, {"addresses": []}),
            ("peers/forget", {"peer": PEER}, 404, {}),
            ("peers/block", {"peer": "nobody"}, 400, {}),
            ("peers/connect", {"peer": "ab" * 32}, 404, {}),
            ("peers/block", {"peer": PEER, "seconds": 0}, 400, {}),
            ("peers/ping", {"peer": PEER, "count": 1000}, 400, {}),
        ):
            answer = await http.post(f"/v1/{path}", json=body)
            assert answer.status_code == status, (path, body, answer.text)
            if status == 200:
                assert about.items() <= answer.json()["data"].items(), path
        taken = (await http.post("/v1/peers/ping", json={"peer": PEER, "count": 3})).json()["data"]
        assert taken["milliseconds"] == [1.0, 1.0, 1.0]


def test_bootstrap_peers_are_kept_in_the_settings_each_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*words: str) -> int:
        capsys.readouterr()
        return invoke(["--home", str(tmp_path), "bootstrap", *words])

    first, second = (f"/ip4/192.0.2.{number}/tcp/1/p2p/{PEER}" for number in (1, 2))
    assert run("add", first) == run("add", second) == run("add", first) == 0
    assert "dialled at the next start" in capsys.readouterr().out
    assert load_settings(tmp_path / "config.toml", environment={}).config.network.bootstrap == (first, second)
    assert run("add", "/ip4/192.0.2.1/tcp/1") == ExitCode.BAD_CONFIGURATION
    assert run("rm", PEER.replace("12D3", "12D4")) == ExitCode.NOT_FOUND
    assert run("rm", first) == 0
    assert load_settings(tmp_path / "config.toml", environment={}).config.network.bootstrap == (second,)
    assert run("rm", PEER) == 0
    assert run("test") == 0
    with socket.create_server(("127.0.0.1", 0)) as there:
        address = f"/ip4/127.0.0.1/tcp/{there.getsockname()[1]}/p2p/{PEER}"
        assert run("test", address, "--json") == 0
        assert json.loads(capsys.readouterr().out)["data"] == [{"address": address, "trouble": ""}]
    assert run("test", f"/ip4/127.0.0.1/tcp/1/p2p/{PEER}") == ExitCode.NO_PEER


def test_a_rotated_network_key_is_a_new_file_that_the_settings_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "new.key"
    assert invoke(["--home", str(tmp_path / "n"), "mesh", "rotate", str(key), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)["data"]
    assert load_settings(tmp_path / "n" / "config.toml", environment={}).config.network.psk_file == str(key)
    assert (len(made["network"]), key.stat().st_mode & 0o777) == (16, 0o600)
    assert invoke(["--home", str(tmp_path / "n"), "mesh", "rotate", str(key)]) == ExitCode.CONFLICT


async def test_who_works_by_hand_claims_reports_and_gives_back() -> None:
    known = await ground()
    place = f"/v1/pools/demo/tasks/{known.task.hex()}"
    async with asking(known) as http:
        for path, body, status in (
            ("claim", {"bid": 3}, 200),
            ("claim", {"bid": -1}, 400),
            ("report", {"result": {"raw": {"$bytes": "AAE="}}}, 200),
            ("report", {"failed": "no such file"}, 200),
            ("report", {"result": {"$bytes": "?"}}, 400),
            ("release", {"failed": True}, 200),
        ):
            assert (await http.post(f"{place}/{path}", json=body)).status_code == status, (path, body)
    assert [(kind, what) for kind, _, what in known.pool.done] == [
        ("claim", 3), ("report", {"raw": b"\0\1"}), ("report", "no such file"), ("release", True),
    ]  # fmt: skip


@pytest.mark.parametrize("words", [[], ["--result", "1", "--failed", "x"], ["--result", "{"]])
def test_a_report_is_a_result_in_json_or_a_reason(tmp_path: Path, words: list[str]) -> None:
    assert invoke(["--home", str(tmp_path), "task", "report", "demo", "ab" * 32, *words]) == ExitCode.USAGE
