"""Makes docs/images/web.png: the web page over a mesh of three real nodes. `.venv/bin/python tests/node/web_picture.py`

Not a test. Needs chromium and chromium-driver; pngquant makes the file smaller where it is installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from browser_kit import open_browser

from converge_node.control.tokens import add_token
from converge_node.demo.mesh import DemoNode, Mesh, wait_for
from converge_p2p.client import agent_schema, schema
from converge_p2p.client.routes import Scope
from converge_p2p.core.errors import ConvergeError

ROOT = Path(__file__).parents[2]
TARGET = ROOT / "docs" / "images" / "web.png"
SIZE = (1440, 1400)
START_S = 40.0
WORK = """
import random, time

def translate(task, ctx):
    time.sleep(random.uniform(1.0, 3.0))
    return {"text": task.inputs["text"].upper()}

def render(task, ctx):
    if task.inputs["page"] % 7 == 3:
        raise ValueError("page %d is missing" % task.inputs["page"])
    time.sleep(random.uniform(0.5, 1.0))
    return {"pages": 1}

def train(task, ctx):
    for part in range(100):
        time.sleep(1.5)
        ctx.set_progress((part + 20 * task.inputs["fold"]) / 120, "epoch %d of 100" % part)
    return {}
"""


def mesh(folder: Path) -> tuple[Mesh, DemoNode, list[DemoNode]]:
    (folder / "picture_work.py").write_text(WORK, encoding="utf-8")
    found = Mesh(folder)
    office = found.add("office")
    office.home.mkdir(parents=True)
    (office.home / "config.toml").write_text('[api]\nlisten = ["127.0.0.1:0"]\n', encoding="utf-8")
    handlers = ["--handler", "translate=picture_work:translate@2", "--handler", "render=picture_work:render@2"]
    handlers += ["--handler", "train=picture_work:train@2", "--pool", "open"]
    workers = [found.add(name, *handlers) for name in ("worker-a", "worker-b")]
    return found, office, workers


def play(office: DemoNode, workers: list[DemoNode]) -> None:
    office.start()
    bootstrap = office.wait_up().addresses[0]
    for node in workers:
        node.start("--bootstrap", bootstrap)
    for node, name in zip([office, *workers], ("office", "berlin", "lisbon"), strict=True):
        node.wait_up()
        node.client.publish_agent(agent_schema.PublishAgent(name=name, capabilities=["translate"]))
    wait_for(lambda: office.peers() == len(workers), START_S, "the mesh")
    electors = [office.id, *(node.id for node in workers)]
    translate = found(office, "translations", "democratic", ["translate"], electors)
    render = found(office, "rendering", "dictatorial", ["render"], [office.id])
    train = found(office, "models", "democratic", ["train"], electors)
    for pool in (translate, render, train):
        wait_for(lambda pool=pool: office.pool(pool).members == 3, START_S, "the workers to join")
    for fold in range(4):
        submit(office, train, "train", {"fold": fold}, f"fold-{fold}")
    for page in range(12):
        submit(office, render, "render", {"page": page}, f"page-{page}")
    first = submit(office, translate, "translate", {"text": "guten morgen"}, "greeting")
    wait_for(lambda: office.task(translate, first).state == "completed", START_S, "a result")
    wait_for(lambda: office.pool(render).tasks.get("completed", 0) >= 9, START_S, "the pages")
    motions(office, workers, translate, first)
    for number in range(60):
        submit(office, translate, "translate", {"text": f"sentence {number}"}, f"sentence-{number}")


def motions(office: DemoNode, workers: list[DemoNode], pool: str, task: str) -> None:
    change = office.client.move(pool, schema.Move(claim_ttl_s=45, reason="results take longer since the new model"))
    for node in workers:
        wait_for(lambda node=node: say(node, pool, change.id, "yes"), START_S, "a vote")
    wait_for(lambda: office.pool(pool).epoch == 1, START_S, "the epoch")
    dispute = office.client.dispute(pool, task, schema.Dispute(reason="greetings must stay in lower case"))
    wait_for(lambda: say(workers[0], pool, dispute.id, "yes"), START_S, "a vote")
    wait_for(lambda: any(len(each.opinions) > 1 for each in office.client.motions(pool)), START_S, "it to be heard")


def say(node: DemoNode, pool: str, motion: str, choice: str) -> bool:
    try:
        node.client.say(pool, motion, schema.SayItem(choice=choice))
    except ConvergeError:
        return False
    return True


def found(office: DemoNode, name: str, governance: str, types: list[str], electors: list[str]) -> str:
    body = schema.CreatePool(
        name=name, governance=governance, task_types=types, electors=electors, claim_ttl_s=30, max_retries=0
    )
    return office.client.create_pool(body).id


def submit(office: DemoNode, pool: str, objective: str, inputs: dict[str, object], key: str) -> str:
    return office.client.submit(pool, schema.SubmitTask(objective=objective, inputs=inputs, key=key)).id


def take(office: DemoNode, target: Path, *, dark: bool) -> None:
    token = add_token(office.home / "api-tokens", f"picture-{int(dark)}", Scope.READ)
    (url,) = office.client.node().api_urls
    with open_browser() as browser:
        browser.size(*SIZE)
        browser.dress(dark=dark, calm=True)
        browser.go(f"{url}/#token={token}")
        browser.wait(
            "return document.querySelectorAll('.node').length + document.querySelectorAll('.pool').length === 6"
        )
        time.sleep(9)
        browser.size(
            SIZE[0], browser.run("return document.querySelector('main#page').getBoundingClientRect().bottom - 20 | 0")
        )
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(browser.picture())
        assert not browser.said()
    if shutil.which("pngquant"):
        subprocess.run(["pngquant", "--force", "--skip-if-larger", "--output", target, target], check=False)
    print(target, target.stat().st_size)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PYTHONPATH"] = os.pathsep.join([folder, *sys.path])
        all_nodes, office, workers = mesh(Path(folder))
        with all_nodes:
            play(office, workers)
            take(office, TARGET, dark=False)
            if "--dark" in sys.argv:
                take(office, TARGET.with_name("web-dark.png"), dark=True)


if __name__ == "__main__":
    main()
