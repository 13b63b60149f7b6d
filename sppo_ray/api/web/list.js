// The job list: filter by state, find by name, choose up to six to see their curves side by side.
import { api } from "./api.js";
import { COLOURS, Comparison } from "./compare.js";
import { button, fill, fillOnChange, h, notice, problemNotice } from "./dom.js";
import { FINAL } from "./feed.js";
import { ago, compact, DASH, duration, moment, number, percent, plural, whole } from "./format.js";
import { chosenIn, joined } from "./metric_choice.js";
import { endsByBudget, hasRecords, progressBar, stateChip } from "./state.js";

const REFRESH = 4000; // ms
const TYPING = 200; // ms without a key before the server is asked
const PAGE = 50;
const MOST_COMPARED = 6;
const FILTERS = [
  { label: "All", states: [] },
  { label: "Active", states: ["PENDING", "RUNNING", "PAUSED", "STOPPING"] },
  { label: "Succeeded", states: ["SUCCEEDED"] },
  { label: "Stopped", states: ["STOPPED"] },
  { label: "Failed or lost", states: ["FAILED", "LOST"] },
];

/** The route of the list with these jobs compared, and metrics that the reader chose. */
export function comparePath(ids, metrics = []) {
  const chosen = metrics.length ? `&metrics=${joined(metrics)}` : "";
  return ids.length ? `#/?compare=${ids.map(encodeURIComponent).join(",")}${chosen}` : "#/";
}

export class ListView {
  constructor(target, signal) {
    this.signal = signal;
    this.filter = FILTERS[0];
    this.text = "";
    this.pages = 1;
    this.jobs = [];
    this.total = 0;
    this.filters = h("div.filters", { role: "group", "aria-label": "Filter by state" });
    this.table = h("div.card.table-host", {}, notice("loading", "Loading jobs"));
    this.foot = h("div.list-foot");
    this.comparison = new Comparison(signal, (metrics) => (location.hash = comparePath(this.compared, metrics)));
    const search = h("input", { type: "search", maxlength: 100, placeholder: "Find by name", "aria-label": "Find by name", on: { input: () => this.#find(search.value) } });
    this.element = h("div.page", {}, h("div.list-head", {}, h("h1", {}, "Jobs"), this.filters, search), this.comparison.element, this.table, this.foot);
    this.update(target);
    this.#drawFilters();
  }

  update({ params }) {
    this.compared = (params.get("compare") ?? "").split(",").filter(Boolean).map(decodeURIComponent).slice(0, MOST_COMPARED);
    this.metrics = chosenIn(params);
    this.comparison.show(this.compared, this.metrics);
    this.#draw();
  }

  async start() {
    await this.#load();
    const timer = setInterval(() => !document.hidden && this.#refresh(), REFRESH);
    this.signal.addEventListener("abort", () => clearInterval(timer), { once: true });
    this.signal.addEventListener("abort", () => clearTimeout(this.finding), { once: true });
  }

  async #refresh() {
    await this.#load();
    const active = new Set(this.jobs.filter(({ state }) => !FINAL.has(state)).map(({ id }) => id));
    await this.comparison.refresh((id) => active.has(id)).catch(() => {}); // the list has shown the problem
  }

  async #load() {
    const { filter, text } = this;
    try {
      const found = [];
      let cursor = null;
      for (let page = 0; page < this.pages; page++) {
        const part = await api.jobs({ state: filter.states, name: text || null, limit: PAGE, cursor }, this.signal);
        found.push(...part.jobs);
        Object.assign(this, { total: part.total, ray: part.ray, next: part.next_cursor });
        cursor = part.next_cursor;
        if (!cursor) break;
      }
      if (filter !== this.filter || text !== this.text) return; // the answer to an earlier question
      this.jobs = found;
      this.isLoaded = true;
      this.#draw();
    } catch (problem) {
      if (this.signal.aborted) return;
      delete this.table.dataset.key;
      fill(this.table, problemNotice(problem));
    }
  }

  #choose(filter) {
    Object.assign(this, { filter, pages: 1 });
    this.#drawFilters();
    this.#load();
  }

  #find(text) {
    Object.assign(this, { text: text.trim(), pages: 1 });
    clearTimeout(this.finding);
    this.finding = setTimeout(() => this.#load(), TYPING);
  }

  #toggle(id) {
    const chosen = this.compared.includes(id) ? this.compared.filter((one) => one !== id) : [...this.compared, id];
    location.hash = comparePath(chosen.slice(-MOST_COMPARED), this.metrics);
  }

