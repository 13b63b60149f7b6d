// What the workers of each role were busy with: one bar of stacked shares a role, the mean of the last steps.
import { key } from "./charts.js";
import { h, notice } from "./dom.js";
import { percent, plural } from "./format.js";

const RECENT = 20; // steps
const ROLES = ["rollout", "learner", "critic", "reference", "reward", "driver"];
const LABELS = {
  generate: "c-orange",
  train: "c-blue",
  critic: "c-violet",
  reference: "c-pink",
  reward: "c-green",
  driver: "c-brown",
  sync: "c-teal",
  checkpoint: "c-gold",
  wait: "idle-1",
};

/** [role, [[label, share], ...]] of each role that the rows tell of. */
export function timesOf(rows) {
  const recent = rows.steps.filter((row) => "time/driver/wait" in row).slice(-RECENT);
  const mean = (name) => recent.reduce((sum, row) => sum + (row[name] ?? 0), 0) / recent.length;
  const parts = (role) => Object.keys(LABELS).map((label) => [label, mean(`time/${role}/${label}`)]).filter(([, share]) => share > 0);
  return { steps: recent.length, roles: recent.length ? ROLES.map((role) => [role, parts(role)]).filter(([, shares]) => shares.length) : [] };
}

export function workerTimes({ steps, roles }) {
  if (!steps) return notice("empty", "No step yet");
  const says = (shares) => shares.map(([label, share]) => `${label} ${percent(share, 0)}`).join(", ");
  const segment = ([label, share]) => h("span", { style: { width: `${100 * share}%`, background: `var(--${LABELS[label]})` } });
  const bar = ([role, shares]) => h("li", { title: says(shares) }, h("span.age", {}, role), h("span.bar", { role: "img", "aria-label": `${role}: ${says(shares)}` }, shares.map(segment)));
  const shown = Object.keys(LABELS).filter((label) => roles.some(([, shares]) => shares.some(([name]) => name === label)));
  const legend = h("div.legend", {}, shown.map((label) => key({ label, colour: LABELS[label] })));
  return [h("p.muted", {}, `Shares of each worker's seconds, last ${plural(steps, "step")}.`), h("ul.ages.times", {}, roles.map(bar)), legend];
}
