// The same curve of several runs in one chart, against steps or training time.
import { api } from "./api.js";
import { Chart } from "./charts.js";
import { button, fill, fillOnChange, h, problemNotice } from "./dom.js";
import { number, percent } from "./format.js";
import { AXES, Rows } from "./rows.js";

export const COLOURS = ["c-blue", "c-orange", "c-green", "c-violet", "c-red", "c-teal"];
const CURVES = [
  { title: "Held-out accuracy", name: "eval/accuracy", range: [0, 1], points: true, isShare: true, format: percent },
  { title: "Reward", name: "reward/mean", range: [0, 1], format: number },
  { title: "Brier score of the value", name: "value/brier", fromZero: true, format: number },
  { title: "Response length", name: "response/length_mean", fromZero: true, format: number },
];
const NAMES = [...CURVES.map(({ name }) => name), "seconds/total"];

export class Comparison {
  constructor(signal) {
    this.signal = signal;
    this.known = new Map(); // id -> Rows
    this.axis = "step";
    this.ids = [];
    this.element = h("section.comparison", { "aria-label": "Comparison", hidden: true });
  }

  /** Shows the curves of `ids`; none hides it. */
  async show(ids) {
    this.ids = ids;
    this.element.hidden = ids.length === 0;
    if (ids.length === 0) return;
    try {
      await Promise.all(ids.filter((id) => !this.known.has(id)).map((id) => this.#load(id)));
      if (ids === this.ids) this.#draw();
    } catch (problem) {
      if (!this.signal.aborted) fill(this.element, problemNotice(problem));
    }
  }

  /** Takes in what the runs that still go on have added. */
  async refresh(isActive) {
    await Promise.all(this.ids.filter((id) => this.known.has(id) && isActive(id)).map((id) => this.#load(id)));
    if (this.ids.length) this.#draw();
  }

  async #load(id) {
    const rows = this.known.get(id) ?? new Rows();
    let from = rows.all.at(-1)?.step ?? null;
    do {
      const page = await api.metrics(id, { name: NAMES, from }, this.signal);
      rows.add(page.rows);
      from = page.next_from ?? null;
    } while (from !== null);
    this.known.set(id, rows);
  }

  #draw() {
    fillOnChange(this.element, [this.ids, this.axis, this.ids.map((id) => this.known.get(id).size)], () => {
      this.charts?.abort();
      this.charts = new AbortController();
      this.signal.addEventListener("abort", () => this.charts.abort(), { once: true });
      const charts = CURVES.map((curve) => this.#chart(curve));
      const head = h("div.section-head", {}, h("h2", {}, `Comparing ${this.ids.length} run${this.ids.length === 1 ? "" : "s"}`), this.#axes(), h("a", { href: "#/" }, "Clear"));
      return [head, h("div.charts", {}, charts)];
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
