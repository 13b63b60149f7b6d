// The sample browser: what the policy wrote at a step, what it was told for it, and what the critic had expected.
import { api } from "./api.js";
import { button, fill, h, notice, problemNotice } from "./dom.js";
import { duration, number, percent, plural, whole } from "./format.js";
import { hasMaths, readable } from "./maths.js";

const PAGE = 20;
const SORTS = { surprise: "surprise |R − V|", reward: "reward", length: "length" };
const ENDS = { length: "cut at the limit", turns: "last turn allowed", context: "no room for another turn", timeout: "out of time" };

export class Samples {
  constructor(feed, signal, target) {
    Object.assign(this, { feed, signal, isRaw: false });
    this.controls = h("div.sample-controls");
    this.list = h("div.samples", { "aria-live": "off" });
    this.foot = h("div.list-foot");
    this.element = h("section", { "aria-label": "Samples" }, this.controls, this.list, this.foot);
    this.update(target);
  }

  update({ params }) {
    this.step = params.get("step"); // null = the newest
    this.sort = params.get("sort") in SORTS ? params.get("sort") : "surprise";
    this.order = params.get("order") === "asc" ? "asc" : "desc";
    this.#load();
  }

  async #load() {
    const question = (this.question = {});
    if (!this.page) fill(this.list, notice("loading", "Loading samples"));
    try {
      const page = await this.#fetch(null);
      if (question !== this.question) return;
      this.page = page;
      this.items = page.items;
      this.#draw();
    } catch (problem) {
      if (this.signal.aborted || question !== this.question) return;
      this.#drawControls();
      fill(this.list, problem.status === 404 ? notice("empty", "No samples here", problem.detail) : problemNotice(problem));
      fill(this.foot);
    }
  }

  #fetch(cursor) {
    const { step, sort, order } = this;
    return api.trajectories(this.feed.id, { step, sort, order, limit: PAGE, cursor }, this.signal);
  }

  async #more() {
    const page = await this.#fetch(this.page.next_cursor);
    this.page = page;
    this.items.push(...page.items);
    this.list.append(...page.items.map((sample) => card(sample, this.isRaw)));
    this.#drawFoot();
  }

  #draw() {
    this.#drawControls();
    fill(this.list, this.items.length ? this.items.map((sample) => card(sample, this.isRaw)) : notice("empty", "This step has no samples"));
    this.#drawFoot();
  }

  #drawFoot() {
    const more = this.page.next_cursor && button("Show more", () => this.#more().catch((problem) => fill(this.foot, problemNotice(problem))));
    fill(this.foot, h("span.muted", {}, `${whole(this.items.length)} of ${plural(this.page.total, "sample")}`), more);
  }

  #go(change) {
    const { step, sort, order } = { step: this.step, sort: this.sort, order: this.order, ...change };
    const params = new URLSearchParams(Object.entries({ step, sort, order }).filter(([, value]) => value !== null && value !== ""));
    location.hash = `#/jobs/${encodeURIComponent(this.feed.id)}/samples?${params}`;
  }

  #drawControls() {
    const { page } = this;
    const step = page?.step ?? Number(this.step ?? 0);
    const field = h("input", { type: "number", value: String(step), min: String(page?.first_step ?? 1), max: String(page?.last_step ?? ""), "aria-label": "Step", on: { change: (event) => this.#go({ step: event.target.value }) } });
    const turn = (text, to, label) => button(text, () => this.#go({ step: String(to) }), { "aria-label": label, disabled: !page || to < page.first_step || to > page.last_step });
    const sort = h("select", { on: { change: (event) => this.#go({ sort: event.target.value }) } }, Object.entries(SORTS).map(([name, label]) => h("option", { value: name, selected: name === this.sort }, label)));
    const order = button(this.order === "desc" ? "most first" : "least first", () => this.#go({ order: this.order === "desc" ? "asc" : "desc" }));
    const maths = button("TeX as written", () => ((this.isRaw = !this.isRaw), this.#draw()), { "aria-pressed": String(this.isRaw) });
    fill(
      this.controls,
      h("div.row", {}, h("span.label", {}, "Step"), turn("‹", step - 1, "Step before"), field, turn("›", step + 1, "Next step"), button("Newest", () => this.#go({ step: null })), page && h("span.muted", {}, `of ${page.first_step} to ${page.last_step}`)),
      h("div.row", {}, h("label.label", {}, "Sort by ", sort), order, this.items?.some(({ prompt, response }) => hasMaths(prompt + response)) ? maths : null),
    );
  }
}

function card(sample, isRaw) {
  const show = (text) => (isRaw ? text : readable(text));
  const text = (label, content, className) => h("div.text", { class: className }, h("h4", {}, label), h("div.written", { tabindex: "0", role: "region", "aria-label": label }, content));
  const { turns } = sample;
  const said = (turn, at) => text(turnLabel(turn, at), show(turn.text), turn.is_action ? "response" : "observation");
  const notes = [
    turns.length ? plural((turns.length + 1) / 2, "turn") : null,
    plural(sample.tokens, "token"),
    ENDS[sample.finish_reason],
    duration(sample.seconds),
    sample.staleness ? `${plural(sample.staleness, "version")} stale` : null,
    `${sample.worker}, version ${sample.policy_version}`,
    sample.prompt_id,
  ];
  return h(
    "article.card.sample",
    { "aria-label": `Sample ${sample.request_id}` },
    h("div.sample-head", {}, rewardBadge(sample), scale(sample), advantage(sample), h("span.reason", {}, sample.reason)),
    h("div.texts", {}, text("Prompt", show(sample.prompt), "prompt"), turns.length ? h("div.turns", {}, turns.map(said)) : text("Response", show(sample.response), "response")),
    h("p.muted.sample-foot", {}, h("span", {}, "Truth ", h("b.mono", {}, sample.ground_truth)), notes.filter(Boolean).map((note) => h("span", {}, note))),
  );
}

/** What a part of an episode is: the policy's action, or what it read then. */
function turnLabel({ is_action, tokens, reward }, at) {
  const what = is_action ? `Action ${at / 2 + 1}` : "Observation";
  return [what, plural(tokens, "token"), reward ? `reward ${number(reward)}` : null].filter(Boolean).join(" · ");
}

function rewardBadge({ reward }) {
  const tone = reward >= 1 ? "green" : reward <= 0 ? "red" : "amber";
  return h("span.chip.reward", { dataset: { tone } }, h("i", { "aria-hidden": "true" }, reward >= 1 ? "✓" : reward <= 0 ? "✕" : "◐"), `reward ${number(reward)}`);
}

/** A line from 0 to 1 with the critic's value and the reward: their distance is the surprise. */
function scale({ reward, value, surprise }) {
  if (value === null) return null;
  const [left, right] = [Math.min(value, reward), Math.max(value, reward)];
  const at = (share) => ({ style: { left: percent(share, 2) } });
  const line = h("span.line", { "aria-hidden": "true" }, h("span.gap", { style: { left: percent(left, 2), width: percent(right - left, 2) } }), h("i.value", at(value)), h("i.got", at(reward)));
  return h("span.scale", {}, h("span", {}, "value ", h("b", {}, number(value))), line, h("span", {}, "surprise ", h("b", {}, number(surprise))));
}

const advantage = ({ advantage: a }) => h("span", {}, "advantage ", h("b", {}, `${a > 0 ? "+" : ""}${number(a)}`));
