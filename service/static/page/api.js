// Talks to the service: answers, files and the events of a job, with a key where one is asked for.

const RETRY_MS = 1000;
const KEY = "huvidpo.key"; // of this tab only

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

// `ask` gives a key when the service wants one; `waiting` hears whether it is being waited for.
export function service({ ask, waiting }) {
  async function call(path, options = {}) {
    for (;;) {
      const key = sessionStorage.getItem(KEY);
      const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
      const response = await fetch(path, { ...options, headers });
      if (response.status !== 401) return response;
      sessionStorage.setItem(KEY, await ask());
    }
  }

  async function good(path, options) {
    const response = await call(path, options);
    if (response.ok) return response;
    const problem = await response.json().catch(() => null);
    throw new Refused(response.status, problem?.error?.message ?? `The server answered with ${response.status}.`);
  }

  const get = async (path) => (await good(path)).json();
  const post = async (path, body) => (await good(path, { method: "POST", ...body })).json();
  const asJson = (value) => ({ headers: { "Content-Type": "application/json" }, body: JSON.stringify(value) });

  // The job at each change, until it has ended; taken up again where it was when the connection breaks.
  async function* changes(id, signal) {
    let last = null;
    while (!signal.aborted) {
      try {
        const response = await good(`v1/videos/${id}/events`, { signal, headers: last && { "Last-Event-ID": last } });
        waiting(false);
        for await (const event of parsed(response.body)) {
          last = event.id ?? last;
          const job = JSON.parse(event.data);
          yield job;
          if (ended(job)) return;
        }
      } catch (error) {
        if (signal.aborted) return;
        if (error instanceof Refused && error.status < 500) throw error;
        waiting(true);
      }
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }

  return {
    changes,
    models: () => get("models"),
    jobs: () => get("v1/videos?limit=12"),
    job: (id) => get(`v1/videos/${id}`),
    lineage: (id) => get(`v1/videos/${id}/lineage`),
    create: (form) => post("v1/videos", { body: form }),
    cancel: (id) => post(`v1/videos/${id}/cancel`),
    feedback: (opinion) => post("feedback", asJson(opinion)),
    file: async (id, variant) => (await good(`v1/videos/${id}/content?variant=${variant}`)).blob(),
  };
}

export const ended = (job) => job.status === "completed" || job.status === "failed";

// The events of a stream of text/event-stream, as objects of their fields.
async function* parsed(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const fields = block.split("\n").filter((line) => !line.startsWith(":")).map((line) => line.split(/: (.*)/s));
      if (fields.length) yield Object.fromEntries(fields);
    }
  }
}
