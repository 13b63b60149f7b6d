// Numbers, times and names as people read them. A missing figure is a dash, never a zero.

export const DASH = "–";

const known = (value) => typeof value === "number" && Number.isFinite(value);

/** Three significant digits; very small and very large numbers with an exponent or a unit. */
export function number(value) {
  if (!known(value)) return DASH;
  const size = Math.abs(value);
  if (value === 0) return "0";
  if (size < 1e-3) return value.toExponential(1).replace("e-", "e−").replace(/^-/, "−");
  if (size >= 1e4) return compact(value);
  const digits = size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3;
  return value.toFixed(digits).replace(/^-/, "−");
}

export function compact(value) {
  if (!known(value)) return DASH;
  return new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 }).format(value);
}

/** A count in full up to six digits. */
export const whole = (value) => (known(value) && value >= 1e6 ? compact(value) : known(value) ? new Intl.NumberFormat("en").format(Math.round(value)) : DASH);

export const percent = (value, digits = 1) => (known(value) ? `${(100 * value).toFixed(digits)}%` : DASH);

export function bytes(value) {
  if (!known(value)) return DASH;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = Math.min(value > 0 ? Math.floor(Math.log2(value) / 10) : 0, units.length - 1);
  return `${number(value / 1024 ** power)} ${units[power]}`;
}

/** "57 ms", "47 s", "3 min 20 s", "2 h 05 min", "4 d 3 h". */
export function duration(seconds) {
  if (!known(seconds)) return DASH;
  if (seconds === 0) return "0 s";
  if (seconds > 0 && seconds < 0.0995) return seconds < 0.001 ? "< 1 ms" : `${Math.round(1000 * seconds)} ms`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  const s = Math.round(seconds);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min${s % 60 ? ` ${s % 60} s` : ""}`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${String(Math.floor((s % 3600) / 60)).padStart(2, "0")} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

/** A unix time or an ISO 8601 string as milliseconds, else null. */
export function milliseconds(time) {
  if (known(time)) return 1000 * time;
  const parsed = typeof time === "string" ? Date.parse(time) : NaN;
  return Number.isNaN(parsed) ? null : parsed;
}

export function ago(time, now = Date.now()) {
  const then = milliseconds(time);
  if (then === null) return DASH;
  const seconds = (now - then) / 1000;
  return seconds < 5 ? "just now" : `${duration(seconds).split(" ").slice(0, 2).join(" ")} ago`;
}

export function clock(time) {
  const then = milliseconds(time);
  return then === null ? DASH : new Date(then).toLocaleTimeString("en-GB");
}

export function moment(time) {
  const then = milliseconds(time);
  if (then === null) return DASH;
  return new Date(then).toLocaleString("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });
}

export const plural = (count, noun) => `${whole(count)} ${noun}${count === 1 ? "" : "s"}`;
