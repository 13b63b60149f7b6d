// The first tab: curves and stage times, and beside them the fleet, worker time, staleness, events, checkpoints and commands.
import { Curves } from "./curves.js";
import { button, fillOnChange, h, notice } from "./dom.js";
import { downloadsPanel } from "./downloads.js";
import { FINAL } from "./feed.js";
import { bytes, clock, duration, moment, number, percent, whole } from "./format.js";
import { chosenIn, joined, MetricChoice } from "./metric_choice.js";
import { AXES } from "./rows.js";
import { StageTimes } from "./stages.js";
import { healthChip } from "./state.js";
import { timesOf, workerTimes } from "./times.js";

const MOST_SHOWN = 100; // events

export class Overview {
  constructor(feed, signal, target) {
    this.feed = feed;
    this.curves = new Curves(feed, signal);
    this.choice = new MetricChoice((names) => (location.hash = `#/jobs/${encodeURIComponent(feed.id)}${names.length ? `?metrics=${joined(names)}` : ""}`));
    const axes = h("div.filters.small", { role: "group", "aria-label": "Horizontal axis" });
    const choose = (axis) => ((this.curves.axis = axis), this.curves.draw(), drawAxes());
    const drawAxes = () => axes.replaceChildren(...Object.keys(AXES).map((axis) => button(AXES[axis].label, () => choose(axis), { "aria-pressed": String(axis === this.curves.axis) })));
    drawAxes();
    const hint = h("p.muted.zoom-hint", {}, "Drag to zoom, double-click to reset.");
    const left = h("section.curves", { "aria-label": "Curves" }, h("div.section-head", {}, h("h2", {}, "Curves"), axes, hint), this.choice.element, this.curves.element, new StageTimes(feed, signal).element);
    const right = h("div.rail", {}, ...PANELS.map((spec) => panel(feed, signal, spec)), downloadsPanel(feed, signal));
    this.element = h("div.overview", {}, left, right);
    const tellHead = () => {
      for (const part of [axes, hint]) part.hidden = feed.rows.size === 0;
      this.choice.draw(feed.rows.names, this.curves.chosen);
    };
    feed.addEventListener("rows", tellHead, { signal });
    this.tellHead = tellHead;
    this.update(target);
  }

  update({ params }) {
    this.curves.chosen = chosenIn(params);
    this.curves.draw();
    this.tellHead();
  }
}

const PANELS = [
  { title: "Fleet", on: ["job", "rows"], of: ({ job, rows }) => ({ workers: job.workers, pending: job.pending, version: job.policy_version, busy: busyOf(job, rows) }), draw: fleet },
  { title: "Worker time", on: ["rows"], of: ({ rows }) => timesOf(rows), draw: workerTimes },
  { title: "Staleness", on: ["job"], of: ({ job }) => job.staleness ?? {}, draw: staleness },
  { title: "Held-out evaluations", on: ["rows"], of: ({ rows }) => ({ figure: rows.heldOut, list: evaluationsOf(rows) }), draw: evaluations },
  { title: "Events", on: ["events"], of: ({ events }) => events.slice(0, MOST_SHOWN), draw: events },
  { title: "Commands", on: ["job"], of: ({ job }) => (job.commands ?? []).toReversed(), draw: commands, hideEmpty: true },
  { title: "Checkpoints", on: ["job", "events"], of: checkpointsOf, draw: checkpoints },
];

function panel(feed, signal, { title, on, of, draw, hideEmpty }) {
  const body = h("div");
  const element = h("section.card.panel", {}, h("h2", {}, title), body);
  const refresh = () => {
    const content = of(feed);
    element.hidden = Boolean(hideEmpty && content.length === 0);
    fillOnChange(body, content, () => draw(content));
  };
  for (const kind of on) feed.addEventListener(kind, refresh, { signal });
  refresh();
  return element;
}

const busyOf = (job, rows) => Object.fromEntries(job.workers.map(({ name }) => [name, rows.last(`busy/${name}`)]));

