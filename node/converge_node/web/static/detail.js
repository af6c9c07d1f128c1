// What stands behind a task or a motion: who did what, and who decided it.

import * as api from "./api.js";
import { el, replace, setText } from "./dom.js";
import { asks, choiceText, choiceTone, initials, said } from "./panels.js";
import { count, short } from "./words.js";

const TEXT_CHARACTERS_MAX = 20_000;

export class Detail {
  #dialog = document.getElementById("detail");
  #title = document.getElementById("detail-title");
  #body = document.getElementById("detail-body");
  #model;
  #shown = null; // {kind, pool, id}

  constructor(model) {
    this.#model = model;
    document.getElementById("detail-close").addEventListener("click", () => this.#dialog.close());
    this.#dialog.addEventListener("click", (event) => event.target === this.#dialog && this.#dialog.close());
    // the event comes later than the closing: another one may be open by then
    this.#dialog.addEventListener("close", () => this.#dialog.open || (this.#shown = null));
  }

  open(kind, pool, id) {
    this.#shown = { kind, pool, id };
    replace(this.#body);
    this.#body.className = `detail-body hue-${this.#model.pool(pool)?.hue ?? "none"}`;
    setText(this.#title, kind === "task" ? "Task" : "Motion");
    if (!this.#dialog.open) this.#dialog.showModal();
    this.refresh();
  }

  async refresh() {
    const shown = this.#shown;
    if (!shown) return;
    const pool = this.#model.pool(shown.pool);
    let content;
    try {
      content = shown.kind === "task" ? await this.#task(pool, shown) : this.#motion(pool, shown.id);
    } catch (error) {
      content = el("p.notice", { "data-tone": "bad" }, error.message);
    }
    // another one may have been opened meanwhile
    if (this.#shown === shown) replace(this.#body, content);
  }

  async #task(pool, { pool: poolId, id }) {
    const [task, evidence] = await Promise.all([
      api.get(api.taskPath(poolId, id)),
      api.get(`${api.taskPath(poolId, id)}/evidence`).catch(() => []),
    ]);
    setText(this.#title, task.objective);
    const names = this.#model.names;
    const motions = (pool?.motions ?? []).filter((motion) => motion.task === task.id);
    const round = `epoch ${task.epoch}, round ${task.round}`;
    const steps = [
      step("done", "Submitted", [this.#agent(task.submitter), ` as ${task.key || "a task without a key"}`]),
      task.round >= 0 || task.assigned_to
        ? step(task.state === "assigned" ? "now" : "done", "Claimed", [
            task.assigned_to || task.settled_by ? this.#agent(task.assigned_to ?? task.settled_by) : "by nobody now",
            ` in ${round}`,
            task.attempts > 1 ? `, attempt ${task.attempts}` : "",
          ])
        : step("next", "Claimed", ["nobody has claimed it yet"]),
      ...task.reported.map((report) => step("now", "Reported", [this.#agent(report.by), ` says result ${short(report.value)}`])),
      task.awaits_verdict && step("now", "In question", [`waits for the verdict of ${names.in(task.evaluator) || "its evaluator"}`]),
      task.awaits_veto && step("now", "In question", ["its vetoers may still deny the result"]),
      ["completed", "failed", "cancelled"].includes(task.state)
        ? step(task.state === "completed" ? "done" : "bad", task.state, [
            task.certified ? el("span.tag.sure", null, "certified") : "",
            task.certified ? ` by a quorum of the electors of epoch ${task.epoch}` : " as this node sees it",
            task.settled_by ? [" on the report of ", this.#agent(task.settled_by)] : "",
          ])
        : step("next", "Settled", ["not yet"]),
    ];
    return el(
      "div",
      null,
      el("p.muted.mono.small.wrap", null, task.id),
      el("ol.steps", null, steps.filter(Boolean)),
      pool?.detail?.decided_by && fact("Who decides", names.in(pool.detail.decided_by)),
      task.value && fact("Hash of the settled value", el("span.mono.wrap", null, task.value)),
      task.reason && fact("Reason", task.reason),
      task.note && fact("Note of the worker", task.note),
      task.required_capabilities.length > 0 && fact("Takes", task.required_capabilities.join(", ")),
      motions.map((motion) => this.#certificate(motion, pool)),
      evidence.length > 0 && section("Evidence", evidence.map((item) => this.#evidence(item))),
      block("Inputs", task.inputs),
      task.state === "completed" ? block("Result", task.result) : null,
    );
  }

  #motion(pool, id) {
    const motion = pool?.motions.find((each) => each.id === id);
    if (!motion) return el("p.muted", null, "This motion is not known any more.");
    setText(this.#title, asks(motion, this.#model));
    return el(
      "div",
      null,
      el("p.muted.mono.small.wrap", null, motion.id),
      fact("Pool", pool.item.name),
      fact("Asked by", this.#agent(motion.author)),
      motion.reason && fact("Reason", el("q", null, motion.reason)),
      this.#certificate(motion, pool),
      motion.task && el("button.primary.quiet", { type: "button", onclick: () => this.open("task", motion.pool, motion.task) }, "Show the task"),
    );
  }

  // The signed opinions that decided a motion are its certificate; whoever holds the pool's log can check them.
  #certificate(motion, pool) {
    const title = motion.decided ? `Certificate: ${motion.state} in epoch ${motion.epoch}` : `Opinions: ${motion.state}`;
    const rows = motion.opinions.map((opinion) =>
      el(
        "li",
        null,
        el("span.seal.mono", null, initials(opinion.agent_id)),
        this.#agent(opinion.agent_id),
        el("span.choice", { "data-choice": choiceTone(opinion.choice) }, choiceText(opinion.choice)),
        el("span.small.muted", null, `signed in epoch ${opinion.epoch}`),
      ),
    );
    return el(
      "section.certificate",
      { "data-state": motion.state },
      el("h3", null, title),
      el("p.small.muted", null, pool ? said(motion, pool) : ""),
      rows.length ? el("ul", null, rows) : el("p.small.muted", null, "No elector has said anything yet."),
    );
  }

  #evidence(item) {
    return el(
      "p.small",
      null,
      el("span.choice", { "data-choice": item.supports ? "yes" : "no" }, item.supports ? "for" : "against"),
      ` result ${short(item.value)}, by `,
      this.#agent(item.author),
      ` (weight ${count(item.weight)}): `,
      item.summary || "no summary",
      el("span.mono.muted.wrap", null, ` ${item.media}, ${count(item.size)} bytes, SHA-256 ${item.digest}`),
    );
  }

  #agent(id) {
    const names = this.#model.names;
    return el("span.agent-name", { title: id }, names.of(id), names.known(id) ? el("span.mono.muted.small", null, ` ${short(id)}`) : null);
  }
}

function step(tone, title, words) {
  return el("li", { "data-tone": tone }, el("b", null, title), " ", words.flat());
}

function fact(name, value) {
  return el("p.fact", null, el("span.small.muted", null, name), el("span", null, value));
}

function section(title, content) {
  return el("section", null, el("h3", null, title), content);
}

function block(title, value) {
  let text = JSON.stringify(value, null, 2) ?? "";
  if (text.length > TEXT_CHARACTERS_MAX) text = `${text.slice(0, TEXT_CHARACTERS_MAX)}\n… ${count(text.length - TEXT_CHARACTERS_MAX)} more characters`;
  return section(title, el("pre", null, text));
}
