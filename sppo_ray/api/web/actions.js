// What an operator can do to a running job: scale, pause, resume, checkpoint, stop. Each asks first.
import { api } from "./api.js";
import { ask, toast } from "./dialogs.js";
import { button, fillOnChange, h } from "./dom.js";
import { FINAL } from "./feed.js";

const MOST_WORKERS = 1024;

const ACTIONS = {
  scale: (job) => ({
    title: "Scale rollout workers",
    text: "New workers start now and take work after a verified weight sync; surplus ones hand back their prompts and leave.",
    confirm: "Scale",
    field: { label: "Rollout workers", type: "number", min: "1", max: String(MOST_WORKERS), value: String(job.wanted_workers ?? job.workers.length) },
    run: (value) => api.patch(job.id, { rollout_workers: Number(value) }),
    done: (value) => `Asked for ${value} rollout workers`,
  }),
  pause: (job) => ({
    title: "Pause this job?",
    text: "It finishes the step under way and then holds its workers until it is resumed.",
    confirm: "Pause",
    run: () => api.patch(job.id, { paused: true }),
    done: () => "Asked to pause",
  }),
  resume: (job) => ({
    title: "Resume this job?",
    text: "It goes on with the next step.",
    confirm: "Resume",
    run: () => api.patch(job.id, { paused: false }),
    done: () => "Asked to resume",
  }),
  checkpoint: (job) => ({
    title: "Take a checkpoint now?",
    text: "It is written after the step under way, beside those that the recipe asks for.",
    confirm: "Take checkpoint",
    run: () => api.checkpoint(job.id),
    done: () => "Asked for a checkpoint",
  }),
  stop: (job) => ({
    title: "Stop this job?",
    text: "It ends after the step under way, writes a checkpoint and can be resumed later.",
    confirm: "Stop job",
    danger: true,
    run: () => api.stop(job.id),
    done: () => "Asked to stop",
  }),
};

/** The buttons for the job of `feed`, as its state allows. */
export function actionButtons(feed, signal) {
  const element = h("div.actions", { role: "group", "aria-label": "Actions" });
  const act = (name) => {
    const { run, done, ...spec } = ACTIONS[name](feed.job);
    ask(spec, async (value) => {
      await run(value);
      toast(done(value));
      feed.refresh().catch(() => {}); // the stream brings it anyway
    });
  };
  const draw = () => fillOnChange(element, feed.job.state, () => possible(feed.job.state).map((name) => one(name, act)));
  feed.addEventListener("job", draw, { signal });
  return element;
}

function possible(state) {
  if (FINAL.has(state)) return [];
  if (state === "STOPPING" || state === "PENDING") return state === "PENDING" ? ["stop"] : [];
  return ["scale", state === "PAUSED" ? "resume" : "pause", "checkpoint", "stop"];
}

const one = (name, act) => button(name[0].toUpperCase() + name.slice(1), () => act(name), { class: name === "stop" ? "danger" : "" });
