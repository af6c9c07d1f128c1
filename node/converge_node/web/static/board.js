// Tasks in the columns of their states. A task that changes its state moves over.

import { calm, el, keyed, replace, setText } from "./dom.js";
import { count, plural, short } from "./words.js";

const CARDS_MAX = 5;
const MOVE_MS = 520;
const COLUMNS = [
  { id: "pending", title: "Pending", empty: "nothing waits", states: ["pending"] },
  { id: "assigned", title: "Assigned", empty: "nobody works", states: ["assigned"] },
  { id: "completed", title: "Completed", empty: "nothing yet", states: ["completed"] },
  { id: "ended", title: "Failed or cancelled", empty: "none", states: ["failed", "cancelled"] },
];

export class Board {
  #columns = new Map();
  #cards = new Map(); // task id → element
  #seen = new Map(); // task id → state
  #onTask;

  constructor(parent, onTask) {
    this.#onTask = onTask;
    for (const column of COLUMNS) {
      const number = el("span.count");
      const cards = el("div.cards");
      const more = el("p.more.muted.small");
      const head = el("div.column-head", null, el("span.dot"), el("h3", null, column.title), number);
      parent.append(el("div.column", { "data-column": column.id }, head, cards, more));
      this.#columns.set(column.id, { number, cards, more });
    }
  }

  // Returns the tasks whose state is another than when they were last seen: [{task, before}].
  render(model, chosen) {
    const pools = model.pools.filter(({ item }) => !chosen || item.id === chosen);
    const before = new Map([...this.#cards].map(([id, card]) => [id, card.getBoundingClientRect()]));
    const kept = new Set();
    for (const { id, states, empty } of COLUMNS) {
      const { number, cards, more } = this.#columns.get(id);
      const total = pools.reduce((sum, { item }) => sum + states.reduce((part, state) => part + (item.tasks[state] ?? 0), 0), 0);
      const listed = pools.flatMap((pool) => pool.tasks.filter((task) => states.includes(task.state)).map((task) => ({ task, pool })));
      const shown = listed.slice(0, CARDS_MAX);
      keyed(cards, shown, ({ task }) => task.id, ({ task }) => this.#card(task.id), (card, item) => drawCard(card, item, model));
      for (const { task } of shown) kept.add(task.id);
      setText(number, count(total));
      const left = total - shown.length;
      setText(more, total ? (left > 0 ? `and ${plural(left, "other")}` : "") : empty);
    }
    for (const id of this.#cards.keys()) if (!kept.has(id)) this.#cards.delete(id);
    this.#move(before);
    return this.#changes(model);
  }

  #card(id) {
    let card = this.#cards.get(id);
    if (!card) {
      card = el("button.task", { type: "button", onclick: () => this.#onTask(card.dataset.pool, id) });
      this.#cards.set(id, card);
    }
    return card;
  }

  #move(before) {
    if (calm()) return;
    for (const [id, card] of this.#cards) {
      const from = before.get(id);
      if (!from) {
        card.animate([{ opacity: 0, transform: "translateY(-6px)" }, { opacity: 1, transform: "none" }], { duration: 260, easing: "ease-out" });
        continue;
      }
      const to = card.getBoundingClientRect();
      const [x, y] = [from.left - to.left, from.top - to.top];
      if (Math.abs(x) + Math.abs(y) < 2) continue;
      card.animate([{ transform: `translate(${x}px, ${y}px)` }, { transform: "none" }], { duration: MOVE_MS, easing: "cubic-bezier(.2,.8,.2,1)" });
    }
  }

  #changes(model) {
    const first = this.#seen.size === 0;
    const now = new Map();
    const changes = [];
    for (const { tasks } of model.pools) {
      for (const task of tasks) {
        now.set(task.id, task.state);
        const state = this.#seen.get(task.id);
        if (state !== task.state) changes.push({ task, before: state });
      }
    }
    this.#seen = now;
    return first ? [] : changes;
  }
}

function drawCard(card, { task, pool }, model) {
  card.dataset.pool = pool.item.id;
  card.dataset.state = task.state;
  card.className = `task hue-${pool.hue}`;
  const ended = task.state === "failed" || task.state === "cancelled";
  const worker = ended ? null : (task.settled_by ?? task.assigned_to);
  const tags = [
    task.awaits_veto && el("span.tag.question", null, "awaits vetoers"),
    task.awaits_verdict && el("span.tag.question", null, "awaits verdict"),
    task.state === "cancelled" && el("span.tag", null, "cancelled"),
    task.attempts > 1 && el("span.tag", null, `attempt ${task.attempts}`),
  ];
  replace(
    card,
    el("span.task-line", null, el("span.task-name", null, task.objective), task.certified ? el("span.sure", { title: "certified: a quorum of the electors signed for it", role: "img", "aria-label": "certified" }, "✓") : null, el("span.mono.muted.small", null, short(task.id))),
    el(
      "span.task-line.small.muted",
      null,
      el("span.pool-name", null, el("span.dot"), pool.item.name),
      worker ? el("span.worker", null, model.names.of(worker)) : null,
    ),
    tags.some(Boolean) && el("span.tags", null, tags),
    task.state === "assigned" && task.progress !== null && el("progress", { max: 1, value: task.progress, "aria-label": "done" }),
    task.state === "assigned" && task.note && el("span.small.muted.clip", null, task.note),
    task.state === "failed" && task.reason && el("span.small.bad.clip", null, task.reason),
  );
}
