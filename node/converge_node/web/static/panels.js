// The other parts of the page: figures, pools, motions, agents, events, troubles.

import { el, keyed, replace, setText, svg } from "./dom.js";
import { clock, count, duration, plural, short, titled } from "./words.js";

const MOTIONS_MAX = 8;
const POOLS_MAX = 12;
const ELECTORS_MAX = 12;
const FEED_MAX = 11;
const AGENTS_MAX = 8;
const BARS = [["completed", "good"], ["assigned", "busy"], ["pending", "wait"], ["failed", "bad"], ["cancelled", "off"]];

export const initials = (id) => short(id).slice(0, 4);

export function renderTroubles(parent, health) {
  replace(
    parent,
    health.reasons.slice(0, 4).map((reason) =>
      el("p.notice", { "data-tone": reason.fatal ? "bad" : "wait" }, el("b", null, `${titled(reason.what)}: `), reason.text, reason.hint ? ` — ${reason.hint}` : ""),
    ),
  );
}

export function renderTiles(parent, model) {
  const counts = model.counts();
  const motions = model.pools.flatMap((pool) => pool.motions);
  const open = motions.filter((motion) => motion.state === "open").length;
  const behind = model.pools.reduce((sum, { lag }) => sum + lag.operations_behind, 0);
  const oldest = Math.max(0, ...model.pools.map(({ lag }) => lag.oldest_task_seconds));
  const culprits = model.pools.reduce((sum, { detail }) => sum + (detail?.culprits ?? 0) + (detail?.frozen.length ?? 0), 0);
  const settled = counts.completed + counts.failed + counts.cancelled;
  const electing = model.pools.filter(({ detail }) => detail?.member_list.some((member) => member.elector && member.agent_id === model.status.node.id)).length;
  const tiles = [
    { id: "peers", title: "Peers", value: count(model.peers.length), note: model.peers.some((peer) => peer.relayed) ? `${model.peers.filter((peer) => peer.relayed).length} through relays` : "all direct" },
    { id: "pools", title: "Pools", value: count(model.pools.length), note: `elector in ${count(electing)}` },
    { id: "open", title: "Open tasks", value: count(counts.pending + counts.assigned), note: oldest ? `the oldest for ${duration(oldest)}` : counts.pending + counts.assigned ? "submitted just now" : "nothing waits" },
    { id: "settled", title: "Settled", value: count(settled), note: `${count(perMinute(model.samples))} a minute`, spark: model.samples },
    { id: "disputes", title: "Open motions", value: count(open), note: culprits ? `${plural(culprits, "elector")} broke a rule` : plural(motions.length, "motion") + " in all", tone: culprits ? "bad" : open ? "wait" : "" },
    { id: "behind", title: "Convergence", value: behind ? count(behind) : "in step", note: behind ? "operations are still to come" : "nothing is missing here", tone: behind ? "wait" : "good" },
  ];
  keyed(parent, tiles, (tile) => tile.id, newTile, (element, tile) => {
    const [title, value, note, spark] = element.children;
    element.dataset.tone = tile.tone ?? "";
    setText(title, tile.title);
    setText(value, tile.value);
    setText(note, tile.note);
    if (tile.spark) spark.firstChild.setAttribute("d", sparkline(tile.spark));
  });
}

function newTile() {
  return el("div.tile", null, el("span.tile-title"), el("span.tile-value"), el("span.tile-note"), svg("svg.spark", { viewBox: "0 0 100 28", preserveAspectRatio: "none", "aria-hidden": "true" }, svg("path")));
}

function perMinute(samples) {
  const last = samples.at(-1);
  const first = samples.find((sample) => last.at - sample.at < 60_000);
  const minutes = (last.at - first.at) / 60_000;
  return minutes ? Math.round((last.settled - first.settled) / Math.max(minutes, 1 / 6)) : 0;
}

function sparkline(samples) {
  if (samples.length < 2) return "";
  const low = samples[0].settled;
  const high = Math.max(low + 1, samples.at(-1).settled);
  const [begin, end] = [samples[0].at, samples.at(-1).at];
  return samples
    .map(({ at, settled }, index) => `${index ? "L" : "M"}${((100 * (at - begin)) / (end - begin)).toFixed(1)} ${(26 - (24 * (settled - low)) / (high - low)).toFixed(1)}`)
    .join("");
}

