// Where the time of each step went: stacked bars by stage, with the time in which the learner waited or nothing ran.
import { axis, ink, key, WHOLE } from "./charts.js";
import { fill, h } from "./dom.js";
import { duration, percent } from "./format.js";
import uPlot from "./vendor/uPlot.esm.js";

const HEIGHT = 230; // CSS pixels
const MOST_BARS = 160; // more steps than that are averaged, or a bar would be thinner than a hair
const RECENT = 20; // steps that the summary speaks of

// Work from the axis upwards, idle time on top: the grey cap is what there is to gain.
const STAGES = [
  { name: "update", label: "update", colour: "c-blue" },
  { name: "values", label: "values", colour: "c-violet" },
  { name: "old-logprobs", label: "old log-probs", colour: "c-pink" },
  { name: "reference", label: "reference", colour: "c-orange" },
  { name: "curriculum", label: "curriculum", colour: "c-red" },
  { name: "sync", label: "weight sync", colour: "c-teal" },
  { name: "evaluate", label: "evaluation", colour: "c-green" },
  { name: "checkpoint", label: "checkpoint", colour: "c-gold" },
  { name: "log", label: "log", colour: "c-brown" },
  { name: "generate-wait", label: "waits for rollouts", colour: "idle-1", isIdle: true },
  { name: "critic-wait", label: "waits for the critic", colour: "idle-2", isIdle: true },
  { name: "other", label: "idle", colour: "idle-3", isIdle: true },
];
const NOT_STAGES = new Set(["step", "total", "pause"]); // an operator's pause says nothing about the step

const wallOf = (row) => row["seconds/step"] - (row["seconds/pause"] ?? 0);

/** The seconds of each stage in a step, together at most the step: of stages that overlap, waiting gives way to work. */
function shares(row, stages) {
  let left = wallOf(row);
  return stages.map(({ name }) => {
    const seconds = Math.min(row[`seconds/${name}`] ?? 0, left);
    left -= seconds;
    return seconds;
  });
}

/** Known stages first, then those that only this run has. */
export function stagesOf(rows) {
  const names = new Set(rows.flatMap((row) => Object.keys(row)).filter((name) => name.startsWith("seconds/")).map((name) => name.slice(8)));
  const known = STAGES.filter(({ name }) => names.has(name));
  const others = [...names].filter((name) => !NOT_STAGES.has(name) && !STAGES.some((stage) => stage.name === name));
  const extra = others.map((name) => ({ name, label: name, colour: "c-pink" }));
  return [...known.filter((stage) => !stage.isIdle), ...extra, ...known.filter((stage) => stage.isIdle)];
}

/** Bars of equally many steps each: {x: middle step, parts: seconds a step by stage}. */
export function bars(rows, stages) {
  const size = Math.max(1, Math.ceil(rows.length / MOST_BARS));
  const groups = Array.from({ length: Math.ceil(rows.length / size) }, (_, i) => rows.slice(i * size, (i + 1) * size));
  return groups.map((group) => {
    const parts = group.map((row) => shares(row, stages));
    return { x: group[Math.floor(group.length / 2)].step, parts: stages.map((_, i) => parts.reduce((sum, part) => sum + part[i], 0) / group.length) };
  });
}

export class StageTimes {
  #plot = null;
  #stages = [];
  #bars = [];

  constructor(feed, signal) {
    this.feed = feed;
    this.legend = h("div.legend");
    this.summary = h("p");
    this.host = h("div.plot", { role: "img" });
    this.element = h("figure.chart.wide", {}, h("figcaption", {}, h("h3", {}, "Where a step's time goes"), this.summary), this.legend, this.host);
    const observer = new ResizeObserver(() => this.#plot && this.#plot.setSize({ width: this.host.clientWidth, height: HEIGHT }));
    observer.observe(this.host);
    signal.addEventListener("abort", () => (observer.disconnect(), this.#plot?.destroy()), { once: true });
    document.addEventListener("themechange", () => this.draw(), { signal });
    feed.addEventListener("rows", () => this.draw(), { signal });
    this.draw();
  }

  draw() {
    const rows = this.feed.rows.steps;
    this.element.hidden = rows.length === 0;
    if (rows.length === 0) return;
    this.#stages = stagesOf(rows);
    this.#bars = bars(rows, this.#stages);
    this.#plot?.destroy(); // the stages can change with any row, and a few hundred bars draw in a millisecond
    const top = this.#bars.map(() => 0);
    const stacked = this.#stages.map((_, i) => this.#bars.map((bar, n) => (top[n] += bar.parts[i])));
    // Each column reaches down to zero, so the tallest is drawn first and the others over it.
    this.#plot = new uPlot(this.#options(), [this.#bars.map((bar) => bar.x), ...stacked.reverse()], this.host);
    this.#tell(null);
    this.#summarise(rows.slice(-RECENT));
  }

  #options() {
    const bar = uPlot.paths.bars({ size: [0.9, 60], align: 0 });
    return {
      width: this.host.clientWidth || 320,
      height: HEIGHT,
      padding: [10, 8, 0, 0],
      legend: { show: false },
      cursor: { points: { show: false }, drag: { x: false, y: false }, y: false, sync: { key: `job-${this.feed.id}`, setSeries: false } },
      scales: { x: { time: false, range: (plot, low, high) => [low - 1, high + 1] }, y: { range: (plot, low, high) => [0, (high || 1) * 1.06] } },
      axes: [axis({ size: 28, incrs: WHOLE }), axis({ size: 52, values: (plot, ticks) => ticks.map((tick) => `${tick} s`) })],
      series: [{}, ...this.#stages.toReversed().map(({ colour }) => ({ fill: ink(colour), stroke: ink(colour), width: 0, paths: bar, points: { show: false } }))],
      hooks: { setCursor: [(plot) => this.#tell(plot.cursor.idx)] },
    };
  }

  #tell(index) {
    const isAway = index === null || index === undefined;
    const bar = this.#bars[isAway ? this.#bars.length - 1 : index];
    const figures = this.#stages.map((stage, i) => ({ ...stage, figure: duration(bar.parts[i]) }));
    fill(this.legend, figures.map(key), isAway ? null : h("span.where", {}, `step ${bar.x}`));
    if (isAway) this.host.setAttribute("aria-label", `Stage times of the newest step: ${figures.map(({ label, figure }) => `${label} ${figure}`).join(", ")}`);
  }

  #summarise(rows) {
    const wall = rows.reduce((sum, row) => sum + wallOf(row), 0);
    const idle = rows.reduce((sum, row) => sum + shares(row, this.#stages).reduce((part, seconds, i) => part + (this.#stages[i].isIdle ? seconds : 0), 0), 0);
    this.summary.textContent = `Last ${rows.length === 1 ? "step" : `${rows.length} steps`}: ${duration(wall / rows.length)} each, learner idle ${percent(idle / wall, 0)} of it.`;
  }
}
