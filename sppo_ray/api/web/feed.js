// One job as it stands and as it goes on: its record, its metrics row by row, its events. Tells listeners of each change.
import { api } from "./api.js";
import { Rows } from "./rows.js";
import { follow } from "./stream.js";

export const FINAL = new Set(["SUCCEEDED", "STOPPED", "FAILED", "LOST"]);
const REFRESH = 3000; // ms between two looks at the record: "heard from" and time left are no news to the stream
const MOST_EVENTS = 500;

/** Events: "job", "rows", "events", "connection" (detail: live | retrying | closed | loading). */
export class Feed extends EventTarget {
  constructor(id, signal) {
    super();
    this.id = id;
    this.signal = signal;
    this.job = null;
    this.rows = new Rows();
    this.events = []; // newest first
    this.connection = "loading";
    this.isEnded = false;
  }

  /** Loads what there is, then goes on in the background. Raises Problem when there is no such job. */
  async start() {
    this.job = await api.job(this.id, this.signal);
    this.#tell("job");
    this.#followEvents(); // the stream begins with everything recorded so far
    this.#refreshNowAndThen();
  }

  async refresh() {
    this.job = await api.job(this.id, this.signal);
    this.#tell("job");
  }

  #followEvents() {
    follow(api.eventsPath(this.id), {
      signal: this.signal,
      isOver: () => this.isEnded || FINAL.has(this.job.state),
      onState: (state) => {
        this.connection = state;
        this.#tell("connection");
      },
      onEvent: (kind, data) => this.#take(kind, data),
    });
  }

  #take(kind, data) {
    if (kind === "step" || kind === "evaluation") {
      if (this.rows.add([data])) this.#tell("rows");
    } else if (kind === "event") {
      if (this.events.some((known) => known.time === data.time && known.message === data.message)) return;
      this.events = [data, ...this.events].sort((a, b) => b.time - a.time).slice(0, MOST_EVENTS);
      this.#tell("events");
    } else if (kind === "state") {
      this.job = data;
      this.#tell("job");
    } else if (kind === "reset") {
      this.rows = new Rows(); // taken up again at an earlier step: the rows follow anew
    } else if (kind === "end") {
      this.isEnded = true;
    }
  }

  #refreshNowAndThen() {
    const timer = setInterval(() => {
      if (document.hidden || this.isEnded || FINAL.has(this.job.state)) return;
      this.refresh().catch(() => {}); // the stream says that the server is away
    }, REFRESH);
    this.signal.addEventListener("abort", () => clearInterval(timer), { once: true });
  }

  // Many rows can come in one go: one drawing a frame is enough.
  #tell(what) {
    this.waiting ??= new Set();
    if (this.waiting.size === 0) requestAnimationFrame(() => this.#flush());
    this.waiting.add(what);
  }

  #flush() {
    const kinds = [...this.waiting];
    this.waiting.clear();
    if (!this.signal.aborted) for (const kind of kinds) this.dispatchEvent(new Event(kind));
  }
}
