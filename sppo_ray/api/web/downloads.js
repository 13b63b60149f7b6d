// What a run left behind, to be saved: its exported models and its report.
import { api, send } from "./api.js";
import { toast } from "./dialogs.js";
import { button, fill, h, problemNotice } from "./dom.js";
import { FINAL } from "./feed.js";
import { bytes, plural } from "./format.js";

const KINDS = [
  { kind: "export", label: "Export", says: ({ files, bytes: size }) => `policy and critic: ${plural(files, "file")}, ${bytes(size)}` },
  { kind: "report", label: "Report", says: ({ bytes: size }) => `one HTML file, ${bytes(size)}` },
];

/** A panel of the job of `feed`; hidden while there is nothing to save. */
export function downloadsPanel(feed, signal) {
  const body = h("div");
  const element = h("section.card.panel", { hidden: true }, h("h2", {}, "Downloads"), body);
  let shown = null; // the state that the panel was drawn for
  const refresh = () => {
    if (feed.job.state === shown || !feed.job.run_id) return;
    shown = feed.job.state;
    api.downloads(feed.id, signal).then((found) => draw(found), () => (shown = null));
  };
  const draw = (found) => {
    const there = KINDS.filter(({ kind }) => found[kind]);
    element.hidden = there.length === 0;
    fill(body, h("ul.downloads", {}, there.map((spec) => line(feed, signal, spec, found[spec.kind]))));
  };
  feed.addEventListener("job", refresh, { signal });
  refresh();
  return element;
}

function line(feed, signal, { kind, label, says }, file) {
  const failure = h("div");
  const save = button("Download", async () => {
    save.disabled = true;
    fill(failure);
    try {
      await download(feed.id, kind, file.name, signal);
      toast(`${file.name} is saved`);
    } catch (problem) {
      if (!signal.aborted) fill(failure, problemNotice(problem));
    }
    save.disabled = false;
  }, { "aria-label": `Download the ${label.toLowerCase()}` });
  return h("li", {}, h("span", {}, h("b", {}, label), h("span.muted", {}, says(file))), save, failure);
}

/** A link cannot send the token, so the page fetches the file; browsers keep a large one on the disk. */
async function download(id, kind, name, signal) {
  const response = await send(`jobs/${encodeURIComponent(id)}/${kind}`, { signal, headers: { Accept: "*/*" } });
  const url = URL.createObjectURL(await response.blob());
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000); // the browser reads it after the click
}
