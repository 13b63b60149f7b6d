// Two tabs of plain text: the job's log as it grows, and the settings that it runs with.
import { api, send } from "./api.js";
import { button, fill, h, notice, problemNotice } from "./dom.js";
import { FINAL } from "./feed.js";

const TAIL = 1000; // lines at first
const MOST = 400_000; // characters kept

export class LogText {
  constructor(feed, signal) {
    this.text = h("pre.log", { tabindex: "0", "aria-label": "Log" });
    this.element = h("section.card", { "aria-label": "Log" }, notice("loading", "Loading the log"));
    this.#read(feed, signal).catch((problem) => signal.aborted || this.#fail(problem));
  }

  async #read(feed, signal) {
    const isOver = FINAL.has(feed.job.state);
    const path = `jobs/${encodeURIComponent(feed.id)}/logs?tail=${TAIL}${isOver ? "" : "&follow=true"}`;
    const response = await send(path, { signal, headers: { Accept: "text/plain" } });
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    fill(this.element, this.text);
    for (let part = await reader.read(); !part.done; part = await reader.read()) this.#append(part.value);
    if (!this.text.textContent) fill(this.element, notice("empty", "The log is empty"));
  }

  #append(text) {
    const isAtEnd = this.text.scrollHeight - this.text.scrollTop - this.text.clientHeight < 40;
    this.text.textContent = (this.text.textContent + text).slice(-MOST);
    if (isAtEnd) this.text.scrollTop = this.text.scrollHeight;
  }

  #fail(problem) {
    fill(this.element, problem.status === 404 ? notice("empty", "No log", problem.detail) : problemNotice(problem));
  }
}

export class SettingsText {
  constructor(feed, signal) {
    this.element = h("section.card", { "aria-label": "Config" }, notice("loading", "Loading the settings"));
    const show = ({ yaml }) => {
      const copy = button("Copy", () => navigator.clipboard.writeText(yaml).then(() => (copy.textContent = "Copied")));
      fill(this.element, h("div.row.end", {}, copy), h("pre.config", { tabindex: "0", "aria-label": "Settings" }, yaml));
    };
    api.config(feed.id, signal).then(show, (problem) => signal.aborted || fill(this.element, problemNotice(problem)));
  }
}
