// The same curve of several runs in one chart, against steps or training time, and the settings in which the runs differ.
import { api } from "./api.js";
import { Chart } from "./charts.js";
import { differencesPanel, Settings } from "./differences.js";
import { button, fill, fillOnChange, h, notice, problemNotice } from "./dom.js";
import { number, percent, plural } from "./format.js";
import { MetricChoice } from "./metric_choice.js";
import { AXES, Rows } from "./rows.js";

export const COLOURS = ["c-blue", "c-orange", "c-green", "c-violet", "c-red", "c-teal"];
const CURVES = [
  { title: "Held-out accuracy", name: "eval/accuracy", range: [0, 1], points: true, isShare: true, format: percent },
  { title: "Reward", name: "reward/mean", range: [0, 1], format: number },
  { title: "Brier score of the value", name: "value/brier", fromZero: true, format: number },
  { title: "Response length", name: "response/length_mean", fromZero: true, format: number },
];
const NAMES = [...CURVES.map(({ name }) => name), "seconds/total"];
const NAMED = 50; // first rows, whose names are all that a run records

export class Comparison {
  /** `choose(names)` is called when the reader chooses metrics. */
  constructor(signal, choose) {
    this.signal = signal;
    this.known = new Map(); // id -> Rows
    this.names = new Map(); // id -> names of all metrics
    this.settings = new Settings(signal);
    this.choice = new MetricChoice(choose);
    this.axis = "step";
    this.ids = [];
    this.chosen = []; // names of metrics
    this.head = h("div");
    this.body = h("div");
    this.element = h("section.comparison", { "aria-label": "Comparison", hidden: true }, this.head, this.choice.element, this.body);
  }

  /** Shows the curves of `ids`, with the metrics `chosen` first; none hides it. */
  async show(ids, chosen) {
    if (chosen.some((name) => !this.chosen.includes(name))) this.known.clear(); // they were not loaded
    Object.assign(this, { ids, chosen });
    this.element.hidden = ids.length === 0;
    if (ids.length === 0) return;
    try {
      await Promise.all(ids.map((id) => this.#loadNew(id)));
      this.trees = await this.settings.of(ids);
      this.loaded = ids;
      if (ids === this.ids) this.#draw();
    } catch (problem) {
      delete this.body.dataset.key;
      if (!this.signal.aborted) fill(this.body, problemNotice(problem));
    }
  }

  /** Takes in what the runs that still go on have added. */
  async refresh(isActive) {
    if (this.loaded !== this.ids) return;
    await Promise.all(this.ids.filter(isActive).map((id) => this.#load(id)));
    if (this.ids.length && this.loaded === this.ids) this.#draw();
  }

  async #loadNew(id) {
    if (!this.names.has(id)) this.names.set(id, (await api.metrics(id, { limit: NAMED }, this.signal)).names);
    if (!this.known.has(id)) await this.#load(id);
  }

  async #load(id) {
    const rows = this.known.get(id) ?? new Rows();
    let from = rows.all.at(-1)?.step ?? null;
    do {
      const page = await api.metrics(id, { name: [...NAMES, ...this.chosen], from }, this.signal);
      rows.add(page.rows);
      from = page.next_from ?? null;
    } while (from !== null);
    this.known.set(id, rows);
  }

  #draw() {
    this.choice.draw([...new Set(this.ids.flatMap((id) => this.names.get(id)))].sort(), this.chosen);
    fillOnChange(this.head, [this.ids, this.axis], () => h("div.section-head", {}, h("h2", {}, `Comparing ${plural(this.ids.length, "run")}`), this.#axes(), h("a", { href: "#/" }, "Clear")));
    fillOnChange(this.body, [this.ids, this.chosen, this.axis, this.ids.map((id) => this.known.get(id).size)], () => {
      this.charts?.abort();
      this.charts = new AbortController();
      this.signal.addEventListener("abort", () => this.charts.abort(), { once: true });
      const own = this.chosen.filter((name) => !CURVES.some((curve) => curve.name === name)).map((name) => ({ title: name, name, format: number }));
      const charts = [...own, ...CURVES].map((curve) => this.#chart(curve));
      const isEmpty = charts.every((chart) => chart.hidden);
      return [isEmpty ? notice("empty", "No curves yet") : null, h("div.charts", {}, charts), differencesPanel(this.ids, this.trees)];
    });
  }

  #axes() {
    const choose = (axis) => ((this.axis = axis), this.#draw());
    const choices = Object.keys(AXES).map((axis) => button(AXES[axis].label, () => choose(axis), { "aria-pressed": String(axis === this.axis) }));
    return h("div.filters.small", { role: "group", "aria-label": "Horizontal axis" }, choices);
  }

  #chart(curve) {
    const axis = AXES[this.axis];
    const runs = this.ids.map((id) => this.known.get(id).all.filter((row) => axis.of(row) !== null));
    const x = [...new Set(runs.flatMap((rows) => rows.map(axis.of)))].sort((a, b) => a - b);
    const columns = runs.map((rows) => {
      const at = new Map(rows.map((row) => [axis.of(row), row[curve.name] ?? null]));
      return x.map((value) => at.get(value) ?? null);
    });
    const series = this.ids.map((id, i) => ({ label: id, colour: COLOURS[i], width: 2, points: curve.points }));
    const chart = new Chart({ ...curve, series, sync: "compare" }, this.charts.signal);
    chart.update(x, columns, axis);
    return chart.element;
  }
}
