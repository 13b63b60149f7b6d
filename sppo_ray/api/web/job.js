// One job's page: its head (state, progress, key figures, actions) and the tabs below it.
import { actionButtons } from "./actions.js";
import { fill, fillOnChange, h, notice } from "./dom.js";
import { Feed, FINAL } from "./feed.js";
import { ago, compact, DASH, duration, moment, number, percent, plural, whole } from "./format.js";
import { Overview } from "./overview.js";
import { Samples } from "./samples.js";
import { endsByBudget, hasRecords, progressBar, stateChip } from "./state.js";
import { LogText, SettingsText } from "./texts.js";

const TABS = {
  overview: { label: "Overview", View: Overview },
  samples: { label: "Samples", View: Samples },
  logs: { label: "Log", View: LogText },
  config: { label: "Config", View: SettingsText },
};

export class JobView {
  constructor(target, signal) {
    this.target = target;
    this.signal = signal;
    this.feed = new Feed(target.id, signal);
    this.head = h("header.job-head", {}, notice("loading", "Loading the job"));
    this.tabs = h("nav.tabs", { "aria-label": "Parts of this job" });
    this.body = h("div.tab-body");
    this.element = h("div.page", {}, this.head, this.tabs, this.body);
  }

  async start() {
    await this.feed.start();
    this.#drawHead();
    for (const kind of ["job", "connection", "rows"]) this.feed.addEventListener(kind, () => this.#refreshHead(), { signal: this.signal });
    this.isStarted = true;
    this.#openTab();
  }

  update(target) {
    this.target = target;
    if (this.isStarted) this.#openTab();
  }

  #openTab() {
    const name = this.target.tab in TABS ? this.target.tab : "overview";
    const path = `#/jobs/${encodeURIComponent(this.target.id)}`;
    const link = ([key, { label }]) => h("a", { href: key === "overview" ? path : `${path}/${key}`, "aria-current": key === name ? "page" : null }, label);
    fill(this.tabs, Object.entries(TABS).map(link));
    if (this.opened?.name === name) return this.opened.view.update?.(this.target);
    this.opened?.controller.abort();
    const controller = new AbortController();
    this.signal.addEventListener("abort", () => controller.abort(), { once: true, signal: controller.signal });
    const view = new TABS[name].View(this.feed, controller.signal, this.target);
    this.opened = { name, view, controller };
    fill(this.body, view.element);
  }

  #drawHead() {
    this.state = h("span.head-state");
    this.subtitle = h("p.muted.subtitle");
    this.live = h("span.live", { role: "status" });
    this.progress = h("div.head-progress");
    this.figures = h("dl.figures");
    this.alerts = h("div.alerts", { role: "status" });
    this.error = h("div");
    const title = h("div.head-title", {}, h("h1", {}, this.feed.job.run_id ?? this.feed.job.id), this.state, this.live);
    fill(this.head, h("div.head-top", {}, h("div.head-words", {}, title, this.subtitle), actionButtons(this.feed, this.signal)), this.progress, this.alerts, this.error, this.figures);
    this.#refreshHead();
    this.feed.dispatchEvent(new Event("job")); // the buttons draw themselves on it
  }

  #refreshHead() {
    const { job, rows, connection } = this.feed;
    fillOnChange(this.state, job.state, () => stateChip(job.state));
    fillOnChange(this.subtitle, [subtitleOf(job)], () => subtitleOf(job));
    fillOnChange(this.live, [connection, FINAL.has(job.state)], () => connectionText(connection, FINAL.has(job.state)));
    fillOnChange(this.progress, [job.step, job.steps, job.state, progressText(job)], () => [progressBar(job), h("p", {}, progressText(job))]);
    fillOnChange(this.alerts, [job.alerts, job.state], () => alertsOf(job));
    fillOnChange(this.error, job.last_error, () => errorOf(job));
    fillOnChange(this.figures, figuresOf(job, rows), () => figuresOf(job, rows).map(figure));
  }
}

function subtitleOf(job) {
  const seed = job.seed === null || job.seed === undefined ? null : `seed ${job.seed}`;
  const began = job.started ?? job.created;
  return [job.algorithm?.toUpperCase(), job.recipe ?? job.name, seed, began && `started ${moment(began)}`, job.submission_id].filter(Boolean).join(" · ");
}

