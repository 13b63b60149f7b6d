// How a job's state looks, in the list and at the head of its page: never by colour alone.
import { h } from "./dom.js";

const STATES = {
  PENDING: { mark: "○", tone: "grey", says: "pending" },
  RUNNING: { mark: "●", tone: "blue", says: "running" },
  PAUSED: { mark: "‖", tone: "amber", says: "paused" },
  STOPPING: { mark: "◌", tone: "amber", says: "stopping" },
  SUCCEEDED: { mark: "✓", tone: "green", says: "succeeded" },
  STOPPED: { mark: "■", tone: "grey", says: "stopped" },
  FAILED: { mark: "✕", tone: "red", says: "failed" },
  LOST: { mark: "?", tone: "red", says: "lost" },
};

const HEALTH = {
  PENDING: { mark: "○", tone: "grey" },
  HEALTHY: { mark: "●", tone: "green" },
  SUSPECT: { mark: "▲", tone: "amber" },
  STALE: { mark: "◐", tone: "amber" },
  RESTARTING: { mark: "◌", tone: "amber" },
  DRAINING: { mark: "◑", tone: "amber" },
  RETIRED: { mark: "■", tone: "grey" },
  DEAD: { mark: "✕", tone: "red" },
};

const chip = ({ mark, tone }, says) => h("span.chip", { dataset: { tone } }, h("i", { "aria-hidden": "true" }, mark), says);

export const stateChip = (state) => chip(STATES[state] ?? STATES.PENDING, STATES[state]?.says ?? state.toLowerCase());

export const healthChip = (state) => chip(HEALTH[state] ?? { mark: "○", tone: "grey" }, state.toLowerCase());

/** A bar of steps done. A run that succeeded is done, also when its budget ended before its steps did. */
export function progressBar(job) {
  const total = job.steps ?? 0;
  const share = job.state === "SUCCEEDED" ? 1 : total ? Math.min(job.step / total, 1) : 0;
  const props = { role: "progressbar", "aria-valuemin": "0", "aria-valuemax": String(total), "aria-valuenow": String(job.step), "aria-label": "steps done" };
  return h("div.progress", { ...props, dataset: { state: job.state } }, h("span", { style: { width: `${100 * share}%` } }));
}