export function renderPools(parent, counter, model, chosen, onPool) {
  setText(counter, model.pools.length ? count(model.pools.length) : "");
  if (!model.pools.length) return replace(parent, nothing("This node is in no pool.", "converge-node pool create demo --governance democratic"));
  parent.querySelector(":scope > .nothing")?.remove();
  keyed(parent, model.pools.slice(0, POOLS_MAX), ({ item }) => item.id, () => el("button.pool", { type: "button" }), (card, pool) => {
    card.onclick = () => onPool(pool.item.id);
    card.setAttribute("aria-pressed", String(chosen === pool.item.id));
    card.className = `pool hue-${pool.hue}`;
    drawPool(card, pool, model);
  });
}

function drawPool(card, { item, detail, lag }, model) {
  const electors = detail?.member_list.filter((member) => member.elector) ?? [];
  const workers = Math.max(0, item.members - item.electors);
  const total = Object.values(item.tasks).reduce((sum, number) => sum + number, 0);
  const signs = [
    !item.ready && el("span.tag", null, "reading"),
    item.private && el("span.tag", { title: "What members say is sealed" }, "private"),
    item.has_quorum === false && el("span.tag.bad", { title: "Too few electors are connected to decide" }, "no quorum"),
    item.has_quorum === true && el("span.tag.sure", { title: "Enough electors are connected to decide" }, "quorum"),
    detail?.unsure && el("span.tag.question", { title: detail.unsure }, "signs nothing yet"),
    detail?.culprits > 0 && el("span.tag.bad", null, `${plural(detail.culprits, "elector")} broke a rule`),
    detail?.frozen.length > 0 && el("span.tag.bad", null, `${detail.frozen.length} frozen`),
    detail?.checkpoint.number > 0 && el("span.tag", { title: `${count(detail.checkpoint.tasks)} settled tasks stand in it` }, `checkpoint ${detail.checkpoint.number}`),
    lag.operations_behind > 0 && el("span.tag.question", null, `${count(lag.operations_behind)} behind`),
  ];
  replace(
    card,
    el(
      "span.pool-top",
      null,
      el("span.pool-title", null, el("span.dot"), el("b", null, item.name)),
      el("span.epoch", { title: "The epoch: how often the pool's electors or terms were changed" }, el("span.small.muted", null, "epoch"), el("b", null, detail ? String(detail.epoch) : "…")),
    ),
    el("span.tags", null, el("span.tag.plain", null, titled(item.governance)), signs),
    el(
      "span.electors",
      null,
      electors.slice(0, ELECTORS_MAX).map((member) =>
        el(`span.seal.mono${member.agent_id === model.status.node.id ? ".own" : ""}`, { title: `elector ${model.names.of(member.agent_id)} · ${member.agent_id}` }, initials(member.agent_id)),
      ),
      electors.length > ELECTORS_MAX && el("span.small.muted", null, `+${electors.length - ELECTORS_MAX}`),
      el("span.small.muted", null, ` ${plural(item.electors, "elector")}${workers ? `, ${plural(workers, "other member")}` : ""}`),
      el("span.small.muted.far", null, plural(total, "task")),
    ),
    bar(item.tasks, total),
  );
}

function bar(tasks, total) {
  const strip = svg("svg.bar-strip", { viewBox: "0 0 100 6", preserveAspectRatio: "none", role: "img", "aria-label": BARS.map(([state]) => `${tasks[state] ?? 0} ${state}`).join(", ") });
  let x = 0;
  for (const [state, tone] of BARS) {
    const width = total ? (100 * (tasks[state] ?? 0)) / total : 0;
    if (width) strip.append(svg(`rect.fill-${tone}`, { x, y: 0, width, height: 6 }, svg("title", null, `${tasks[state]} ${state}`)));
    x += width;
  }
  return strip;
}

export function renderMotions(parent, counter, model, onMotion) {
  const listed = model.pools.flatMap((pool) => [...pool.motions].reverse().map((motion) => ({ motion, pool })));
  listed.sort((one, other) => Number(other.motion.state === "open") - Number(one.motion.state === "open"));
  setText(counter, listed.length ? count(listed.length) : "");
  if (!listed.length) return replace(parent, nothing("Nothing was disputed, and no change was asked for.", ""));
  parent.querySelector(":scope > .nothing")?.remove();
  keyed(parent, listed.slice(0, MOTIONS_MAX), ({ motion }) => motion.id, () => el("button.motion", { type: "button" }), (card, { motion, pool }) => {
    card.onclick = () => onMotion(pool.item.id, motion.id);
    card.className = `motion hue-${pool.hue}`;
    card.dataset.state = motion.state;
    replace(
      card,
      el("span.task-line", null, el("b.motion-asks", null, asks(motion, model)), el("span.state", { "data-state": motion.state }, motion.state)),
      el("span.ballots", null, ballots(motion, pool, model), el("span.small.muted", null, said(motion, pool))),
      el("span.task-line.small.muted", null, el("span.pool-name", null, el("span.dot"), pool.item.name, ` · epoch ${motion.epoch} · by ${model.names.of(motion.author)}`), el("span.mono", null, short(motion.id))),
      motion.reason && el("q.small.muted.clip", null, motion.reason),
    );
  });
}

