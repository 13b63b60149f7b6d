// Dialogs: confirm an action, enter a number or a token. Each closes on Escape and gives the focus back (<dialog> does that).
import { token } from "./api.js";
import { button, fill, h, problemNotice } from "./dom.js";

/**
 * Asks before `run` acts. `spec`: {title, text, confirm, danger?, field?: {label, type, value, ...attributes}}. The dialog stays
 * open with the problem when `run(value)` fails, and closes when it succeeds.
 */
export function ask(spec, run) {
  const failure = h("div");
  const { label, ...attributes } = spec.field ?? {};
  const field = label && h("input", { id: "dialog-field", autocomplete: "off", ...attributes });
  const go = h("button.primary", { type: "submit", class: spec.danger ? "danger" : "" }, spec.confirm);
  const cancel = button("Cancel", () => dialog.close());
  const form = h(
    "form",
    { method: "dialog" },
    h("h2", { id: "dialog-title" }, spec.title),
    spec.text && h("p", {}, spec.text),
    field && h("label", { for: "dialog-field" }, label, field),
    failure,
    h("div.row.end", {}, cancel, go),
  );
  const dialog = h("dialog", { "aria-labelledby": "dialog-title", on: { close: () => dialog.remove() } }, form);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    go.disabled = true;
    try {
      await run(field?.value ?? null);
      dialog.close();
    } catch (problem) {
      fill(failure, problemNotice(problem));
    }
    go.disabled = false;
  });
  document.body.append(dialog);
  dialog.showModal();
  (field ?? cancel).focus();
}

export function askToken(reason, onChange) {
  if (document.querySelector("dialog[open]")) return;
  const text = `${reason} It is kept in this tab until you close it. Leave it empty to forget it.`.trim();
  const field = { label: "Bearer token", type: "password", value: token.get() ?? "", spellcheck: "false" };
  ask({ title: "Token", text, confirm: "Use this token", field }, async (value) => {
    token.set(value.trim());
    onChange();
  });
}

const SHOWN = 6000; // ms

/** A short message at the foot of the page, read out to screen readers. */
export function toast(text) {
  const line = h("p.toast", {}, text);
  document.getElementById("toasts").append(line);
  setTimeout(() => line.remove(), SHOWN);
}
