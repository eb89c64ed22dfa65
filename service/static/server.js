// Talks to the server. An answer counts as saved only when the server has said so.

const RETRY_MS = 1000;

export class Refused extends Error {}

async function request(path, body) {
  const options = body && {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  };
  const response = await fetch(path, options);
  if (response.ok) return response.json();
  if (response.status >= 500 || response.status === 429) throw new Error(`status ${response.status}`);
  const problem = await response.json().catch(() => null);
  throw new Refused(problem?.error?.message ?? `the server answered ${response.status}`);
}

// Tries until the server answers; `waiting(true)` while it does not. Throws Refused when it says no.
async function persist(path, body, waiting) {
  for (;;) {
    try {
      const result = await request(path, body);
      waiting(false);
      return result;
    } catch (error) {
      if (error instanceof Refused) {
        waiting(false);
        throw error;
      }
      waiting(true);
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }
}

export function server(waiting) {
  return {
    page: () => persist("api/page", null, waiting),
    tasks: (mode, rater) => persist(`api/${mode}/tasks?rater=${encodeURIComponent(rater)}`, null, waiting),
    answer: (mode, rater, task, answer) => persist(`api/${mode}/answer`, { rater, task, answer }, waiting),
    undo: (mode, rater) => persist(`api/${mode}/undo`, { rater }, waiting),
  };
}
