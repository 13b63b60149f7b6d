// Builds elements. A string always becomes a text node: nothing that a model or a log wrote is ever parsed as HTML.

const SVG = "http://www.w3.org/2000/svg";

/** h("p.note#id", {class, on: {click}, dataset, style: {property: value}, ...attributes}, ...children); null children are left out. */
export function h(selector, props = {}, ...children) {
  const [, tag, id, classes] = /^([\w-]+)(?:#([\w-]+))?((?:\.[\w-]+)*)$/.exec(selector);
  const element = ["svg", "path", "line", "circle"].includes(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  if (id) element.id = id;
  if (classes) element.classList.add(...classes.slice(1).split("."));
  for (const [name, value] of Object.entries(props)) set(element, name, value);
  element.append(...nodes(children));
  return element;
}

function set(element, name, value) {
  if (value === null || value === undefined || value === false) return;
  if (name === "on") for (const [event, handler] of Object.entries(value)) element.addEventListener(event, handler);
  else if (name === "dataset") Object.assign(element.dataset, value);
  else if (name === "style") for (const [property, text] of Object.entries(value)) element.style.setProperty(property, text);
  else if (name === "class") element.classList.add(...value.split(" ").filter(Boolean));
  else if (name === "value") element.value = value;
  else element.setAttribute(name, value === true ? "" : value);
}

function nodes(children) {
  return children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);
}

/** Replaces what `element` holds. */
export function fill(element, ...children) {
  element.replaceChildren(...nodes(children));
  return element;
}

/** Replaces the contents only when `key` differs from the last time, so that focus, scroll and selection survive a refresh. */
export function fillOnChange(element, key, make) {
  const text = JSON.stringify(key);
  if (element.dataset.key === text) return;
  element.dataset.key = text;
  fill(element, make());
}

export const button = (text, onclick, props = {}, ...more) => h("button", { type: "button", on: { click: onclick }, ...props }, text, ...more);

/** A message in place of contents: nothing there, still loading, or an error with its remedy. */
export function notice(kind, title, detail = null, ...more) {
  const role = kind === "error" ? "alert" : "status";
  return h(`div.notice.${kind}`, { role }, h("strong", {}, title), detail && h("p", {}, detail), ...more);
}

export function problemNotice(problem, ...more) {
  const errors = problem.errors?.length ? h("ul", {}, problem.errors.map((e) => h("li", {}, h("code", {}, e.path), ` ${e.message}`))) : null;
  return notice("error", problem.title, problem.detail, errors, ...more);
}
