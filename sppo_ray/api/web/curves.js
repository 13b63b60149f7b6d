// The curves of a job: which figures stand together, and what a reader should see in them.
import { Chart } from "./charts.js";
import { fillOnChange, h, notice } from "./dom.js";
import { FINAL } from "./feed.js";
import { percent } from "./format.js";
import { ChosenCharts, COLOURS } from "./metric_choice.js";
import { AXES } from "./rows.js";

const share = (value) => percent(value, value > 0 && value < 0.01 ? 2 : 0);

/** `names`: the metric of each series, in order. */
const CURVES = [
  {
    title: "Reward, in training and held out",
    hint: "Held-out with its 95% interval: the number that counts.",
    names: ["reward/mean", "eval/accuracy_high", "eval/accuracy_low", "eval/accuracy"],
    series: [
      { label: "reward", colour: "c-blue", width: 1.25 },
      { label: "high", colour: "c-green", hidden: true },
      { label: "low", colour: "c-green", hidden: true },
      { label: "held-out", colour: "c-green", width: 2.25, points: true, format: percent },
    ],
    bands: [{ series: [2, 3], colour: "c-green" }],
    range: [0, 1],
  },
  {
    title: "Value mean",
    hint: "A calibrated critic follows the reward.",
    names: ["reward/mean", "value/mean"],
    series: [
      { label: "reward", colour: "c-blue", width: 1.25 },
      { label: "value", colour: "c-orange", width: 2 },
    ],
    range: [0, 1],
  },
  {
    title: "Brier score of the value",
    hint: "Below the best constant, the critic knows more than the mean.",
    names: ["value/brier", "value/brier_constant"],
    series: [
      { label: "critic", colour: "c-orange", width: 2 },
      { label: "best constant", colour: "c-grey", dash: [5, 4] },
    ],
    fromZero: true,
  },
  {
    title: "Clip fraction",
    hint: "Share of tokens whose ratio left the trust region.",
    names: ["policy/clip_fraction_low", "policy/clip_fraction_high"],
    isShare: true,
    format: share,
    series: [
      { label: "low", colour: "c-blue" },
      { label: "high", colour: "c-red" },
    ],
    fromZero: true,
  },
  {
    title: "Explained variance of the reward",
    hint: "1 is a perfect value, 0 no better than the mean reward.",
    names: ["value/explained_variance", "value/token_explained_variance", "tracker/explained_variance"],
    series: [
      { label: "value", colour: "c-orange", width: 2 },
      { label: "token values", colour: "c-gold" },
      { label: "past rate", colour: "c-teal" },
    ],
  },
  {
    title: "Effective sample size",
    hint: "What the tokens are worth after weighting by their ratio, and the share without a gradient.",
    names: ["policy/effective_sample_size", "policy/masked_fraction"],
    series: [
      { label: "effective", colour: "c-blue", width: 2 },
      { label: "masked", colour: "c-red" },
    ],
    range: [0, 1],
  },
  {
    title: "KL to the sampling policy",
    hint: "k3 estimate in nats a token.",
    names: ["policy/approx_kl_k3"],
    series: [{ label: "KL", colour: "c-violet" }],
    fromZero: true,
  },
  {
    title: "Response length",
    hint: "Tokens, stop token included.",
    names: ["response/length_mean", "response/length_max"],
    series: [
      { label: "mean", colour: "c-teal", width: 2 },
      { label: "longest", colour: "c-grey", dash: [5, 4] },
    ],
    fromZero: true,
  },
  {
    title: "Entropy",
    hint: "Of the sampled tokens' distributions, in nats.",
    names: ["policy/entropy"],
    series: [{ label: "entropy", colour: "c-gold" }],
    fromZero: true,
  },
  {
    title: "Gradient norm",
    hint: "Before clipping.",
    names: ["policy/grad_norm", "critic/grad_norm"],
    series: [
      { label: "policy", colour: "c-blue" },
      { label: "critic", colour: "c-orange" },
    ],
    fromZero: true,
  },
];

export class Curves {
  constructor(feed, signal) {
    this.feed = feed;
    this.axis = "step";
    this.chosen = []; // names of metrics
    const sync = `job-${feed.id}`;
    this.charts = CURVES.map((curve) => ({ curve, chart: new Chart({ ...curve, sync }, signal) }));
    this.nothing = h("div");
    const own = h("div.charts.own");
    const make = (name, end) => new Chart({ title: name, sync, series: [{ label: "value", colour: COLOURS[this.chosen.indexOf(name) % COLOURS.length] }] }, end);
    this.ownCharts = new ChosenCharts(own, make, signal);
    this.element = h("div", {}, this.nothing, own, h("div.charts", {}, this.charts.map(({ chart }) => chart.element)));
    feed.addEventListener("job", () => this.#explain(), { signal });
    feed.addEventListener("rows", () => this.draw(), { signal });
    this.draw();
  }

  draw() {
    const axis = AXES[this.axis];
    const rows = this.feed.rows.all.filter((row) => axis.of(row) !== null);
    const x = rows.map(axis.of);
    const column = (name) => rows.map((row) => row[name] ?? null);
    for (const { curve, chart } of this.charts) chart.update(x, curve.names.map(column), axis);
    for (const [name, chart] of this.ownCharts.show(this.chosen)) chart.update(x, [column(name)], axis);
    this.#explain();
  }

  #explain() {
    const { job, rows } = this.feed;
    fillOnChange(this.nothing, [rows.size === 0, job.state, job.run_id], () => (rows.size === 0 ? whyEmpty(job) : null));
  }
}

function whyEmpty(job) {
  if (!job.run_id) return notice("empty", "No curves", "This job's run directory is not below the directory that this server shows (--runs), so its records are not here.");
  if (!FINAL.has(job.state)) return notice("empty", "No curves yet", "They begin with the first evaluation or step.");
  return notice("empty", "No curves", "This run ended before its first step.");
}
