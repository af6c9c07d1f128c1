"""Watching a node from the command line: metrics, health, events, logs, checkpoints, and the support bundle."""

from __future__ import annotations

import json
import logging
import stat
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from node_fakes import FakeTrouble
from prometheus_client.parser import text_string_to_metric_families
from test_node_control import bench_of as bench_of

from converge_node.config import LogSection
from converge_node.control.metrics_server import metrics_app, open_metrics_server
from converge_node.log_book import LogBook
from converge_node.log_fields import REMOVED
from converge_node.logs import configure_logs, log_level, set_log_level
from converge_p2p.core import limits
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.trace import TraceContext
from converge_p2p.node.observation import NodeEvent
from converge_p2p.runtime.checkpoints import Checkpoint
from converge_p2p.runtime.tracing import entered

BenchOf = Callable[[], Any]


async def until(condition: Callable[[], Any]) -> None:
    with trio.fail_after(15):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event here
            await trio.sleep(0.01)


@pytest.fixture
def book(tmp_path: Path) -> Iterator[LogBook]:
    """The log goes to a file, as in a node that runs."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield configure_logs(LogSection(format="json", file=str(tmp_path / "node.log")))
    for handler in root.handlers:
        if isinstance(handler, logging.StreamHandler) and handler not in handlers:
            handler.stream.close()
    root.handlers[:] = handlers
    set_log_level("info")
    root.setLevel(level)


async def test_metrics_are_printed_as_prometheus_reads_them(bench_of: BenchOf) -> None:
    async with bench_of() as bench:
        bench.state.refused = 4
        code, out, _ = await bench.run("metrics")
        values = {s.name: s.value for family in text_string_to_metric_families(out) for s in family.samples}
        assert code == 0
        assert values["converge_sent_total"] == 3
        assert (values["converge_ready"], values["converge_control_requests_refused_total"]) == (1, 4)
        bench.state.node = None
        code, _, err = await bench.run("metrics")
        assert code != 0
        assert "not ready" in err


async def test_health_says_what_is_wrong_and_ends_with_its_code(bench_of: BenchOf) -> None:
    async with bench_of() as bench:
        assert (await bench.run("health"))[0] == (await bench.run("health", "--ready"))[0] == 0
        bench.node.observation.wrong = [FakeTrouble("agents", "one fails", fatal=False)]
        code, out, _ = await bench.run("health", "--ready")
        assert code == 0
        assert "one fails" in out
        bench.node.observation.wrong.append(FakeTrouble())
        code, out, _ = await bench.run("health")
        assert code == 1
        assert "disk full -> make room" in out
        code, item = await bench.json("health", "--ready")
        assert code == 1
        assert (item["healthy"], item["ready"]) == (False, False)
        assert [reason["what"] for reason in item["reasons"]] == ["agents", "store"]
        bench.node.observation.wrong.clear()
        bench.state.ready, bench.state.stage = False, "closing the node"
        assert (await bench.run("health"))[0] == 0
        code, out, _ = await bench.run("health", "--ready")
        assert code == 1
        assert "closing the node" in out


async def test_events_are_printed_as_they_happen_and_of_one_kind_if_asked(bench_of: BenchOf) -> None:
    async with bench_of() as bench, trio.open_nursery() as nursery:
        found: list[str] = []

        async def watch(*words: str) -> None:
            code, out, _ = await bench.run("events", *words, "--timeout", "1.5")
            assert code == 0
            found.append(out)

        nursery.start_soon(watch, "--kind", "task")
        events = bench.node.observation.events
        await until(lambda: len(events))
        events.send(NodeEvent(1.0, "fork", {"author": "ab"}))
        events.send(NodeEvent(2.0, "task", {"task": "cd", "state": "completed\x1b[2J"}))
    (out,) = found
    assert "fork" not in out
    assert "task=cd state=completed\\x1b[2J" in out


async def test_the_log_is_read_followed_and_its_level_changed_while_the_node_runs(
    bench_of: BenchOf, book: LogBook, tmp_path: Path
) -> None:
    log = logging.getLogger("library")
    async with bench_of() as bench:
        bench.state.log_book = book
        log.debug("nobody sees this")
        log.warning("first", extra={"task": "ab", "pool": "cd"})
        code, out, _ = await bench.run("logs")
        assert code == 0
        assert "nobody" not in out
        assert "first" in out
        assert "task=ab" in out
        code, item = await bench.json("logs", "--level", "debug")
        assert (code, item["level"], log_level()) == (0, "debug", "debug")
        log.debug("now it is seen")
        assert "now it is seen" in (tmp_path / "node.log").read_text()
        assert (await bench.run("logs", "--level", "loud"))[0] == 2
        seen: list[str] = []
        async with trio.open_nursery() as nursery:

            async def follow() -> None:
                async for line in book.follow(1):
                    seen.append(json.loads(line)["event"])  # noqa: PERF401 - each is looked at as it comes

            nursery.start_soon(follow)
            await trio.testing.wait_all_tasks_blocked()
            # records come from threads, too
            await trio.to_thread.run_sync(log.info, "from a thread")
            await until(lambda: "from a thread" in seen)
            nursery.cancel_scope.cancel()
        assert seen[-1] == "from a thread"


async def test_a_slow_reader_of_the_log_is_told_what_it_missed(book: LogBook) -> None:
    log, seen = logging.getLogger("library"), list[str]()
    lines = book.follow(0)
    log.warning("before")
    async with trio.open_nursery() as nursery:

        async def read() -> None:
            async for line in lines:
                seen.append(json.loads(line)["event"])

        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        for number in range(limits.LOG_LINES_KEPT_MAX + 7):
            log.warning("line %d", number)
        await until(lambda: len(seen) > limits.LOG_LINES_KEPT_MAX)
        nursery.cancel_scope.cancel()
    assert seen[:2] == ["7 lines were missed", "line 7"]
    assert len(book.newest(limits.LOG_LINES_KEPT_MAX)) == limits.LOG_LINES_KEPT_MAX


async def test_checkpoints_of_agents_are_listed(bench_of: BenchOf) -> None:
    async with bench_of() as bench:
        assert "no checkpoint" in (await bench.run("agent", "checkpoints"))[1]
        bench.node.hosting.notes = [Checkpoint("counter", 7, 1, 1_700_000_000_000, {"cursor": b"\1"})]
        code, (item,) = await bench.json("agent", "checkpoints")
        assert code == 0
        assert (item["agent"], item["turns"], item["failures"], item["running"]) == ("counter", 7, 1, False)
        code, out, _ = await bench.run("agent", "checkpoints")
        assert "cursor" in out


# ---------------------------------------------------------------- secrets


def secrets_of(home: Path) -> dict[str, str]:
    """Secrets of every kind that a node has to do with, with the key files of a home."""
    identity = Identity.generate()
    (home / "node.key").write_bytes(identity.to_key_file())
    return {
        "seed": identity.seed.hex(),
        "invitation": f"converge1:{'A' * 40}:0badf00d",
        "swarm": "ab" * 32,
        "api": "sk-" + "c" * 30,
        "bearer": "d" * 30,
        "passphrase": "correct horse battery",
    }


def write_secrets(secrets: dict[str, str]) -> None:
    log = logging.getLogger("careless")
    log.warning("joined with %s", secrets["invitation"])
    log.warning("the key is /key/swarm/psk/1.0.0/\n/base16/\n%s", secrets["swarm"])
    log.warning("asked with Bearer %s and %s", secrets["bearer"], secrets["api"])
    log.warning("opened", extra={"passphrase": secrets["passphrase"], "deep": [{"seed": secrets["seed"]}]})
    log.warning("opened", extra={"network_key": bytes.fromhex(secrets["swarm"])})
    try:
        raise ValueError(f"cannot use {secrets['api']}")
    except ValueError:
        log.exception("failed")


@pytest.mark.parametrize("kind", ["json", "console"])
def test_no_secret_with_a_known_name_or_form_gets_into_the_log(kind: str, book: LogBook, tmp_path: Path) -> None:
    file = tmp_path / f"{kind}.log"
    before = logging.getLogger().handlers[0]
    assert isinstance(before, logging.StreamHandler)
    before.stream.close()
    lines = configure_logs(LogSection(format=kind, file=str(file)))  # type: ignore[arg-type]
    secrets = secrets_of(tmp_path)
    write_secrets(secrets)
    text = file.read_text() + "\n".join(lines.newest(100))
    assert REMOVED in text
    assert "careless" in text
    for name, secret in secrets.items():
        assert secret not in text, name


def test_records_carry_the_trace_they_were_written_in(book: LogBook) -> None:
    trace = TraceContext(b"t" * 16, b"s" * 8)
    with entered(trace):
        logging.getLogger("library").warning("inside")
    logging.getLogger("library").warning("outside")
    inside, outside = map(json.loads, book.newest(2))
    assert inside["trace"] == trace.trace_id.hex()
    assert "trace" not in outside


async def test_a_support_bundle_has_what_a_helper_needs_and_no_secret(
    bench_of: BenchOf, book: LogBook, tmp_path: Path
) -> None:
    async with bench_of() as bench:
        secrets = secrets_of(bench.home)
        (bench.home / "network.key").write_text(f"/key/swarm/psk/1.0.0/\n/base16/\n{secrets['swarm']}\n")
        (bench.home / "config.toml").write_text(
            '[identity]\npassphrase_file = "/etc/phrase"\n[log]\nlevel = "warning"\n'
        )
        write_secrets(secrets)
        bench.state.log_book = book
        file = tmp_path / "support.zip"
        await bench.run("doctor", "--bundle", str(file))
        assert (await bench.run("doctor", "--bundle", str(file)))[0] == 7, "nothing is overwritten"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name).decode() for name in archive.namelist()}
    assert {"doctor.json", "versions.json", "settings.json", "health.json", "status.json", "log.jsonl"} <= set(parts)
    assert "converge_sent_total" in parts["metrics.txt"]
    assert json.loads(parts["settings.json"])["log"]["level"] == "warning"
    assert json.loads(parts["settings.json"])["identity"]["passphrase_file"] == "/etc/phrase"
    for name, secret in secrets.items():
        assert secret not in "".join(parts.values()), name


async def test_a_bundle_without_a_node_says_what_is_missing(bench_of: BenchOf, tmp_path: Path) -> None:
    async with bench_of() as bench:
        pass
    file = tmp_path / "support.zip"
    await bench.run("doctor", "--bundle", str(file))
    with zipfile.ZipFile(file) as archive:
        assert {"doctor.json", "status.json.missing", "metrics.txt.missing"} <= set(archive.namelist())


# ---------------------------------------------------------------- the port for metrics


async def test_the_port_for_metrics_answers_what_it_is_for_and_nothing_else(bench_of: BenchOf) -> None:
    async with bench_of() as bench:
        app = metrics_app(bench.state)
        async with open_metrics_server(app, "127.0.0.1", 0) as port:

            async def ask(path: str, method: str = "GET") -> tuple[int, bytes]:
                stream = await trio.open_tcp_stream("127.0.0.1", port)
                async with stream:
                    await stream.send_all(f"{method} {path} HTTP/1.1\r\nhost: n\r\nconnection: close\r\n\r\n".encode())
                    answer = b"".join([part async for part in stream])
                return int(answer.split()[1]), answer

            assert b"converge_ready 1.0" in (await ask("/metrics"))[1]
            assert (await ask("/readyz"))[0] == 200
            bench.node.observation.wrong = [FakeTrouble()]
            assert (await ask("/readyz"))[0] == (await ask("/healthz"))[0] == 503
            for path, method in (("/v1/status", "GET"), ("/v1/shutdown", "POST"), ("/metrics", "POST")):
                assert (await ask(path, method))[0] in (404, 405)
            bench.state.node = object()  # type: ignore[assignment]
            status, answer = await ask("/metrics")
            assert (status, b"internal error: AttributeError" in answer) == (500, True)
            bench.state.node = None
            assert (await ask("/metrics"))[0] == 503
        assert not bench.stopped.is_set()
