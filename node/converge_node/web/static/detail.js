// What stands behind a task or a motion: who did what, and who decided it.

import * as api from "./api.js";
import { el, replace, setText } from "./dom.js";
import { asks, choiceText, choiceTone, initials, said } from "./panels.js";
import { clock, count, short } from "./words.js";

const TEXT_CHARACTERS_MAX = 20_000;
const CERTIFICATES_MAX = 6;
const STEPS_MAX = 40;
const NOTES_MAX = 4;
const EXPLAIN = "/v1/pools/{pool}/tasks/{task}/explain";

export class Detail {
  #dialog = document.getElementById("detail");
  #title = document.getElementById("detail-title");
  #body = document.getElementById("detail-body");
  #model;
  #shown = null; // {kind, pool, id}
  #told = { key: "", record: null }; // what the node told of the task that is shown, which is costly to ask again

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
    if (this.#shown !== shown) return;
    const unfolded = this.#body.querySelector("details")?.open;
    replace(this.#body, content);
    if (unfolded) this.#body.querySelector("details")?.setAttribute("open", "");
  }

  async #task(pool, { pool: poolId, id }) {
    const [task, evidence] = await Promise.all([
      api.get(api.taskPath(poolId, id)),
      api.get(`${api.taskPath(poolId, id)}/evidence`).catch(() => []),
    ]);
    setText(this.#title, task.objective);
    this.#read(poolId, task);
    const record = this.#told.record;
    const names = this.#model.names;
    const motions = (pool?.motions ?? []).filter((motion) => motion.task === task.id);
    const round = `epoch ${task.epoch}, round ${task.round}`;
    // a failed or cancelled task is settled on the report of an elector, which never worked on it
    const worker = task.assigned_to || (task.state === "completed" ? task.settled_by : "");
    const steps = [
      step("done", "Submitted", [this.#agent(task.submitter), ` as ${task.key || "a task without a key"}`]),
      task.round >= 0 || task.assigned_to
        ? step(task.state === "assigned" ? "now" : "done", "Claimed", [
            worker ? this.#agent(worker) : "by nobody now",
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
      record?.tentative.slice(0, NOTES_MAX).map((each) => el("p.notice.small", { "data-tone": "wait" }, names.in(each.text))),
      record && votes(record).map((each) => this.#votes(each)),
      motions.map((motion) => this.#certificate(motion, pool)),
      evidence.length > 0 && section("Evidence", evidence.map((item) => this.#evidence(item))),
      block("Inputs", task.inputs),
      task.state === "completed" ? block("Result", task.result) : null,
      record && this.#signed(record),
    );
  }

  // Ask for the record of a task when it is opened, and when it has changed.
  async #read(pool, task) {
    const key = [task.id, task.state, task.certified, task.epoch, task.round, task.attempts, task.awaits_veto].join(" ");
    if (this.#told.key === key) return;
    const before = this.#told.key.startsWith(task.id) ? this.#told.record : null;
    const told = (this.#told = { key, record: before });
    if (!(await api.answers(EXPLAIN))) return;
    const record = await api.get(`${api.taskPath(pool, task.id)}/explain`).catch(() => null);
    if (this.#told !== told || !record) return;
    told.record = record;
    this.refresh();
  }

  // Votes of electors for one claim or one result.
  #votes(each) {
    const about = each.decision === "claim" ? (each.holder ? ["to ", this.#agent(each.holder)] : ["for several at once"]) : [`for result ${short(each.value)}`];
    return el(
      "section.certificate",
      { "data-state": each.decides ? "carried" : "" },
      el("h3", null, `Certificate: ${each.decision}${each.on_veto ? " on the veto" : ""} `, about, ` · epoch ${each.epoch}, round ${each.round}`),
      el("p.small.muted", null, this.#model.names.in(each.rule), each.decides ? "; these votes settled it" : ""),
      el(
        "ul",
        null,
        each.signatures.map((signature) =>
          el(
            "li",
            null,
            el("span.seal.mono", null, initials(signature.agent_id)),
            this.#agent(signature.agent_id),
            el("span.small.far", { "data-tone": signature.verified ? "good" : "" }, signature.verified ? "✓ signature checked" : "not kept here"),
          ),
        ),
      ),
      each.missing.length > 0 && el("p.small.muted", null, `not signed by ${each.missing.map((id) => this.#model.names.of(id)).join(", ")}`),
    );
  }

  #signed(record) {
    const steps = record.steps.slice(-STEPS_MAX);
    const left = record.left_out + record.steps.length - steps.length;
    return el(
      "details",
      null,
      el("summary", null, `Everything that was signed about it (${count(record.steps.length + record.left_out)})`),
      left > 0 && el("p.small.muted", null, `the first ${count(left)} are left out`),
      el(
        "ol.signed",
        null,
        steps.map((each) =>
          el("li.small", null, el("time.mono.muted", { datetime: each.at }, clock(each.at)), el("span", null, this.#model.names.in(each.text)), el("span.mono.muted", { title: each.operation }, short(each.operation))),
        ),
      ),
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

// What settled it comes first, and what nobody has finished is left out.
function votes(record) {
  const complete = record.certificates.filter((each) => each.complete || each.decides);
  return complete.sort((one, other) => Number(other.decides) - Number(one.decides)).slice(0, CERTIFICATES_MAX);
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
