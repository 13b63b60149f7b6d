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

const shareOfSteps = (job) => (job.steps ? job.step / job.steps : 0);
const shareOfBudget = (job) => (job.budget_s ? job.seconds / job.budget_s : 0);

/** Whether the budget of seconds, not the number of steps, is what ends the run at its present pace. */
export const endsByBudget = (job) => Boolean(job.budget_s) && shareOfBudget(job) >= shareOfSteps(job);

/** Whether the server has the job's run directory: without it, nothing is known of its steps. */
export const hasRecords = (job) => job.run_id !== null && job.run_id !== undefined;

/** A bar of how much of the run is done, or null without records. One that succeeded is done, however it ended. */
export function progressBar(job) {
  if (!hasRecords(job)) return null;
  const share = job.state === "SUCCEEDED" ? 1 : Math.min(Math.max(shareOfSteps(job), shareOfBudget(job)), 1);
  const props = { role: "progressbar", "aria-valuemin": "0", "aria-valuemax": "100", "aria-valuenow": String(Math.round(100 * share)), "aria-label": "done" };
  return h("div.progress", { ...props, dataset: { state: job.state } }, h("span", { style: { width: `${100 * share}%` } }));
}
