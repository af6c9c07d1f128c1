// What the node is like now. It is asked for everything every few seconds, and at once for what an event is about.

import * as api from "./api.js";
import { Names } from "./words.js";

export const STATES = ["pending", "assigned", "completed", "failed", "cancelled"];
const OPEN_STATES = new Set(["pending", "assigned"]);

const LOOK_MS = 2000;
const SOON_MS = 250;
const DETAIL_MS = 10_000;
const RETRY_MS = [1000, 2000, 4000, 8000];
const POOLS_MAX = 12;
const TASKS_OF_STATE_MAX = 24;
const EVENTS_MAX = 60;
const SAMPLES_MAX = 90;
const HUES = 8;
const GAUGE = /^converge_pool_(operations_behind|oldest_task_seconds)\{pool="([0-9a-f]+)"\} (\S+)$/gm;

const wait = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

export class Model {
  status = null;
  health = null;
  peers = [];
  pools = []; // {item, detail, motions, tasks, lag, hue}
  hosted = [];
  events = [];
  samples = []; // {at, settled}
  names = new Names();
  #known = new Map(); // pool id → what was asked for it
  #hues = new Map();
  #poke = () => {};
  #onChange;
  #onEvent;
  #onLink;

  // onLink(tone, text, error): "good" while answers come, "wait" while the node is gone, "bad" if it refuses.
  constructor({ onChange, onEvent, onLink }) {
    this.#onChange = onChange;
    this.#onEvent = onEvent;
    this.#onLink = onLink;
  }

  async run() {
    this.#listen();
    for (let failures = 0; ; ) {
      const poked = new Promise((resolve) => (this.#poke = resolve));
      try {
        await this.#look();
        failures = 0;
        this.#onLink("good", "live");
        this.#onChange();
      } catch (error) {
        if (error instanceof api.Refused && !["not_ready", "busy", "timeout", "not_found"].includes(error.code)) {
          this.#onLink("bad", "refused", error);
          return;
        }
        if (!(error instanceof api.Refused || error instanceof api.Unreachable)) throw error;
        const words = error instanceof api.Refused ? "node is not ready" : "no node answers";
        this.#onLink("wait", `${words}, asking again`);
        await wait(RETRY_MS[Math.min(failures++, RETRY_MS.length - 1)]);
        continue;
      }
      await Promise.race([wait(LOOK_MS), poked.then(() => wait(SOON_MS))]);
      while (document.hidden) await new Promise((seen) => document.addEventListener("visibilitychange", seen, { once: true }));
    }
  }

  pool(id) {
    return this.pools.find((pool) => pool.item.id === id);
  }

  counts() {
    const counts = Object.fromEntries(STATES.map((state) => [state, 0]));
    for (const { item } of this.pools) for (const state of STATES) counts[state] += item.tasks[state] ?? 0;
    return counts;
  }

  async #look() {
    const [status, health, peers, hosted, metrics] = await Promise.all([
      api.get("/v1/status"),
      api.get("/healthz"),
      api.get("/v1/peers"),
      api.get("/v1/hosted"),
      api.getText("/metrics"),
    ]);
    const lags = lagsOf(metrics);
    for (const { id } of status.pools) this.#hue(id);
    const pools = await Promise.all(
      status.pools.map((item, index) => this.#pool(item, lags.get(item.id.slice(0, 16)), index < POOLS_MAX)),
    );
    if (Date.now() - (this.agentsAt ?? 0) > DETAIL_MS) {
      this.agentsAt = Date.now();
      this.names.learn(await api.get("/v1/agents?limit=100").catch(() => []));
    }
    Object.assign(this, { status, health, peers, hosted, pools });
    for (const id of this.#known.keys()) if (!pools.some(({ item }) => item.id === id)) this.#known.delete(id);
    const { completed, failed, cancelled } = this.counts();
    this.samples.push({ at: performance.now(), settled: completed + failed + cancelled });
    if (this.samples.length > SAMPLES_MAX) this.samples.shift();
  }

  async #pool(item, lag, detailed) {
    const known = this.#known.get(item.id) ?? { at: 0, dirty: true, counts: "", tasks: [], motions: [], detail: null };
    this.#known.set(item.id, known);
    const now = Date.now();
    const counts = JSON.stringify(item.tasks);
    const dirty = known.dirty;
    known.dirty = false;
    if (detailed) {
      try {
        // progress is told by no event
        if (dirty || counts !== known.counts || item.tasks.assigned) known.tasks = await tasksOf(item);
        if (dirty || now - known.at > DETAIL_MS) {
          [known.detail, known.motions] = await Promise.all([
            api.get(api.poolPath(item.id)),
            api.get(`${api.poolPath(item.id)}/motions`),
          ]);
          known.at = now;
        }
        known.counts = counts;
      } catch (error) {
        known.dirty = true;
        // a pool that was left a moment ago
        if (!(error instanceof api.Refused && error.code === "not_found")) throw error;
      }
    }
    return {
      item,
      detail: known.detail,
      motions: known.motions,
      tasks: known.tasks,
      lag: lag ?? { operations_behind: 0, oldest_task_seconds: 0 },
      hue: this.#hue(item.id),
    };
  }

  #hue(id) {
    if (!this.#hues.has(id)) this.#hues.set(id, this.#hues.size % HUES);
    return this.#hues.get(id);
  }

  async #listen() {
    for (let failures = 0; ; failures++) {
      try {
        await api.listen("/v1/events", (event) => this.#happened(event), () => (failures = 0));
      } catch (error) {
        if (error instanceof api.Refused && ["not_authenticated", "scope_too_small"].includes(error.code)) return;
      }
      await wait(RETRY_MS[Math.min(failures, RETRY_MS.length - 1)]);
    }
  }

  #happened(event) {
    this.events.unshift({ ...event, number: (this.events[0]?.number ?? 0) + 1 });
    this.events.length = Math.min(this.events.length, EVENTS_MAX);
    const known = this.#known.get(event.about.pool);
    if (known) known.dirty = true;
    this.#onEvent(event);
    this.#poke();
  }
}

// The node lists what it heard of first first; of settled tasks the last ones are asked for.
async function tasksOf(item) {
  const parts = STATES.filter((state) => item.tasks[state]).map(async (state) => {
    const open = OPEN_STATES.has(state);
    const offset = open ? 0 : Math.max(0, item.tasks[state] - TASKS_OF_STATE_MAX);
    const query = new URLSearchParams({ state, limit: TASKS_OF_STATE_MAX, offset });
    const { tasks } = await api.get(`${api.poolPath(item.id)}/tasks?${query}`);
    return open ? tasks : tasks.reverse();
  });
  const tasks = new Map();
  // a task that changed its state between two answers counts as what it became
  for (const task of (await Promise.all(parts)).flat()) tasks.set(task.id, task);
  return [...tasks.values()];
}

function lagsOf(metrics) {
  const lags = new Map();
  for (const [, name, pool, number] of metrics.matchAll(GAUGE)) {
    if (!lags.has(pool)) lags.set(pool, { operations_behind: 0, oldest_task_seconds: 0 });
    lags.get(pool)[name] = Number(number);
  }
  return lags;
}
