// Asks the node that serves this page. The token goes into a header of requests to this origin, and nowhere else.

const KEPT = "converge-token";
const PATIENCE_MS = 20_000;
const LINE_CHARACTERS_MAX = 1_000_000;

export class Refused extends Error {
  constructor(code, message, hint) {
    super(message);
    this.code = code;
    this.hint = hint;
  }
}

export class Unreachable extends Error {}

// Takes the token out of the address, so that it stays in no history and no screenshot.
export function takeToken() {
  const found = new URLSearchParams(location.hash.slice(1)).get("token");
  if (found) {
    sessionStorage.setItem(KEPT, found);
    history.replaceState(null, "", location.pathname);
  }
  return sessionStorage.getItem(KEPT);
}

export const keepToken = (token) => sessionStorage.setItem(KEPT, token);

export const dropToken = () => sessionStorage.removeItem(KEPT);

async function ask(path, signal) {
  const token = sessionStorage.getItem(KEPT) ?? "";
  let response;
  try {
    response = await fetch(path, {
      headers: { authorization: `Bearer ${token.replace(/[^\x21-\x7e]/g, "")}` },
      cache: "no-store",
      credentials: "omit",
      redirect: "error",
      signal,
    });
  } catch (error) {
    throw new Unreachable(String(error));
  }
  const isEnvelope = (response.headers.get("content-type") ?? "").startsWith("application/json");
  if (!response.ok && !isEnvelope) throw new Unreachable(`status ${response.status}`);
  return response;
}

function dataOf(envelope) {
  if (envelope?.ok) return envelope.data;
  const error = envelope?.error ?? {};
  if (error.code === "node_unreachable") throw new Unreachable(error.message);
  throw new Refused(error.code ?? "error", error.message ?? "the node answered with an error", error.hint ?? "");
}

async function whole(path, read) {
  const ended = AbortSignal.timeout(PATIENCE_MS);
  const response = await ask(path, ended);
  try {
    return await read(response);
  } catch (error) {
    if (error instanceof Refused) throw error;
    throw new Unreachable(String(error));
  }
}

export const get = (path) => whole(path, async (response) => dataOf(await response.json()));

export const getText = (path) =>
  whole(path, async (response) => (response.ok ? response.text() : dataOf(await response.json())));

let paths = null;

// Whether the node has such a route: behind a gateway it can be older than this page.
export async function answers(route) {
  paths ??= whole("/openapi.json", async (response) => (response.ok ? (await response.json()).paths : {})).catch(() => ({}));
  return route in (await paths);
}

// Reads server-sent events until the stream ends; `EventSource` could send no token.
export async function listen(path, onEvent, onOpen) {
  const response = await ask(path);
  if (!response.ok) dataOf(await response.json());
  onOpen();
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      if (rest.length > LINE_CHARACTERS_MAX) throw new Unreachable("an event without an end");
      for (const line of lines) if (line.startsWith("data:")) onEvent(dataOf(JSON.parse(line.slice(5))));
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

export const poolPath = (pool) => `/v1/pools/${encodeURIComponent(pool)}`;

export const taskPath = (pool, task) => `${poolPath(pool)}/tasks/${encodeURIComponent(task)}`;