  #drawFilters() {
    fill(this.filters, FILTERS.map((filter) => button(filter.label, () => this.#choose(filter), { "aria-pressed": String(filter === this.filter) })));
  }

  #draw() {
    if (!this.isLoaded) return;
    const shown = this.jobs;
    // Ages change with every refresh: a minute is fine enough to keep the table still.
    fillOnChange(this.table, [shown, this.compared, Math.floor(Date.now() / 60000)], () => (shown.length ? this.#rows(shown) : this.#nothing()));
    const more = this.next && button("Show more", () => ((this.pages += 1), this.#load()));
    const hint = this.compared.length === 0 && this.jobs.length > 1 ? "Tick two to six runs to compare their curves and settings." : null;
    const down = this.ray === "down" && h("span.warn", {}, "Ray's job server does not answer: states come from the run directories.");
    fill(this.foot, h("span.muted", {}, plural(this.total, "job")), hint && h("span.muted", {}, hint), down, more);
  }

  #nothing() {
    if (this.text || this.filter.states.length) return notice("empty", "No job fits", "Choose another state, or clear the search.");
    return notice("empty", "No jobs yet", "Submit one, and it shows up here:", h("pre", {}, "sppo-ray submit quickstart"));
  }

  #rows(jobs) {
    const heads = ["", "Job", "State", "Progress", "Held-out", "Reward", "Tokens/s", "Started", "Time"];
    const head = h("tr", {}, heads.map((name) => h("th", { scope: "col", class: ["Held-out", "Reward", "Tokens/s", "Time"].includes(name) ? "num" : "" }, name || h("span.sr", {}, "Compare"))));
    return h("table.jobs", {}, h("caption.sr", {}, "Training jobs"), h("thead", {}, head), h("tbody", {}, jobs.map((job) => this.#row(job))));
  }

  #row(job) {
    const isChosen = this.compared.includes(job.id);
    const box = h("input", { type: "checkbox", "aria-label": `Compare ${job.id}`, checked: isChosen, style: { "accent-color": `var(--${COLOURS[this.compared.indexOf(job.id)] ?? "accent"})` }, on: { change: () => this.#toggle(job.id) } });
    const what = [job.algorithm, job.recipe ?? job.name, job.seed === null || job.seed === undefined ? null : `seed ${job.seed}`].filter(Boolean).join(" · ");
    const link = h("a", { href: `#/jobs/${encodeURIComponent(job.id)}` }, job.run_id ?? job.id);
    const byBudget = endsByBudget(job);
    const steps = !hasRecords(job) ? job.phase : byBudget ? `${plural(job.step, "step")}, ${duration(job.seconds)} / ${duration(job.budget_s)}` : job.steps ? `${whole(job.step)} / ${whole(job.steps)}` : whole(job.step);
    const cell = (label, className, ...contents) => h("td", { class: className, dataset: { label } }, contents);
    return h(
      "tr",
      { class: isChosen ? "chosen" : "" },
      cell("Compare", "pick", box),
      cell("Job", "name", link, h("small", {}, what)),
      cell("State", "", stateChip(job.state)),
      cell("Progress", "steps", progressBar(job), h("small", {}, steps, job.eta_s ? ` · ${duration(job.eta_s)} left` : "")),
      cell("Held-out", "num figure strong", percent(job.accuracy)),
      cell("Reward", "num figure", number(job.reward)),
      cell("Tokens/s", "num figure", compact(job.tokens_per_second)),
      cell("Started", "began", h("span", { title: moment(job.started ?? job.created) }, ago(job.started ?? job.created))),
      cell("Time", "num figure", hasRecords(job) ? duration(job.seconds) : DASH),
    );
  }
}
