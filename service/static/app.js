// The rating page: one question at a time, every answer saved before the next one appears.

import { Refused, server } from "./server.js";

const CRITERIA = [
  ["aesthetics", "Aesthetics", "How good does it look?", "ugly or broken", "all right", "beautiful"],
  ["consistency", "Consistency", "Do things keep their shape while they move?", "melts or flickers", "small jumps", "smooth and stable"],
  ["alignment", "Alignment", "Does it show what the text says?", "something else", "a part of it", "all of it"],
];
const TITLES = { score: "Score", compare: "Compare", study: "Study" };
const WELCOME = {
  score: "You will see short clips, one after the other, and score each from 0 to 10. Go by your gut: how much do you like it, and does it show what the text says?",
  study: "You will see short clips, one after the other, and give each three marks from 1 to 5. Who or what made a clip stays hidden.",
};
const KEYS = {
  score: [["0 – 9", "score"], ["T", "ten"], ["⇧ 7  or  H 7", "7½"]],
  compare: [["←", "left is better"], ["→", "right is better"], ["↓", "tie"]],
  study: [["1 – 5", "mark"], ["⌫", "back one mark"]],
};
const COMMON_KEYS = [["S", "skip"], ["U", "undo"], ["R", "replay"]];
const ARROWS = { ArrowLeft: "left", ArrowRight: "right", ArrowDown: "tie" };

const $ = (id) => document.getElementById(id);
const api = server((waiting) => { $("offline").hidden = !waiting; });

const state = {
  modes: [], exports: [], mode: null, rater: null,
  tasks: [], answers: new Map(), skipped: new Set(),
  task: null, // what is asked now; null: all done
  half: false, // the next digit gets + 1/2
  marks: {}, // of the user study, for the clip on show
  busy: true,
};

function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children.filter((child) => child !== null));
  return node;
}

const button = (className, onclick, ...children) =>
  element("button", { type: "button", className, onclick }, ...children);
const key = (text) => element("kbd", { textContent: text });
const half = (score) => (score % 1 ? `${Math.floor(score) || ""}½` : `${score}`);

// Start

async function start() {
  const page = await api.page();
  Object.assign(state, { modes: page.modes, exports: page.exports, mode: page.modes[0] });
  const wanted = location.hash.slice(1);
  if (state.modes.includes(wanted)) state.mode = wanted;
  $("login-text").textContent = WELCOME[page.modes[0]];
  $("login").querySelector("form").addEventListener("submit", login);
  $("login").addEventListener("cancel", (event) => { if (!state.rater) event.preventDefault(); });
  $("who").onclick = askWho;
  document.addEventListener("keydown", onKey);
  const known = localStorage.getItem("huvidpo.rater");
  if (!known || !(await enter(known, state.mode))) askWho();
}

function askWho() {
  $("rater").value = state.rater ?? "";
  $("login-error").textContent = "";
  $("login").showModal();
  $("rater").select();
}

async function login(event) {
  event.preventDefault();
  if (await enter($("rater").value.trim(), state.mode)) $("login").close();
}

// Loads a rater's tasks. False, and the reason on show, when the server refuses the name.
async function enter(rater, mode) {
  state.busy = true;
  try {
    const session = await api.tasks(mode, rater);
    Object.assign(state, { rater, mode, tasks: session.tasks, answers: new Map(Object.entries(session.answers)) });
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    $("login-error").textContent = error.message;
    return false;
  } finally {
    state.busy = false;
  }
  localStorage.setItem("huvidpo.rater", rater);
  history.replaceState(null, "", `#${mode}`);
  state.skipped = new Set(JSON.parse(sessionStorage.getItem(skippedKey()) ?? "[]"));
  showNext();
  return true;
}

const skippedKey = () => `huvidpo.skipped.${state.mode}.${state.rater}`;

// Answers

// The next question: the first that is open; skipped ones come again when nothing else is left.
function showNext(wanted = null) {
  const open = state.tasks.filter((task) => !state.answers.has(task.id));
  if (open.length && open.every((task) => state.skipped.has(task.id))) rememberSkipped(new Set());
  const left = open.filter((task) => !state.skipped.has(task.id));
  state.task = left.find((task) => task.id === wanted) ?? left[0] ?? null;
  Object.assign(state, { half: false, marks: {} });
  render(left[left.indexOf(state.task) + 1]);
}

function rememberSkipped(skipped) {
  state.skipped = skipped;
  sessionStorage.setItem(skippedKey(), JSON.stringify([...skipped]));
}

// Does one thing at a time: keys pressed meanwhile are dropped, never taken for the next clip.
async function alone(action) {
  if (state.busy) return;
  state.busy = true;
  try {
    await action();
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    toast(error.message);
    state.busy = false;
    await enter(state.rater, state.mode); // the folder has changed: look again
  } finally {
    state.busy = false;
  }
}

const answer = (value, text, chosen) => alone(async () => {
  const task = state.task;
  if (!task) return;
  chosen?.classList.add("chosen");
  await api.answer(state.mode, state.rater, task.id, value);
  state.answers.set(task.id, value);
  toast(`${text} saved`, "undo");
  await new Promise((resolve) => setTimeout(resolve, 180)); // long enough to see what was pressed
  showNext();
});

