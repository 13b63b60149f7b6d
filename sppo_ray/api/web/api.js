// The REST calls of the page. Every failure is a Problem (RFC 9457), also one that never reached the server.

// Relative to the page, so that it works below any prefix that a proxy or Ray Serve puts it under.
const ROOT = new URL("v1/", document.baseURI);
const TOKEN = "sppo-ray.token";

export const token = {
  get: () => sessionStorage.getItem(TOKEN),
  set: (text) => (text ? sessionStorage.setItem(TOKEN, text) : sessionStorage.removeItem(TOKEN)),
};

export class Problem extends Error {
  constructor({ status = 0, title = "Request failed", detail = "", errors = [] }) {
    super(detail || title);
    Object.assign(this, { status, title, detail, errors });
  }
}

/** The raw response of a call that succeeded. Raises Problem; an aborted call raises AbortError. */
export async function send(path, { method = "GET", body, headers = {}, signal } = {}) {
  const all = { Accept: "application/json", ...headers };
  if (body !== undefined) all["Content-Type"] = "application/json";
  if (token.get()) all.Authorization = `Bearer ${token.get()}`;
  let response;
  try {
    response = await fetch(new URL(path, ROOT), { method, headers: all, body: body === undefined ? undefined : JSON.stringify(body), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem({ title: "The server does not answer", detail: "It may be restarting. The page keeps trying." });
  }
  if (!response.ok) throw await problemOf(response);
  return response;
}

async function problemOf(response) {
  const isProblem = (response.headers.get("Content-Type") ?? "").includes("json");
  const body = isProblem ? await response.json().catch(() => ({})) : {};
  const problem = new Problem({ title: response.statusText || `Status ${response.status}`, ...body, status: response.status });
  if (problem.status === 401) document.dispatchEvent(new CustomEvent("unauthorized"));
  return problem;
}

const json = async (path, options) => {
  const response = await send(path, options);
  return response.status === 204 ? null : response.json();
};

const query = (params) => {
  const entries = Object.entries(params).filter(([, value]) => value !== null && value !== undefined && value !== "");
  const pairs = entries.flatMap(([name, value]) => [value].flat().map((one) => [name, String(one)]));
  return pairs.length ? `?${new URLSearchParams(pairs)}` : "";
};

const at = (id) => `jobs/${encodeURIComponent(id)}`;

export const api = {
  jobs: (params, signal) => json(`jobs${query(params)}`, { signal }),
  job: (id, signal) => json(at(id), { signal }),
  metrics: (id, params, signal) => json(`${at(id)}/metrics${query(params)}`, { signal }),
  trajectories: (id, params, signal) => json(`${at(id)}/trajectories${query(params)}`, { signal }),
  downloads: (id, signal) => json(`${at(id)}/downloads`, { signal }),
  config: (id, signal) => json(`${at(id)}/config`, { signal }),
  logs: async (id, params, signal) => (await send(`${at(id)}/logs${query(params)}`, { signal, headers: { Accept: "text/plain" } })).text(),
  patch: (id, body) => json(at(id), { method: "PATCH", body }),
  stop: (id) => json(`${at(id)}/stop`, { method: "POST" }),
  checkpoint: (id) => json(`${at(id)}/checkpoint`, { method: "POST" }),
  eventsPath: (id) => `${at(id)}/events`,
};
