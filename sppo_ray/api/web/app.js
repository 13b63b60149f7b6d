// Starts the page: routes by the hash, the token dialog, the theme switch.
import { comparePath, ListView } from "./list.js";
import { JobView } from "./job.js";
import { askToken } from "./dialogs.js";
import { fill, h, problemNotice } from "./dom.js";

const main = document.getElementById("main");
const crumbs = document.getElementById("crumbs");
let current = null; // {view, key, controller}

/** "#/jobs/ID/samples?step=3" -> {view: JobView, id, tab, params}; anything else is the list. */
function route() {
  const [path, search = ""] = location.hash.replace(/^#/, "").split("?");
  const [, head, id, tab = "overview"] = path.split("/");
  const params = new URLSearchParams(search);
  if (head === "jobs" && id) return { View: JobView, key: `job ${id}`, id: decodeURIComponent(id), tab, params };
  return { View: ListView, key: "list", params };
}

async function show() {
  const target = route();
  if (current?.key === target.key) return current.view.update(target);
  current?.controller.abort();
  const controller = new AbortController();
  const view = new target.View(target, controller.signal);
  current = { view, key: target.key, controller };
  fill(main, view.element);
  showCrumbs(target);
  scrollTo(0, 0);
  try {
    await view.start();
  } catch (problem) {
    if (!controller.signal.aborted) fill(main, failed(problem));
  }
}

function failed(problem) {
  if (problem.title === undefined) throw problem; // a bug of the page: the console says where
  const again = h("button", { type: "button", on: { click: restart } }, "Try again");
  return problemNotice(problem, h("p.row", {}, again, h("a", { href: "#/" }, "All jobs")));
}

function restart() {
  current?.controller.abort();
  current = null;
  show();
}

function showCrumbs({ id }) {
  document.title = id ? `${id} · sppo-ray` : "Jobs · sppo-ray";
  fill(crumbs, h("a", { href: comparePath([]), "aria-current": id ? null : "page" }, "Jobs"), id && h("span", { "aria-hidden": "true" }, "/"), id && h("span.clip", {}, id));
}

addEventListener("hashchange", () => {
  const isNewPage = current?.key !== route().key;
  show();
  if (isNewPage) main.focus({ preventScroll: true });
});
// The skip link must not become a route.
document.getElementById("skip").addEventListener("click", (event) => (event.preventDefault(), main.focus()));
document.getElementById("theme").addEventListener("click", () => window.toggleTheme());
document.getElementById("token").addEventListener("click", () => askToken("", restart));
document.addEventListener("unauthorized", () => askToken("The server asks for a token.", restart));
show();
