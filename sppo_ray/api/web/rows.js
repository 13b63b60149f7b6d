// The rows of metrics.jsonl as columns. A step has up to two: what it trained and, now and then, its evaluation.

const NO_METRICS = new Set(["step", "time"]);

export class Rows {
  #byStep = new Map();
  #sorted = null;

  /** Merges `rows`; a step that comes again replaces its figures. Returns whether anything is new. */
  add(rows) {
    let isNew = false;
    for (const { nonfinite, ...row } of rows) {
      if (typeof row.step !== "number") continue;
      const known = this.#byStep.get(row.step);
      isNew ||= !known || Object.keys(row).some((name) => known[name] !== row[name]);
      this.#byStep.set(row.step, { ...known, ...row });
    }
    if (isNew) this.#sorted = null;
    return isNew;
  }

  get size() {
    return this.#byStep.size;
  }

  /** By step, ascending. */
  get all() {
    this.#sorted ??= [...this.#byStep.values()].sort((a, b) => a.step - b.step);
    return this.#sorted;
  }

  /** The rows of training steps: an evaluation before training has no step of its own. */
  get steps() {
    return this.all.filter((row) => "seconds/step" in row);
  }

  column(name) {
    return this.all.map((row) => row[name] ?? null);
  }

  /** The newest figure of that name, else null. */
  last(name) {
    return this.all.findLast((row) => row[name] !== null && row[name] !== undefined)?.[name] ?? null;
  }

  first(name) {
    return this.all.find((row) => row[name] !== null && row[name] !== undefined)?.[name] ?? null;
  }

  /** What eval/accuracy is: with partial rewards it is no share of solved responses. */
  get heldOut() {
    const isPartial = (row) => Math.abs((row["eval/pass@1"] ?? row["eval/accuracy"]) - row["eval/accuracy"]) > 1e-9;
    return this.all.some(isPartial) ? "mean reward" : "accuracy";
  }

  /** The sorted names of all metrics. */
  get names() {
    return [...new Set(this.all.flatMap((row) => Object.keys(row)))].filter((name) => !NO_METRICS.has(name)).sort();
  }
}

/** The x axes that a curve can be drawn against: how to read one off a row, and how to say it. */
export const AXES = {
  step: { label: "step", isWhole: true, of: (row) => row.step, show: (x) => `step ${x}` },
  minutes: { label: "minutes of training", of: (row) => minutes(row), show: (x) => `${x.toFixed(1)} min` },
};

const minutes = (row) => (typeof row["seconds/total"] === "number" ? row["seconds/total"] / 60 : null);