function connectionText(connection, isFinal) {
  if (isFinal) return null;
  const texts = { live: "live", retrying: "reconnecting", loading: "connecting", closed: "not followed" };
  return h("span", { dataset: { connection } }, texts[connection]);
}

function progressText(job) {
  if (!hasRecords(job)) return [job.phase, job.ended && `ended ${moment(job.ended)}`].filter(Boolean).join(" · ");
  const byBudget = endsByBudget(job);
  const steps = byBudget || !job.steps ? plural(job.step, "step") : `Step ${whole(job.step)} of ${whole(job.steps)}`;
  const spent = byBudget ? `${duration(job.seconds)} of ${duration(job.budget_s)} of training` : FINAL.has(job.state) && job.seconds ? `${duration(job.seconds)} of training` : null;
  if (FINAL.has(job.state)) return [steps, job.ended && `ended ${moment(job.ended)}`, spent].filter(Boolean).join(" · ");
  const now = job.stage && job.stage !== job.phase ? `${job.phase}: ${job.stage}` : job.phase;
  return [steps, spent, job.eta_s && `about ${duration(job.eta_s)} left`, now, job.updated && `heard ${ago(job.updated)}`].filter(Boolean).join(" · ");
}

/** The alarms of guardrails that are up, with what they did to the run. */
function alertsOf({ alerts, state }) {
  if (!alerts?.length) return null;
  const title = state === "PAUSED" ? "Paused by a guardrail: resume or stop the run" : alerts.length > 1 ? `${alerts.length} guardrails are alarmed` : "A guardrail is alarmed";
  return h("section.notice.alarm", {}, h("strong", {}, title), alerts.map(({ message }) => h("p", {}, message)));
}

function errorOf({ last_error: error }) {
  if (!error) return null;
  const stack = error.stack && h("details", {}, h("summary", {}, "Stack"), h("pre", { tabindex: "0" }, error.stack));
  return h("section.notice.error", { role: "alert" }, h("strong", {}, error.actor ? `${error.actor} failed` : "The run failed"), h("p", {}, error.message), stack);
}

const signed = (value, digits = 1) => `${value < 0 ? "−" : "+"}${(100 * Math.abs(value)).toFixed(digits)}`;

/** [label, figure, note] of each; all text, so that a refresh can tell whether anything changed. */
function figuresOf(job, rows) {
  const [low, high, first] = [rows.last("eval/accuracy_low"), rows.last("eval/accuracy_high"), rows.first("eval/accuracy")];
  const accuracy = rows.last("eval/accuracy") ?? job.accuracy; // the rows are ahead of the record
  const gain = accuracy !== null && first !== null ? `${signed(accuracy - first)} points since the start` : null;
  const interval = low !== null && high !== null ? `${percent(low)} to ${percent(high)}` : null;
  const ages = Object.entries(job.staleness ?? {}).map(([age, count]) => [Number(age), count]);
  const samples = ages.reduce((sum, [, count]) => sum + count, 0);
  const age = samples ? ages.reduce((sum, [years, count]) => sum + years * count, 0) / samples : null;
  const healthy = job.workers.filter(({ state }) => state === "HEALTHY").length;
  return [
    [`Held-out ${rows.heldOut}`, percent(accuracy), [interval, gain].filter(Boolean).join(", ")],
    ["Reward", number(job.reward), "mean of the newest step"],
    ["Tokens", job.tokens_per_second ? `${compact(job.tokens_per_second)}/s` : DASH, `${compact(job.tokens)} in ${compact(job.samples)} samples`],
    ["Policy version", whole(job.policy_version), age === null ? "" : `staleness ${number(age)} on average`],
    ["Workers", job.workers.length ? `${healthy} / ${job.wanted_workers ?? job.workers.length}` : DASH, job.pending.length ? `${plural(job.pending.length, "worker")} pending` : "healthy of wanted"],
    ["Restarts", whole(job.restarts), "of workers and the run"],
  ];
}

const figure = ([label, value, note]) => h("div", {}, h("dt", {}, label), h("dd", {}, value), note && h("dd.note", {}, note));
