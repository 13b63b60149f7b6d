// Line charts on uPlot: a card with its title, what it tells, the figures under the cursor, and the canvas.
import { fill, h } from "./dom.js";
import { compact, number } from "./format.js";
import uPlot from "./vendor/uPlot.esm.js";

const HEIGHT = 190; // CSS pixels
const FONT = '11px Inter, system-ui, "Segoe UI", sans-serif';

// Distances between two ticks of steps: there is no half step.
export const WHOLE = [].concat(...Array.from({ length: 8 }, (_, power) => [1, 2, 5].map((digit) => digit * 10 ** power)));

// As many decimals as tell one tick from the next (`step` apart), no more.
const decimals = (step) => step.toFixed(8).replace(/\.?0+$/, "").split(".")[1]?.length ?? 0;
const exponential = (value, step) => [0, 1, 2].map((digits) => value.toExponential(digits)).find((text) => Math.abs(text - value) < step / 100) ?? value.toExponential(2);
export function tick(value, step) {
  if (step < 1e-4) return value === 0 ? "0" : exponential(value, step).replace("e-", "e−");
  return value >= 1e4 ? compact(value) : value.toFixed(decimals(step));
}
const numberTicks = (plot, values, index, space, step) => values.map((value) => tick(value, step));
const shareTicks = (plot, values, index, space, step) => values.map((value) => `${(100 * value).toFixed(decimals(100 * step))}%`);

/** What the style sheet says for this theme: a canvas cannot read custom properties. */
export const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

export const faint = (colour, share) => `color-mix(in srgb, ${colour} ${100 * share}%, transparent)`;

/**
 * One card. `spec`: {title, hint, series: [{label, colour (name of a custom property), width?, dash?, points?, hidden?, format?}],
 * bands?: [{series: [upper, lower], colour}], range?: [min, max], fromZero?, isShare? (ticks in percent), format?, sync?}. `update(x, columns, axis of rows.js)` draws.
 */
export class Chart {
  #plot = null;
  #shown = null; // {x, columns, axis}
  #isZoomed = false;

  constructor(spec, signal) {
    this.spec = { format: number, ...spec };
    this.legend = h("div.legend");
    this.host = h("div.plot", { role: "img" });
    this.element = h("figure.chart", { hidden: true }, h("figcaption", {}, h("h3", {}, spec.title), spec.hint && h("p", {}, spec.hint)), this.legend, this.host);
    const observer = new ResizeObserver(() => this.#resize());
    observer.observe(this.host);
    document.addEventListener("themechange", () => this.#redraw(), { signal });
    signal.addEventListener("abort", () => (observer.disconnect(), this.#plot?.destroy()), { once: true });
  }

  /** Draws the figures. A chart without any is hidden. */
  update(x, columns, axis) {
    const isSameAxis = this.#shown?.axis === axis;
    this.#shown = { x, columns, axis };
    this.element.hidden = columns.every((column) => column.every((value) => value === null));
    if (this.element.hidden) return;
    if (!this.#plot || !isSameAxis) this.#draw();
    else this.#plot.setData([x, ...columns], !this.#isZoomed);
    if (this.#isZoomed) this.#plot.redraw();
    this.#tell(null);
  }

  #redraw() {
    this.#plot?.destroy();
    this.#plot = null;
    if (this.#shown) this.update(this.#shown.x, this.#shown.columns, this.#shown.axis);
  }

  #draw() {
    this.#plot?.destroy();
    this.#isZoomed = false;
    const width = this.host.clientWidth || 320;
    this.#plot = new uPlot(this.#options(width), [this.#shown.x, ...this.#shown.columns], this.host);
  }

  #resize() {
    if (this.#plot && this.host.clientWidth) this.#plot.setSize({ width: this.host.clientWidth, height: HEIGHT });
  }

  #options(width) {
    const { spec } = this;
    return {
      width,
      height: HEIGHT,
      padding: [10, 8, 0, 0],
      legend: { show: false },
      cursor: {
        sync: spec.sync ? { key: spec.sync, setSeries: false } : undefined,
        points: { size: 6 },
        drag: { x: true, y: false },
        y: false,
      },
      scales: { x: { time: false }, y: { range: (plot, low, high) => this.#range(low, high) } },
      axes: [axis({ size: 28, incrs: this.#shown.axis.isWhole ? WHOLE : undefined }), axis({ size: 52, values: spec.isShare ? shareTicks : numberTicks })],
      series: [{}, ...spec.series.map(lineOf)],
      bands: spec.bands?.map((band) => ({ series: band.series, fill: faint(ink(band.colour), 0.16) })),
      hooks: {
        setCursor: [(plot) => this.#tell(plot.cursor.idx)],
        setSelect: [(plot) => (this.#isZoomed = plot.select.width > 0)],
        ready: [(plot) => plot.over.addEventListener("dblclick", () => (this.#isZoomed = false))],
      },
    };
  }

  #range(low, high) {
    if (this.spec.range) return this.spec.range;
    if (low === null || high === null) return [0, 1];
    const [bottom, top] = this.spec.fromZero && low >= 0 ? [0, high] : [low, high];
    const room = (top - bottom || Math.abs(top) || 1) * 0.08;
    return [this.spec.fromZero && low >= 0 ? 0 : bottom - room, top + room];
  }

  // The figures under the cursor, or the newest when the pointer is elsewhere.
  #tell(index) {
    const { x, columns, axis: { show } } = this.#shown;
    const at = (column) => (index === null || index === undefined ? column.findLast((value) => value !== null) : column[index]);
    const figures = this.spec.series.map((series, i) => ({ ...series, figure: (series.format ?? this.spec.format)(at(columns[i]) ?? NaN) }));
    const where = index === null || index === undefined ? null : h("span.where", {}, show(x[index]));
    fill(this.legend, figures.filter((series) => !series.hidden).map(key), where);
    if (index === null || index === undefined) {
      const words = figures.filter((series) => !series.hidden).map((series) => `${series.label} ${series.figure}`).join(", ");
      this.host.setAttribute("aria-label", `${this.spec.title}, newest: ${words}`);
    }
  }
}

export const key = ({ label, figure, colour, dash }) =>
  h("span.key", {}, h(`i${dash ? ".dash" : ""}`, { style: { "--key": `var(--${colour})` } }), label, figure === undefined ? null : h("b", {}, figure));

export function axis(more) {
  const grid = { stroke: ink("grid"), width: 1 };
  return { stroke: ink("ink-3"), font: FONT, grid, ticks: { show: false }, gap: 6, ...more };
}

function lineOf({ colour, width = 1.75, dash, points = false, hidden = false }) {
  const stroke = ink(colour);
  return {
    stroke: hidden ? "transparent" : stroke,
    width,
    dash,
    spanGaps: true,
    points: { show: points, size: 6, fill: stroke, stroke },
  };
}