const undo = () => alone(async () => {
  const { undone } = await api.undo(state.mode, state.rater);
  if (!undone) return toast("Nothing to undo");
  state.answers.delete(undone);
  state.skipped.delete(undone);
  toast("Taken back");
  showNext(undone);
});

function skip() {
  if (!state.task || state.busy) return;
  rememberSkipped(new Set([...state.skipped, state.task.id]));
  toast("Skipped for now");
  showNext();
}

function giveScore(score) {
  if (score > 10) return toast("10 is the most");
  answer(score, half(score), document.querySelector(`[data-score="${Math.floor(score)}"]`));
}

function giveMark(mark, name = CRITERIA.find(([name]) => !(name in state.marks))?.[0]) {
  if (!name || state.busy) return;
  state.marks[name] = mark;
  showMarks();
  if (CRITERIA.every(([name]) => name in state.marks)) {
    answer(state.marks, CRITERIA.map(([name]) => state.marks[name]).join(" · "));
  }
}

function takeMarkBack() {
  const last = CRITERIA.findLast(([name]) => name in state.marks);
  if (last && !state.busy) delete state.marks[last[0]];
  showMarks();
}

// Keyboard

function onKey(event) {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || $("login").open) return;
  const handled = commonKey(event) || (state.task && modeKey(event));
  if (handled) event.preventDefault();
}

function commonKey(event) {
  const actions = { s: skip, u: undo, r: replay };
  const action = actions[event.key.toLowerCase()];
  action?.();
  return Boolean(action);
}

function modeKey(event) {
  if (state.mode === "compare") {
    const choice = ARROWS[event.key];
    if (choice) choose(choice);
    return Boolean(choice);
  }
  const digit = digitOf(event);
  if (state.mode === "study") {
    if (event.key === "Backspace") takeMarkBack();
    else if (digit >= 1 && digit <= 5) giveMark(digit);
    return event.key === "Backspace" || digit !== null;
  }
  const letter = event.key.toLowerCase();
  if (digit !== null) giveScore(digit + (state.half || shifted(event) ? 0.5 : 0));
  else if (letter === "t") giveScore(10);
  else if (letter === "h") toggleHalf();
  return digit !== null || letter === "t" || letter === "h";
}

// By position, so that Shift + 7 is found on any layout and digits work where they need Shift (AZERTY).
function digitOf(event) {
  const match = /^(?:Digit|Numpad)(\d)$/.exec(event.code);
  return match ? Number(match[1]) : /^\d$/.test(event.key) ? Number(event.key) : null;
}

const shifted = (event) => event.shiftKey && !/^\d$/.test(event.key);

function toggleHalf() {
  state.half = !state.half;
  $("half").setAttribute("aria-pressed", state.half);
}

const choose = (choice) =>
  answer(choice, { left: "Left", right: "Right", tie: "Tie" }[choice], document.querySelector(`[data-choice="${choice}"]`));

function replay() {
  for (const clip of document.querySelectorAll(".clip video, .clip img")) {
    if (clip.tagName === "IMG") clip.src = clip.src;
    else {
      clip.currentTime = 0;
      clip.play().catch(() => {});
    }
  }
}

// Pictures

let fading;
function toast(text, hint = null) {
  $("toast").replaceChildren(text, ...(hint ? [key("U"), hint] : []));
  $("toast").classList.add("shown");
  clearTimeout(fading);
  fading = setTimeout(() => $("toast").classList.remove("shown"), 2200);
}

function render(next) {
  renderHeader();
  const controls = { score: scoreControls, compare: compareControls, study: studyControls };
  $("stage").className = state.task ? state.mode : "done";
  if (state.task) $("stage").replaceChildren(prompts(), clips(), controls[state.mode]());
  else $("stage").replaceChildren(finished());
  if (state.task && state.mode === "study") showMarks();
  const legend = [...(state.task ? KEYS[state.mode] : []), ...(state.task ? COMMON_KEYS : [COMMON_KEYS[1]])];
  $("keys").replaceChildren(...legend.map(([name, text]) => element("span", {}, key(name), text)));
  if (next) preload(next);
}

function renderHeader() {
  const total = state.tasks.length;
  const done = state.tasks.filter((task) => state.answers.has(task.id)).length;
  $("bar").style.width = total ? `${(100 * done) / total}%` : "0";
  $("count").textContent = `${done} of ${total}`;
  $("who").textContent = state.rater;
  $("who").hidden = false;
  const tab = (mode) => {
    const node = button("tab", () => alone(() => enter(state.rater, mode)), TITLES[mode]);
    if (mode === state.mode) node.setAttribute("aria-current", "page");
    return node;
  };
  $("modes").replaceChildren(...state.modes.map(tab));
}

// One line for a clip or for two of the same text; else each clip has its own (see `clips`).
function prompts() {
  const [clip, other] = state.task.clips;
  const shared = !other || (clip.prompt === other.prompt && clip.style === other.style);
  return shared ? prompt(clip) : element("p", { className: "prompt ask", textContent: "Which one is better?" });
}