export function asks(motion, model) {
  const words = { reject_result: "Is this result wrong?", rival_reports: "Which result is right?" }[motion.kind];
  const text = model.names.in(motion.asks.join("; "));
  return words ? `${words} Task ${short(motion.task)}` : titled(text);
}

function ballots(motion, pool, model) {
  const electors = pool.detail?.member_list.filter((member) => member.elector) ?? [];
  const chose = new Map(motion.opinions.map((opinion) => [opinion.agent_id, opinion.choice]));
  const voters = [...new Set([...electors.map((member) => member.agent_id), ...chose.keys()])].slice(0, ELECTORS_MAX);
  return voters.map((id) => {
    const choice = chose.get(id);
    return el("span.ballot", { "data-choice": choiceTone(choice), title: `${model.names.of(id)}: ${choice ? choiceText(choice) : "has said nothing"}` });
  });
}

export const choiceText = (choice) => (/^[0-9a-f]{64}$/.test(choice) ? `result ${short(choice)}` : choice);

export const choiceTone = (choice) => (choice === undefined ? "" : choice === "yes" ? "yes" : choice === "no" ? "no" : "other");

export function said(motion, { detail, item }) {
  const counts = new Map();
  for (const { choice } of motion.opinions) counts.set(choice, (counts.get(choice) ?? 0) + 1);
  const words = [...counts].map(([choice, number]) => `${number} ${choiceText(choice)}`).join(", ") || "nobody has answered";
  const need = detail?.quorum ? `; ${detail.quorum} of ${item.electors} electors decide` : ` of ${plural(item.electors, "elector")}`;
  return words + need + (motion.decided ? ` → ${choiceText(motion.decided)}` : "");
}

export function renderAgents(part, parent, model) {
  part.hidden = !model.hosted.length;
  keyed(parent, model.hosted.slice(0, AGENTS_MAX), (agent) => agent.name, () => el("div.agent"), (row, agent) => {
    replace(
      row,
      el("span.task-line", null, el("b", null, agent.name), el("span.state", { "data-state": agent.ok ? "carried" : "rejected" }, agent.state)),
      el("span.small.muted", null, `${agent.kind} · ${plural(agent.turns, "turn")} · ${plural(agent.claims, "claim")} · ${plural(agent.inbox, "message")} waiting`),
      agent.last_error && el("span.small.bad.clip", null, agent.last_error),
    );
  });
}

const EVENT_TONES = { fork: "bad", rejected: "bad", claim_lost: "wait", peer_down: "wait", motion: "question", epoch: "question", peer_up: "good", claim_won: "good" };

export function renderFeed(parent, model) {
  if (!model.events.length) return replace(parent, nothing("Nothing has happened since this page was opened.", ""));
  parent.querySelector(":scope > .nothing")?.remove();
  keyed(parent, model.events.slice(0, FEED_MAX), (event) => event.number, (event) => {
    const { pool, ...about } = event.about;
    const known = model.pool(pool);
    const objective = known?.tasks.find((task) => task.id === about.task)?.objective;
    // of a task its state is news; epoch and round stand behind a click
    const told = Object.entries(about).filter(([name]) => event.kind !== "task" || (name !== "epoch" && name !== "round"));
    const words = told.map(([name, value]) => {
      if (name === "state") return value;
      if (name === "task") return objective ? `${objective} ${short(value)}` : short(value);
      return name === "motion" ? short(value) : `${name} ${model.names.in(value)}`;
    });
    return el(
      `li.hue-${known?.hue ?? "none"}`,
      { "data-tone": event.about.state ?? EVENT_TONES[event.kind] ?? "" },
      el("time.mono.small.muted", { datetime: event.at }, clock(event.at)),
      el("span.event", null, el("b", null, titled(event.kind)), ` ${words.join(" · ")}`),
      el("span.small.muted.event-pool", null, known ? known.item.name : ""),
    );
  });
}

function nothing(text, command) {
  return el("div.nothing", null, el("p", null, text), command && el("code", null, command));
}
