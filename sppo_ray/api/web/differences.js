// The settings in which runs differ, as a table.
import { api } from "./api.js";
import { h, notice } from "./dom.js";

/** {"loop.steps": 60, ...}; a list is one setting. */
export function flat(tree, prefix = "") {
  return Object.entries(tree).flatMap(([key, value]) => {
    const name = prefix ? `${prefix}.${key}` : key;
    const isSection = value !== null && typeof value === "object" && !Array.isArray(value) && Object.keys(value).length > 0;
    return isSection ? flat(value, name) : [[name, value]];
  });
}

/** [[name, [value of each tree]], ...] of the settings that are not the same in all `trees`. */
export function differences(trees) {
  const flats = trees.map((tree) => new Map(flat(tree)));
  const names = [...new Set(flats.flatMap((settings) => [...settings.keys()]))].sort();
  const rows = names.map((name) => [name, flats.map((settings) => settings.get(name))]);
  return rows.filter(([, values]) => new Set(values.map((value) => JSON.stringify(value))).size > 1);
}

/** The settings of jobs, each loaded once; null where there are none. */
export class Settings {
  #known = new Map();

  constructor(signal) {
    this.signal = signal;
  }

  async of(ids) {
    const load = async (id) => {
      if (this.#known.has(id)) return;
      const tree = await api.config(id, this.signal).then(({ settings }) => settings, (problem) => this.#none(problem));
      if (tree) this.#known.set(id, tree);
    };
    await Promise.all(ids.map(load));
    return ids.map((id) => this.#known.get(id) ?? null);
  }

  #none(problem) {
    if (problem.status === 404) return null; // not written yet
    throw problem;
  }
}

const shown = (value) => (value === undefined ? "–" : typeof value === "string" ? value : JSON.stringify(value));

/** The panel below the compared curves. `trees` are in the order of `ids`. */
export function differencesPanel(ids, trees) {
  const there = ids.filter((_, i) => trees[i]);
  const title = h("h2", {}, "Settings that differ");
  if (there.length < 2) return null;
  const rows = differences(trees.filter(Boolean));
  if (!rows.length) return h("section.card.panel.differences", {}, title, notice("empty", "None: these runs have the same settings"));
  const head = h("tr", {}, h("th", { scope: "col" }, "Setting"), there.map((id) => h("th", { scope: "col" }, id)));
  const row = ([name, values]) => h("tr", {}, h("th.mono", { scope: "row" }, name), values.map((value) => h("td.mono", {}, shown(value))));
  const table = h("table", {}, h("caption.sr", {}, "Settings that differ"), h("thead", {}, head), h("tbody", {}, rows.map(row)));
  return h("section.card.panel.differences", {}, title, h("div.scroll", { tabindex: "0", role: "region", "aria-label": "Settings that differ" }, table));
}