const prompt = (clip) => element("p", { className: "prompt" }, `“${clip.prompt}”`,
  clip.style ? element("span", { className: "style", textContent: clip.style.replace("-", " ") }) : null);

function clips() {
  const own = prompts().classList.contains("ask");
  const sides = state.task.clips.length === 2 ? ["left", "right"] : [null];
  return element("div", { className: "clips" }, ...state.task.clips.map((clip, i) =>
    element("figure", { className: "clip" }, media(clip, sides[i]), own ? prompt(clip) : null)));
}

function media(clip, side) {
  const broken = () => toast("This browser cannot play the clip; skip it with S");
  const shared = { src: `clips/${clip.id}`, onerror: broken, onclick: side ? () => choose(side) : replay };
  if (clip.picture) return element("img", { ...shared, alt: "", onload: (event) => fit(event.target, event.target.naturalWidth) });
  const video = element("video", { ...shared, muted: true, loop: true, autoplay: true, playsInline: true, preload: "auto" });
  video.onloadedmetadata = () => fit(video, video.videoWidth);
  return video;
}

// Clips of a few pixels keep their pixels instead of being smeared over the screen.
const fit = (node, width) => node.classList.toggle("small", width <= 128);

let ahead = [];
function preload(task) {
  ahead = task.clips.map((clip) => element(clip.picture ? "img" : "video", { src: `clips/${clip.id}`, preload: "auto", muted: true }));
}

function scoreControls() {
  const scores = Array.from({ length: 11 }, (_, score) => {
    const node = button("score", () => giveScore(score + (state.half ? 0.5 : 0)), `${score}`);
    node.dataset.score = score;
    node.style.setProperty("--level", score / 10);
    return node;
  });
  const halves = button("half", toggleHalf, "+ ½");
  halves.id = "half";
  halves.title = "The next score gets a half more";
  halves.setAttribute("aria-pressed", "false");
  return element("div", { className: "scores" },
    element("div", { className: "scale", role: "group", ariaLabel: "Score from 0 to 10" }, ...scores), halves,
    element("div", { className: "anchors" }, ...["broken", "all right", "could not be better"].map((text) => element("span", { textContent: text }))));
}

function compareControls() {
  const one = (choice, arrow, text) => {
    const node = button("choice", () => choose(choice), key(arrow), text);
    node.dataset.choice = choice;
    return node;
  };
  return element("div", { className: "choices" }, one("left", "←", "Left"), one("tie", "↓", "Tie"), one("right", "→", "Right"));
}

function studyControls() {
  return element("div", { className: "criteria" }, ...CRITERIA.map(([name, title, question, ...anchors]) => {
    const marks = [1, 2, 3, 4, 5].map((mark) => {
      const label = mark % 2 ? element("small", { textContent: anchors[(mark - 1) / 2] }) : null;
      const node = button("mark", () => giveMark(mark, name), element("b", { textContent: mark }), label);
      node.dataset.mark = mark;
      return node;
    });
    const row = element("div", { className: "criterion", role: "group", ariaLabel: title },
      element("div", {}, element("h2", { textContent: title }), element("p", { textContent: question })), ...marks);
    row.dataset.name = name;
    return row;
  }));
}

function showMarks() {
  const current = CRITERIA.find(([name]) => !(name in state.marks))?.[0];
  for (const row of document.querySelectorAll(".criterion")) {
    row.classList.toggle("current", row.dataset.name === current);
    for (const node of row.querySelectorAll(".mark")) {
      node.classList.toggle("chosen", Number(node.dataset.mark) === state.marks[row.dataset.name]);
    }
  }
}

function finished() {
  const other = state.modes.find((mode) => mode !== state.mode);
  const what = state.tasks.length ? `All ${state.tasks.length} answers are saved.` : "There is nothing to compare here.";
  return element("div", { className: "finished" },
    element("div", { className: "tick", textContent: "✓" }),
    element("h1", { textContent: `Thank you, ${state.rater}!` }),
    element("p", { textContent: what }),
    state.mode === "score" ? histogram() : null,
    other ? button("primary", () => alone(() => enter(state.rater, other)), other === "compare" ? "Now compare clips side by side" : "Now score clips one by one") : null,
    element("p", { className: "exports" }, "Everybody's answers: ", ...state.exports.map((name) =>
      element("a", { href: `export/${name}`, download: name, textContent: name }))));
}

function histogram() {
  const counts = Array(11).fill(0);
  for (const score of state.answers.values()) counts[Math.floor(score)] += 1;
  const most = Math.max(...counts, 1);
  return element("div", { className: "histogram", role: "img", ariaLabel: `Your scores: ${counts.join(", ")}` },
    ...counts.map((count, score) => {
      const bar = element("i", { title: `${count}` });
      bar.style.height = `${(72 * count) / most + 3}px`;
      bar.style.setProperty("--level", score / 10);
      return element("div", {}, bar, `${score}`);
    }));
}

start();
