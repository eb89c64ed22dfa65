// Builds what is on the screen. Knows nothing of the server.

export function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children.filter((child) => child !== null));
  return node;
}

export const tag = (text) => element("span", { className: "tag", textContent: text });

// A picture file on a canvas: unlike an image it needs no address.
export async function paint(canvas, file) {
  const picture = await createImageBitmap(file);
  Object.assign(canvas, { width: picture.width, height: picture.height });
  canvas.getContext("2d").drawImage(picture, 0, 0);
}

// What a job is doing, and how long it will take.
export function outlook(job) {
  return { doing: doing(job), left: job.eta === null ? "" : `about ${time(job.eta)}` };
}

function doing(job) {
  if (job.status === "completed") return "Done";
  if (job.status === "failed") return job.error.code === "cancelled" ? "Cancelled" : `Failed: ${job.error.message}`;
  if (job.queue_position) return `Waiting, ${job.queue_position} before it`;
  if (!job.step) return job.status === "queued" ? "Waiting" : "Beginning";
  return `Step ${job.step} of ${job.total_steps}`;
}

function time(seconds) {
  const whole = Math.max(1, Math.round(seconds));
  return whole < 100 ? `${whole} s` : `${Math.round(whole / 60)} min`;
}

// One of the recent jobs. The item's data-id says when it has to be made anew.
export function card(job, { picture, press }) {
  const canvas = element("canvas", { hidden: true });
  const status = { queued: "…", in_progress: "…", failed: job.error?.code === "cancelled" ? "cancelled" : "failed" }[job.status];
  if (!status) picture(canvas).then(() => { canvas.hidden = false; }, () => {}); // deleted meanwhile
  const button = element("button", { type: "button", onclick: press, title: job.prompt },
    element("span", { className: "still" }, canvas, status ? element("span", { className: "status", textContent: status }) : null),
    element("span", { className: "text", textContent: job.prompt }));
  button.dataset.id = job.id;
  const item = element("li", {}, button);
  item.dataset.id = `${job.id} ${job.status}`;
  return item;
}

// What made a clip, as pairs of name and value.
export function facts(lineage) {
  const { weights, clip, request } = lineage;
  const took = Object.values(lineage.seconds).reduce((sum, one) => sum + one, 0);
  const pairs = {
    model: lineage.model,
    weights: weights ? `${weights.file}, ${weights.lineage.stage ?? "unknown stage"}` : "the base model's",
    "SHA-256 of the weights": weights?.sha256,
    "first frame": lineage.first_frame,
    sampling: `${request.steps} steps, guidance ${request.guidance}, ${request.frames} frames at ${request.fps} per second`,
    "ran on": Object.entries(lineage.backends).map(([stage, backend]) => `${stage.replace("_", " ")}: ${backend}`).join(", "),
    took: `${took.toFixed(1)} s`,
    "remix of": lineage.remixed_from_video_id,
    made: new Date(1000 * lineage.completed_at).toLocaleString(),
    "SHA-256 of the clip": clip?.sha256,
  };
  return Object.entries(pairs).filter(([, value]) => value)
    .flatMap(([name, value]) => [element("dt", { textContent: name }), element("dd", { textContent: value })]);
}