function fleet({ workers, pending, version, busy }) {
  if (!workers.length && !pending.length) return notice("empty", "No rollout workers yet");
  const isBusyKnown = Object.values(busy).some((share) => share !== null);
  const heads = ["Worker", "Version", "Restarts", "In flight", ...(isBusyKnown ? ["Busy"] : [])];
  const head = h("tr", {}, heads.map((name, i) => h("th", { scope: "col", class: i ? "num" : "" }, name)));
  const row = (worker) =>
    h(
      "tr",
      {},
      h("th", { scope: "row" }, h("div.worker", {}, h("span.mono", {}, worker.name), healthChip(worker.state))),
      h("td.num", { class: isBehind(worker, version) ? "behind" : "" }, whole(worker.version)),
      h("td.num", {}, whole(worker.restarts)),
      h("td.num", {}, whole(worker.in_flight)),
      isBusyKnown && h("td.num", {}, percent(busy[worker.name], 0)),
    );
  const waits = pending.map((one) => h("li", {}, h("span.mono", {}, one.worker), ` waits for ${one.waiting_for}`, one.since ? ` for ${duration(Date.now() / 1000 - one.since)}` : ""));
  const table = h("div.scroll", { tabindex: "0", role: "region", "aria-label": "Fleet" }, h("table.fleet", {}, h("caption.sr", {}, "Rollout workers"), h("thead", {}, head), h("tbody", {}, workers.map(row))));
  return [table, waits.length ? h("ul.pending", {}, waits) : null];
}

// A new engine has no version before its first weight sync.
const isBehind = (worker, version) => worker.version !== null && worker.version !== version;

function staleness(ages) {
  const entries = Object.entries(ages).map(([age, count]) => [Number(age), count]).sort(([a], [b]) => a - b);
  const most = Math.max(...entries.map(([, count]) => count), 1);
  if (!entries.length) return notice("empty", "No step yet");
  const bar = ([age, count]) => h("li", {}, h("span.age", {}, whole(age)), h("span.bar", {}, h("span", { style: { width: `${(100 * count) / most}%` } })), h("span.num", {}, whole(count)));
  return [h("p.muted", {}, "Versions behind the learner, samples of the newest step."), h("ul.ages", {}, entries.map(bar))];
}

const evaluationsOf = (rows) => rows.all.filter((row) => typeof row["eval/accuracy"] === "number").map((row) => [row.step, row["eval/accuracy"], row["eval/accuracy_low"], row["eval/accuracy_high"], row["eval/response_length"]]).toReversed();

function evaluations({ figure, list }) {
  if (!list.length) return notice("empty", "No evaluation yet");
  const heads = ["Step", `${figure[0].toUpperCase()}${figure.slice(1)}`, "95% interval", "Tokens"];
  const head = h("tr", {}, heads.map((name, i) => h("th", { scope: "col", class: i ? "num" : "" }, name)));
  const row = ([step, accuracy, low, high, length]) => h("tr", {}, h("th", { scope: "row" }, whole(step)), h("td.num", {}, h("b", {}, percent(accuracy))), h("td.num", {}, `${percent(low)} to ${percent(high)}`), h("td.num", {}, number(length)));
  return h("div.scroll.tall", { tabindex: "0", role: "region", "aria-label": "Held-out evaluations" }, h("table", {}, h("caption.sr", {}, "Held-out evaluations, newest first"), h("thead", {}, head), h("tbody", {}, list.map(row))));
}

function events(list) {
  if (!list.length) return notice("empty", "Nothing happened yet");
  const line = ({ time, kind, message }) => h("li", { dataset: { kind } }, h("time", { title: moment(time) }, clock(time)), h("b", {}, kind), h("span", {}, message));
  return h("ol.events", { role: "log", tabindex: "0", "aria-label": "Events, newest first" }, list.map(line));
}

function commands(list) {
  const what = ({ kind, rollout_workers: n }) => (kind === "scale" ? `scale to ${n}` : kind);
  const line = (command) => h("li", { dataset: { kind: command.outcome } }, h("time", {}, clock(command.time)), h("b", {}, what(command)), h("span", {}, [command.outcome, command.detail].filter(Boolean).join(": ")));
  return h("ol.events", {}, list.map(line));
}

/** The job's checkpoints, newest first. An event can tell of one up to some seconds before the job's record does. */
function checkpointsOf({ job, events }) {
  const newest = job.checkpoints.at(-1)?.step ?? 0;
  const written = events.filter(({ kind }) => kind === "checkpoint").map(({ time, message }) => ({ step: Number(/\d+$/.exec(message)?.[0]), time, bytes: null }));
  const isNew = ({ step }, i) => step > newest && step <= job.step && written.findIndex((one) => one.step === step) === i;
  const ahead = FINAL.has(job.state) ? [] : written.filter(isNew);
  return { list: [...ahead, ...job.checkpoints.toReversed()], isDeleted: written.length > 0 };
}

function checkpoints({ list, isDeleted }) {
  if (!list.length) return notice("empty", isDeleted ? "Those that this run wrote are deleted" : "No checkpoint yet");
  const row = ({ step, time, bytes: size }) => h("tr", {}, h("th", { scope: "row" }, `Step ${whole(step)}`), h("td", {}, moment(time)), h("td.num", {}, bytes(size)));
  return h("table", {}, h("caption.sr", {}, "Checkpoints"), h("tbody", {}, list.map(row)));
}
