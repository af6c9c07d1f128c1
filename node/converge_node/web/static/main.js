// Puts the page together: token, model, and the parts that show it.

import { dropToken, keepToken, takeToken } from "./api.js";
import { Board } from "./board.js";
import { Detail } from "./detail.js";
import { el, keyed, replace, setText } from "./dom.js";
import { Mesh } from "./mesh.js";
import { Model } from "./model.js";
import { renderAgents, renderFeed, renderMotions, renderPools, renderTiles, renderTroubles } from "./panels.js";
import { duration, short } from "./words.js";

const THEME = "converge-theme";
const FILTER_MAX = 8;
const find = (id) => document.getElementById(id);

function theme() {
  const root = document.documentElement;
  const kept = sessionStorage.getItem(THEME);
  if (kept) root.dataset.theme = kept;
  find("theme").addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    sessionStorage.setItem(THEME, root.dataset.theme);
  });
}

function askForToken(why) {
  dropToken();
  find("page").hidden = true;
  find("gate").hidden = false;
  setText(find("gate-why"), why);
  link("bad", "no access");
}

function link(tone, text) {
  const pill = find("link");
  pill.dataset.tone = tone;
  setText(pill, text);
}

function show() {
  let chosen = null;
  const model = new Model({
    onChange: () => render(),
    onEvent: () => renderFeed(find("feed"), model),
    onLink: (tone, text, error) => {
      link(tone, text);
      find("page").classList.toggle("stale", tone !== "good");
      if (error) askForToken([error.message, error.hint].filter(Boolean).join("; "));
    },
  });
  const choose = (pool) => {
    chosen = pool === chosen ? null : pool;
    render();
  };
  const mesh = new Mesh(find("mesh"), choose);
  const detail = new Detail(model);
  const board = new Board(find("board"), (pool, task) => detail.open("task", pool, task));

  function render() {
    if (!model.status) return;
    find("page").hidden = false;
    if (chosen && !model.pool(chosen)) chosen = null;
    renderHead(model);
    renderTroubles(find("troubles"), model.health);
    renderTiles(find("tiles"), model);
    renderPools(find("pools"), find("pools-count"), model, chosen, choose);
    renderFilter(model, chosen, choose);
    mesh.render(model, chosen);
    for (const change of board.render(model, chosen)) pulse(mesh, change);
    renderMotions(find("motions"), find("motions-count"), model, (pool, motion) => detail.open("motion", pool, motion));
    renderFeed(find("feed"), model);
    renderAgents(find("agents-part"), find("agents"), model);
    detail.refresh();
  }

  model.run().catch((error) => {
    link("bad", "this page failed; load it again");
    throw error;
  });
}

// A submit runs to the pool, a claim from it to the worker, and a result back.
function pulse(mesh, { task }) {
  const tone = `tone-${task.state}`;
  if (task.state === "pending") mesh.pulse(task.submitter, task.pool, { inward: true, tone });
  else if (task.state === "assigned") mesh.pulse(task.assigned_to, task.pool, { inward: false, tone });
  else mesh.pulse(task.settled_by ?? task.submitter, task.pool, { inward: true, tone });
}

function renderHead(model) {
  const { node, uptime_s: uptime } = model.status;
  const name = model.names.known(node.id) ? `${model.names.of(node.id)} · ${short(node.id)}` : `node ${short(node.id)}`;
  setText(find("node-name"), name);
  find("node-name").title = `${node.id}, version ${node.version}`;
  const pill = find("health");
  pill.hidden = false;
  const good = model.health.healthy && model.health.ready;
  pill.dataset.tone = good ? "good" : model.health.healthy ? "wait" : "bad";
  setText(pill, `${good ? "healthy" : model.health.healthy ? model.health.stage : "unhealthy"} · up ${duration(uptime)}`);
  document.title = `${name} – converge`;
}

function renderFilter(model, chosen, choose) {
  const parent = find("filter");
  if (model.pools.length < 2) return replace(parent);
  const all = { id: "", name: "All pools" };
  const items = [all, ...model.pools.slice(0, FILTER_MAX).map(({ item, hue }) => ({ id: item.id, name: item.name, hue }))];
  keyed(parent, items, (item) => item.id, () => el("button.chip", { type: "button" }), (button, item) => {
    button.className = `chip ${item.hue === undefined ? "" : `hue-${item.hue}`}`;
    button.setAttribute("aria-pressed", String((chosen ?? "") === item.id));
    button.onclick = () => choose(item.id || chosen);
    replace(button, item.id ? el("span.dot") : null, item.name);
  });
}

theme();
find("gate-form").addEventListener("submit", (event) => {
  event.preventDefault();
  keepToken(find("gate-token").value.trim());
  location.reload();
});
if (takeToken()) show();
else askForToken("The address that was opened holds no token.");
