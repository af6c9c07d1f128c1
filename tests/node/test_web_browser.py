"""The web page in a real headless Chromium, over a node in memory that the test changes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import trio
from browser_kit import HERE, Browser, open_browser
from control_kit import Ground, ground, served
from node_fakes import FakePeer

from converge_node.control.app import ControlApi
from converge_node.control.server import open_control_server, open_tcp_server
from converge_node.web.gateway import gateway_app
from converge_p2p.client.routes import Scope
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.task import Outcome, Task
from converge_p2p.node.observation import NodeEvent

pytestmark = [
    pytest.mark.network,
    pytest.mark.skipif(not HERE, reason="takes the Debian packages chromium and chromium-driver"),
]

HOSTILE = '<img src=x onerror="window.hurt=1">'
PEER = Identity.from_seed(b"\1" * 32)
IN_COLUMN = """
const card = document.querySelector(`.task[data-key="${arguments[0]}"]`);
return card?.closest(".column").dataset.column === arguments[1];
"""


async def in_browser(story: Callable[[Browser], None]) -> None:
    """Tell a story in a thread, while the node goes on in this one."""

    def tell() -> None:
        with open_browser() as browser:
            browser.size(1280, 1000)
            story(browser)

    with trio.fail_after(180):
        await trio.to_thread.run_sync(tell)


def in_node(act: Callable[..., Any], *arguments: Any) -> Any:
    """Do something where the node runs."""
    return trio.from_thread.run_sync(partial(act, *arguments))


async def furnish(known: Ground) -> str:
    """A peer, a motion, and a task and an agent with names that would like to run."""
    known.node.fake_peers.append(FakePeer(PEER))
    known.node.discovery.know(PEER, name=HOSTILE)
    await known.pool.council.move(expel=[PEER.public_key], reason=HOSTILE)
    hostile = (await known.pool.submit(Task(HOSTILE, {"text": HOSTILE}, key=HOSTILE))).id
    return hostile.hex()


def nothing_ran(browser: Browser) -> None:
    assert browser.run("return [window.hurt ?? null, document.querySelectorAll('main img').length]") == [None, 0]


async def test_the_page_shows_pools_and_tasks_and_moves_what_changes(tmp_path: Path) -> None:
    async with served(tmp_path) as (known, _, url, tokens):
        hostile = await furnish(known)

        def story(browser: Browser) -> None:
            browser.go(f"{url}/#token={tokens[Scope.READ]}")
            browser.wait(IN_COLUMN, known.task.hex(), "pending")
            # the token is out of the address, and of what a click on "back" shows
            assert browser.run("return location.href") == f"{url}/"
            assert browser.run("return document.querySelectorAll('.hub, .pool').length") == 2
            assert browser.run("return document.querySelectorAll('#mesh .node').length") == 2
            assert "demo" in browser.text("#pools")
            assert browser.text("#link") == "live"

            # an event makes the page look at once
            in_node(known.pool.settle, known.task, Outcome.COMPLETED, {"n": 1})
            event = NodeEvent(
                0.0, "task", {"pool": known.pool.id.hex(), "task": known.task.hex(), "state": "completed"}
            )
            in_node(known.node.observation.events.send, event)
            browser.wait(IN_COLUMN, known.task.hex(), "completed")
            assert "completed" in browser.text("#feed")

            # names are text, wherever they stand
            for where in ("#board", "#mesh", "#motions"):
                assert HOSTILE[:12] in browser.run("return document.querySelector(arguments[0]).textContent", where)
            browser.run("document.querySelector(`.task[data-key='${arguments[0]}']`).click()", hostile)
            browser.wait("return document.querySelector('#detail-body pre')")
            assert browser.text("#detail-title") == HOSTILE
            assert "onerror" in browser.text("#detail-body pre")
            # the record of what was signed comes a moment later
            browser.wait("return document.querySelector('#detail-body details')")
            browser.run("document.getElementById('detail-close').click(); document.querySelector('.motion').click()")
            browser.wait("return document.querySelector('#detail-body .certificate')")
            assert HOSTILE in browser.text("#detail-body")
            nothing_ran(browser)

            assert browser.said() == []
            assert {urlsplit(asked).netloc for asked in browser.requests()} == {urlsplit(url).netloc}

        await in_browser(story)


async def test_the_policy_holds_in_the_browser(tmp_path: Path) -> None:
    """A defect in a script would still neither run what it is told nor tell anybody."""
    async with served(tmp_path) as (known, _, url, tokens):

        def story(browser: Browser) -> None:
            browser.go(f"{url}/#token={tokens[Scope.READ]}")
            browser.wait(IN_COLUMN, known.task.hex(), "pending")
            for script, error in (
                ("document.body.innerHTML = '<img src=x onerror=alert(1)>'", "TypeError"),
                ("document.body.append(Object.assign(document.createElement('script'), { text: 'hurt = 1' }))", ""),
            ):
                got = browser.run(f"try {{ {script}; return '' }} catch (error) {{ return error.name }}")
                assert error in ("", got), script
            nothing_ran(browser)
            refused = "return await fetch('http://127.0.0.2:9/').then(() => 'sent', () => 'refused')"
            assert browser.run(refused) == "refused"
            nothing_ran(browser)

        await in_browser(story)


async def test_who_has_no_token_or_a_wrong_one_is_told(tmp_path: Path) -> None:
    async with served(tmp_path) as (known, _, url, tokens):

        def story(browser: Browser) -> None:
            browser.go(url)
            browser.wait("return !document.getElementById('gate').hidden")
            assert "holds no token" in browser.text("#gate-why")
            assert browser.said() == []

            browser.go(f"{url}/?#token=wrong")
            browser.wait("return document.getElementById('gate-why').innerText.includes('no known token was given')")
            assert not browser.text("#page")
            # the browser itself writes down that it was refused, and nothing else is written
            assert all("401" in line for line in browser.said())

            enter = """
            document.getElementById('gate-token').value = arguments[0];
            document.querySelector('#gate-form button').click();
            """
            browser.run(enter, tokens[Scope.READ])
            browser.wait(IN_COLUMN, known.task.hex(), "pending")

        await in_browser(story)


async def test_over_the_gateway_the_page_survives_a_restart_of_the_node(tmp_path: Path) -> None:
    known, path = await ground(), tmp_path / "control.sock"
    app = ControlApi(known.state).app()

    async with open_tcp_server(gateway_app(path, "t0ken"), ["127.0.0.1:0"]) as (url,):
        steps: list[trio.Event] = [trio.Event() for _ in range(3)]

        def story(browser: Browser) -> None:
            browser.go(f"{url}/#token=t0ken")
            browser.wait(IN_COLUMN, known.task.hex(), "pending")
            assert browser.said() == []
            in_node(steps[0].set)
            browser.wait("return document.getElementById('link').innerText.includes('no node answers')")
            in_node(known.pool.settle, known.task, Outcome.FAILED, {"error": "x"})
            in_node(steps[1].set)
            browser.wait(IN_COLUMN, known.task.hex(), "ended")
            assert browser.text("#link") == "live"
            in_node(steps[2].set)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_browser, story)
            async with open_control_server(app, path):
                await steps[0].wait()
            await steps[1].wait()
            async with open_control_server(app, path):
                await steps[2].wait()
