// Lets the reader add any recorded metric as a chart. The choice is part of the address, so that it can be shared.
import { button, fill, fillOnChange, h } from "./dom.js";

const MOST = 24; // charts
export const COLOURS = ["c-blue", "c-orange", "c-green", "c-violet", "c-red", "c-teal", "c-gold", "c-pink"];

/** The names in the address's `metrics`. */
export const chosenIn = (params) => [...new Set((params.get("metrics") ?? "").split(",").filter(Boolean).map(decodeURIComponent))].slice(0, MOST);

export const joined = (names) => names.map(encodeURIComponent).join(",");

export class MetricChoice {
  /** `onChange(names)` is called with the new choice. */
  constructor(onChange) {
    this.onChange = onChange;
    this.chosen = [];
    this.names = [];
    this.list = h("datalist#metric-names");
    this.field = h("input", { list: "metric-names", placeholder: "Add a metric", "aria-label": "Add a metric", autocomplete: "off", spellcheck: "false", on: { input: () => this.#add(), change: () => this.#add() } });
    this.chips = h("span.row", { role: "group", "aria-label": "Chosen metrics" });
    this.element = h("div.metric-choice.row", {}, this.field, this.list, this.chips);
  }

  draw(names, chosen) {
    Object.assign(this, { names, chosen });
    this.element.hidden = names.length === 0 && chosen.length === 0;
    const free = names.filter((name) => !chosen.includes(name));
    fillOnChange(this.list, free, () => free.map((name) => h("option", { value: name })));
    fillOnChange(this.chips, chosen, () => chosen.map((name) => this.#chip(name)));
  }

  #chip(name) {
    const remove = () => this.onChange(this.chosen.filter((one) => one !== name));
    return button(name, remove, { class: "metric mono", "aria-label": `Remove ${name}` }, h("span", { "aria-hidden": "true" }, "×"));
  }

  #add() {
    const name = this.field.value.trim();
    if (!this.names.includes(name) || this.chosen.includes(name)) return;
    this.field.value = "";
    this.onChange([...this.chosen, name].slice(-MOST));
  }
}

/** Keeps one chart a chosen metric in `host`: `make(name, signal)` builds it, and one that is no longer chosen is destroyed. */
export class ChosenCharts {
  #charts = new Map(); // name -> {chart, controller}

  constructor(host, make, signal) {
    Object.assign(this, { host, make });
    signal.addEventListener("abort", () => this.show([]), { once: true });
  }

  /** Returns [name, chart] of each. */
  show(names) {
    for (const [name, { controller }] of this.#charts) {
      if (names.includes(name)) continue;
      controller.abort();
      this.#charts.delete(name);
    }
    for (const name of names) {
      if (this.#charts.has(name)) continue;
      const controller = new AbortController();
      this.#charts.set(name, { chart: this.make(name, controller.signal), controller });
    }
    const charts = names.map((name) => [name, this.#charts.get(name).chart]);
    const elements = charts.map(([, { element }]) => element);
    if (elements.length !== this.host.children.length || elements.some((element, i) => element !== this.host.children[i])) fill(this.host, elements);
    return charts;
  }
}
