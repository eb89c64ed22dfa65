// The rating page: one question at a time, every answer saved before the next one appears.

import { Refused, server } from "./server.js";
import { CHOICES, CRITERIA, button, choices, criteria, element, finished, heading, key, keepInPart, parts, players, preload, replay, scale, showMarks, showPart } from "./view.js";

const TITLES = { score: "Score", compare: "Compare", segments: "Compare parts", study: "Study" };
const WELCOME = {
  score: "You will see short clips, one after the other, and score each from 0 to 10. Go by your gut: how much do you like it, and does it show what the text says?",
  segments: "You will see two clips that start alike, side by side: say which one is better as a whole, then in each part of it.",
  study: "You will see short clips, one after the other, and give each three marks from 1 to 5. Who or what made a clip stays hidden.",
};
const KEYS = {
  score: [["0 – 9", "score"], ["T", "ten"], ["⇧ 7  or  H 7", "7½"]],
  compare: [["←", "left is better"], ["→", "right is better"], ["↓", "tie"]],
  segments: [["←", "left is better"], ["→", "right is better"], ["↓", "tie"], ["⌫", "back one choice"]],
  study: [["1 – 5", "mark"], ["⌫", "back one mark"]],
};
const ARROWS = { ArrowLeft: "left", ArrowRight: "right", ArrowDown: "tie" };

const $ = (id) => document.getElementById(id);
const api = server((waiting) => { $("offline").hidden = !waiting; });

const state = {
  modes: [], exports: [], mode: null, rater: null,
  tasks: [], answers: new Map(), skipped: new Set(),
  task: null, // what is asked now; null: all done
  half: false, // the next digit gets + 1/2
  marks: {}, // of the user study, for the clip on show
  choices: [], // of the two clips on show: as a whole, then of each part
  busy: true,
};

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
  requestAnimationFrame(keepInPart);
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
  Object.assign(state, { half: false, marks: {}, choices: [] });
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

const undo = () => (state.choices.length ? takeChoiceBack() : undoAnswer());

const undoAnswer = () => alone(async () => {
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
  showMarks(state.marks);
  if (CRITERIA.every(([name]) => name in state.marks)) {
    answer(state.marks, CRITERIA.map(([name]) => state.marks[name]).join(" · "));
  }
}

function takeMarkBack() {
  const last = CRITERIA.findLast(([name]) => name in state.marks);
  if (last && !state.busy) delete state.marks[last[0]];
  showMarks(state.marks);
}

const choose = (choice) => (state.mode === "segments" ? choosePart(choice) : answer(choice, CHOICES[choice].text, chosen(choice)));

const chosen = (choice) => document.querySelector(`[data-choice="${choice}"]`);

function choosePart(choice) {
  if (!state.task || state.busy) return;
  state.choices.push(choice);
  const [whole, ...those] = state.choices;
  if (those.length < state.task.parts.length) return showPart(state.task.parts, state.choices);
  answer({ whole, parts: those }, state.choices.map((one) => CHOICES[one].text).join(" · "), chosen(choice));
}

function takeChoiceBack() {
  if (state.busy) return;
  state.choices.pop();
  showPart(state.task.parts, state.choices);
}

// Keyboard

function onKey(event) {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || $("login").open) return;
  const handled = commonKey(event) || (state.task && modeKey(event));
  if (handled) event.preventDefault();
}

function commonKey(event) {
  const action = { s: skip, u: undo, r: replay }[event.key.toLowerCase()];
  action?.();
  return Boolean(action);
}

function modeKey(event) {
  if (state.mode === "compare" || state.mode === "segments") {
    const choice = ARROWS[event.key];
    const back = event.key === "Backspace" && state.choices.length > 0;
    if (choice) choose(choice);
    else if (back) takeChoiceBack();
    return Boolean(choice) || back;
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
  $("half").ariaPressed = state.half;
}

// Screen

let fading;
function toast(text, hint = null) {
  $("toast").replaceChildren(text, ...(hint ? [key("U"), hint] : []));
  $("toast").classList.add("shown");
  clearTimeout(fading);
  fading = setTimeout(() => $("toast").classList.remove("shown"), 2200);
}

let ahead = []; // clips of the next question, kept while this one is on show
function render(next) {
  renderHeader();
  $("stage").className = state.task ? `asks-${state.mode}` : "done";
  $("stage").replaceChildren(...(state.task ? question(state.task) : [ending()]));
  if (state.task && state.mode === "study") showMarks(state.marks);
  showPart(state.task?.parts ?? [], state.choices);
  const hints = (state.task ? KEYS[state.mode] : []).map(([name, text]) => element("span", {}, key(name), text));
  const press = (name, text, action) => button("press", action, key(name), text);
  const always = [press("S", "skip", skip), press("U", "undo", undo), press("R", "replay", replay)];
  $("keys").replaceChildren(...hints, ...(state.task ? always : [always[1]]));
  ahead = next ? preload(next.clips) : [];
}

function renderHeader() {
  const total = state.tasks.length;
  const done = state.tasks.filter((task) => state.answers.has(task.id)).length;
  $("bar").style.width = total ? `${(100 * done) / total}%` : "0";
  $("count").textContent = `${done} of ${total}`;
  $("who").textContent = state.rater;
  $("who").hidden = false;
  const tab = (mode) => {
    const node = button("tab", () => go(mode), TITLES[mode]);
    if (mode === state.mode) node.setAttribute("aria-current", "page");
    return node;
  };
  $("modes").hidden = state.modes.length === 1;
  $("modes").replaceChildren(...state.modes.map(tab));
}

function question({ clips, parts: asked }) {
  const broken = () => toast("This browser cannot play the clip; skip it with S");
  const press = (side) => (side ? choose(side) : replay());
  const controls = {
    score: () => scale((score) => giveScore(score + (state.half ? 0.5 : 0)), toggleHalf),
    compare: () => choices(choose),
    segments: () => parts(asked.length, choices(choose)),
    study: () => criteria(giveMark),
  };
  return [heading(clips), players(clips, { press, broken }), controls[state.mode]()];
}

function ending() {
  const other = state.modes.find((mode) => mode !== state.mode);
  return finished({
    rater: state.rater,
    count: state.tasks.length,
    scores: state.mode === "score" ? [...state.answers.values()] : null,
    exports: state.exports,
    proceed: other && (() => go(other)),
    proceedText: other === "compare" ? "Now compare clips side by side" : "Now score clips one by one",
  });
}

const go = (mode) => alone(() => enter(state.rater, mode));

start();
