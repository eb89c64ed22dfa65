// The page: a form that makes jobs, the clip of the one on show, and those before it.

import { Refused, ended, service } from "./api.js";
import { asked, chosen, onPairKey, partners } from "./pair.js";
import { card, facts, outlook, paint, tag } from "./view.js";

const VISITOR = "huvidpo.visitor"; // whose thumbs they are, where nobody said a name on the rating page
const RECENT_MS = 4000; // between two looks at jobs that run beside the one on show
const SMALL = 128; // pixels; pictures up to this width keep their pixels instead of being smeared over the screen
const OWN_FRAME = "Own first frame: drop or choose a picture";

const $ = (id) => document.getElementById(id);
const api = service({ ask: askKey, waiting: (yes) => { $("offline").hidden = !yes; } });

const state = {
  job: null, // on show
  watching: null, // AbortController of its events
  file: null, // own first frame
  votes: new Map(), // id of a job -> 10 or 0
  jobs: [], // the recent ones
  compared: new Set(), // pairs of ids
};

// Start

async function start() {
  $("ask").addEventListener("submit", (event) => { event.preventDefault(); attempt(generate); });
  $("prompt").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    $("ask").requestSubmit();
  });
  $("file").onchange = () => attempt(() => take($("file").files[0] ?? null));
  $("unfile").onclick = () => take(null);
  $("cancel").onclick = () => attempt(cancel);
  $("up").onclick = () => attempt(() => vote(10));
  $("down").onclick = () => attempt(() => vote(0));
  $("again").onclick = again;
  $("compare").onclick = () => attempt(compare);
  $("lineage").ontoggle = () => { if ($("lineage").open) attempt(showLineage); };
  for (const video of document.querySelectorAll("video")) {
    video.onloadedmetadata = () => video.classList.toggle("small", video.videoWidth <= SMALL);
  }
  document.addEventListener("keydown", onKey);
  for (const name of ["dragover", "dragleave", "drop"]) document.addEventListener(name, onDrag);
  window.addEventListener("hashchange", () => attempt(open));
  await attempt(async () => {
    const models = await api.models();
    $("model").textContent = models.model;
    $("category").append(...models.categories.map(({ name }) => new Option(name)));
    $("style").append(...models.styles.map(({ name }) => new Option(name.replaceAll("-", " "), name)));
    await showRecent();
    await open();
  });
}

// What the server refuses is said below the form.
async function attempt(action) {
  try {
    $("problem").textContent = "";
    await action();
  } catch (error) {
    $("problem").textContent = error instanceof Refused ? error.message : "The server does not answer. Try again.";
    if (!(error instanceof Refused)) console.warn(error);
  }
}

let asking = null; // one dialog, however many calls want the key
function askKey() {
  asking ??= new Promise((resolve) => {
    $("key").value = "";
    $("locked").showModal();
    $("locked").onclose = () => ($("key").value ? resolve($("key").value.trim()) : $("locked").showModal());
  }).finally(() => { asking = null; });
  return asking;
}

// Jobs

async function generate() {
  if ($("generate").disabled) return;
  $("generate").disabled = true; // twice pressed is one clip
  try {
    const form = new FormData();
    const fields = { prompt: $("prompt").value, category: $("category").value, style: $("style").value, seed: $("seed").value, preference_strength: $("preference").value };
    for (const [name, value] of Object.entries(fields)) if (value) form.append(name, value);
    if (state.file) form.append("input_reference", state.file);
    const job = await api.create(form);
    history.pushState(null, "", `#${job.id}`);
    show(job);
    $("stage").scrollIntoView({ block: "nearest" }); // below the form on a phone
    await showRecent();
  } finally {
    $("generate").disabled = false;
  }
}

// The job that the address names.
async function open() {
  const id = location.hash.slice(1);
  if (!id || id === state.job?.id) return;
  const job = await api.job(id);
  if (location.hash.slice(1) === id) show(job);
}

function show(job) {
  state.watching?.abort();
  state.watching = new AbortController();
  URL.revokeObjectURL($("clip").src);
  $("clip").removeAttribute("src");
  $("clip").hidden = $("frame").hidden = true;
  $("lineage").open = false;
  $("saved").textContent = "";
  $("pair").close();
  render(job);
  if (ended(job)) attempt(() => finish(job));
  else attempt(() => watch(job.id, state.watching.signal));
}

async function watch(id, signal) {
  for await (const job of api.changes(id, signal)) {
    if (signal.aborted) return;
    render(job);
    if (ended(job)) await Promise.all([finish(job), showRecent()]);
    else if ($("frame").hidden && job.total_steps - job.step < job.num_inference_steps) await preview(job.id);
  }
}

// The first frame, while the clip is made from it.
async function preview(id) {
  try {
    const picture = await api.file(id, "first_frame");
    if (state.job.id !== id || ended(state.job)) return;
    await paint($("frame"), picture);
    $("frame").classList.toggle("small", $("frame").width <= SMALL);
    $("frame").hidden = false;
    $("empty").hidden = true;
  } catch (error) {
    if (!(error instanceof Refused)) throw error; // gone again
  }
}

async function finish(job) {
  if (job.status !== "completed") return;
  const clip = await api.file(job.id, "video");
  if (state.job.id !== job.id) return;
  $("clip").src = $("save").href = URL.createObjectURL(clip);
  $("save").download = `${job.id}.${job.format}`;
  $("clip").hidden = false;
  $("frame").hidden = true;
  await $("clip").play().catch(() => {}); // browsers may want a press first
}

async function cancel() {
  if (state.job && !ended(state.job)) await api.cancel(state.job.id);
}

