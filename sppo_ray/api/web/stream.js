// Server-sent events over fetch: EventSource cannot send the Authorization header.
import { send } from "./api.js";

const FIRST_WAIT = 1000; // ms before the next try, doubled up to the longest
const LONGEST_WAIT = 15000;

/**
 * Follows the stream at `path` until `signal` aborts or `isOver()` says that nothing more will come, and resumes it after
 * the last event seen. `onEvent(kind, data)` gets parsed JSON; `onState("live" | "retrying" | "closed")` how the connection is.
 */
export async function follow(path, { onEvent, onState, isOver, signal }) {
  let last = null;
  let wait = FIRST_WAIT;
  while (!signal.aborted) {
    let problem = null;
    try {
      const headers = { Accept: "text/event-stream", ...(last === null ? {} : { "Last-Event-ID": last }) };
      const response = await send(path, { headers, signal });
      if (response.status === 204) return onState("closed"); // the job has ended and we have all of it
      onState("live");
      wait = FIRST_WAIT;
      for await (const message of messages(response.body)) {
        last = message.id ?? last;
        if (message.data) onEvent(message.event, JSON.parse(message.data));
      }
    } catch (error) {
      if (signal.aborted) return;
      problem = error;
    }
    if (isOver() || [401, 403, 404].includes(problem?.status)) return onState("closed");
    onState("retrying");
    await sleep(wait, signal);
    wait = Math.min(2 * wait, LONGEST_WAIT);
  }
}

async function* messages(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    buffer = (buffer + value).replaceAll("\r\n", "\n"); // a pair cut in two is whole with the next chunk
    const parts = buffer.split("\n\n");
    buffer = parts.pop();
    yield* parts.map(parse);
  }
}

function parse(block) {
  const message = { event: "message", data: "", id: null };
  const data = [];
  for (const line of block.split("\n")) {
    const [, field, value] = /^([^:]*)(?:: ?(.*))?$/s.exec(line);
    if (field === "data") data.push(value ?? "");
    else if (field === "event" || field === "id") message[field] = value ?? "";
  }
  message.data = data.join("\n");
  return message;
}

const sleep = (ms, signal) =>
  new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