// Screen

function render(job) {
  state.job = job;
  const { doing, left } = outlook(job);
  const done = job.status === "completed";
  $("stage").dataset.status = job.status;
  $("progress").hidden = ended(job);
  $("about").hidden = false;
  if ($("doing").textContent !== doing) $("doing").textContent = doing;
  $("left").textContent = left;
  if (job.progress) $("bar").value = job.progress;
  else $("bar").removeAttribute("value");
  if (job.status === "failed") $("frame").hidden = true;
  $("empty").hidden = done || !$("frame").hidden;
  $("empty").textContent = ended(job) ? doing : "";
  $("said").textContent = job.prompt;
  const tags = [job.category, job.style.replaceAll("-", " "), `seed ${job.seed}`];
  if (job.preference_strength !== 1) tags.push(`preferences ${job.preference_strength}`);
  $("tags").replaceChildren(...tags.map(tag));
  const warnings = job.warnings.join(" ");
  if ($("warnings").textContent !== warnings) $("warnings").textContent = warnings; // it is read out once
  for (const id of ["up", "down", "save", "lineage"]) $(id).hidden = !done;
  $("up").ariaPressed = state.votes.get(job.id) === 10;
  $("down").ariaPressed = state.votes.get(job.id) === 0;
  $("compare").hidden = !comparable().length;
  for (const node of document.querySelectorAll("#jobs button")) node.ariaCurrent = node.dataset.id === job.id;
}

let looking;
async function showRecent() {
  clearTimeout(looking);
  const jobs = state.jobs = (await api.jobs()).data;
  $("compare").hidden = !comparable().length;
  $("recent").hidden = !jobs.length;
  const cards = new Map([...document.querySelectorAll("#jobs li")].map((node) => [node.dataset.id, node]));
  $("jobs").replaceChildren(...jobs.map((job) => cards.get(`${job.id} ${job.status}`) ?? recent(job)));
  for (const node of document.querySelectorAll("#jobs button")) node.ariaCurrent = node.dataset.id === state.job?.id;
  if (jobs.some((job) => !ended(job) && job.id !== state.job?.id)) {
    looking = setTimeout(() => showRecent().catch(() => {}), RECENT_MS);
  }
}

function recent(job) {
  const picture = async (canvas) => paint(canvas, await api.file(job.id, "first_frame"));
  return card(job, { picture, press: () => { location.hash = job.id; } });
}

async function showLineage() {
  const { id } = state.job;
  const lineage = await api.lineage(id);
  if (state.job.id === id) $("facts").replaceChildren(...facts(lineage));
}

// Answers

async function vote(score) {
  const { id, status } = state.job ?? {};
  if (status !== "completed") return;
  await api.feedback({ video: id, score, rater: rater() });
  state.votes.set(id, score);
  render(state.job);
}

const pairOf = (...ids) => ids.sort().join();
const comparable = () => partners(state.job, state.jobs).filter(({ id }) => !state.compared.has(pairOf(id, state.job.id)));

async function compare() {
  const { job } = state;
  if ($("compare").disabled || !comparable().length) return;
  $("compare").disabled = true; // while the clips come
  $("saved").textContent = "";
  try {
    const pair = await chosen(job, comparable(), api.file);
    if (state.job.id !== job.id) return;
    const videos = pair.map(([{ id }]) => id);
    const better = await asked(pair);
    if (!better) return;
    await api.feedback({ videos, better, rater: rater() });
    state.compared.add(pairOf(...videos));
    $("saved").textContent = "Saved";
    render(state.job);
  } finally {
    $("compare").disabled = false;
  }
}

function rater() {
  const known = localStorage.getItem("huvidpo.rater") ?? localStorage.getItem(VISITOR);
  if (known) return known;
  const numbers = crypto.getRandomValues(new Uint8Array(6));
  const name = `visitor-${[...numbers].map((one) => one.toString(16).padStart(2, "0")).join("")}`;
  localStorage.setItem(VISITOR, name);
  return name;
}

// The same request in the form, to be changed.
function again() {
  if (!state.job) return;
  for (const name of ["prompt", "category", "style", "seed"]) $(name).value = state.job[name];
  $("preference").value = state.job.preference_strength === 1 ? "" : state.job.preference_strength;
  $("prompt").focus();
  $("prompt").scrollIntoView({ block: "center" });
}

// Own first frame

async function take(file) {
  if (file) {
    await paint($("own"), file).catch(() => { throw new Refused(0, `${file.name} is no picture that this browser reads.`); });
  } else {
    $("file").value = "";
  }
  state.file = file;
  $("own").hidden = $("unfile").hidden = !file;
  $("drop-text").textContent = file ? file.name : OWN_FRAME;
}

function onDrag(event) {
  if (!event.dataTransfer?.types.includes("Files")) return;
  event.preventDefault();
  $("drop").classList.toggle("over", event.type === "dragover");
  if (event.type === "drop") attempt(() => take(event.dataTransfer.files[0]));
}

// Keyboard

function onKey(event) {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || $("locked").open) return;
  if ($("pair").open) {
    onPairKey(event);
    return;
  }
  if (event.key === "Escape") {
    attempt(cancel);
    return;
  }
  if (event.target.matches("input, textarea, select, video")) return;
  const action = {
    "/": () => $("prompt").focus(),
    "+": () => attempt(() => vote(10)),
    "-": () => attempt(() => vote(0)),
    a: again,
    c: () => attempt(compare),
  }[event.key.toLowerCase()];
  if (!action) return;
  event.preventDefault();
  action();
}

start();
