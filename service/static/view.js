// Builds what is on the screen. Knows nothing of answers: what a press does comes in as a function.

export const CRITERIA = [
  ["aesthetics", "Aesthetics", "How good does it look?", "ugly or broken", "all right", "beautiful"],
  ["consistency", "Consistency", "Do things keep their shape while they move?", "melts or flickers", "small jumps", "smooth and stable"],
  ["alignment", "Alignment", "Does it show what the text says?", "something else", "a part of it", "all of it"],
];
export const CHOICES = {
  left: { arrow: "←", text: "Left" },
  tie: { arrow: "↓", text: "Tie" },
  right: { arrow: "→", text: "Right" },
};
const SCORE_ANCHORS = ["broken", "all right", "could not be better"];
const SMALL = 128; // pixels; clips up to this width keep their pixels instead of being smeared over the screen

export function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children.filter((child) => child !== null));
  return node;
}

export const button = (className, onclick, ...children) =>
  element("button", { type: "button", className, onclick }, ...children);

export const key = (text) => element("kbd", { textContent: text });

// Clips

// The text above the clips: that of the one clip, or of two that share it.
export function heading([clip, other]) {
  if (!other || sameText(clip, other)) return prompt(clip);
  return element("p", { className: "prompt ask", textContent: "Which one is better?" });
}

// One clip, or two with the left one first; each with its own text below where the texts differ.
export function players(clips, { press, broken }) {
  const own = clips.length === 2 && !sameText(...clips);
  const sides = clips.length === 2 ? ["left", "right"] : [null];
  const figures = clips.map((clip, i) => element("figure", { className: "clip" },
    player(clip, () => press(sides[i]), broken), own ? prompt(clip) : null));
  return element("div", { className: "clips" }, ...figures);
}

const sameText = (a, b) => a.prompt === b.prompt && a.style === b.style;

const prompt = (clip) => element("p", { className: "prompt" }, `“${clip.prompt}”`,
  clip.style ? element("span", { className: "style", textContent: clip.style.replace("-", " ") }) : null);

function player(clip, onclick, onerror) {
  const shared = { src: `clips/${clip.id}`, onclick, onerror };
  if (clip.picture) {
    return element("img", { ...shared, alt: "", onload: ({ target }) => fit(target, target.naturalWidth, target.naturalHeight) });
  }
  const video = element("video", { ...shared, muted: true, loop: true, autoplay: true, playsInline: true, preload: "auto" });
  video.onloadeddata = () => fit(video, video.videoWidth, video.videoHeight);
  return video;
}

// Shows a clip once its size is known, so that nothing jumps.
function fit(node, width, height) {
  node.style.setProperty("--aspect", width / height);
  node.classList.toggle("small", width <= SMALL);
  node.classList.add("ready");
}

// Loads clips into the browser's cache, so that the next question appears at once.
export const preload = (clips) => clips.map((clip) =>
  element(clip.picture ? "img" : "video", { src: `clips/${clip.id}`, preload: "auto", muted: true }));

export function replay() {
  for (const clip of document.querySelectorAll(".clip video, .clip img")) {
    if (clip.tagName === "IMG") clip.src = clip.src;
    else {
      clip.currentTime = playing ? playing[0] + EDGE : 0;
      clip.play().catch(() => {});
    }
  }
}

// Parts: from and to, in seconds, of the clips on show

const EDGE = 0.02; // seconds that a part starts late and ends early, or its neighbours' frames would flash up
let playing = null; // the part that plays; null: all of it

// Called for each frame of the screen: when one clip leaves the part, both play it again.
export function keepInPart() {
  requestAnimationFrame(keepInPart);
  if (!playing) return;
  const clips = [...document.querySelectorAll(".clip video")];
  if (clips.some((clip) => clip.seeking || !clip.readyState)) return;
  if (clips.some(({ currentTime }) => currentTime < playing[0] || currentTime > playing[1] - EDGE)) replay();
}

// What is asked of the two clips, step by step, above the buttons.
export function parts(count, buttons) {
  const steps = Array.from({ length: count + 1 }, (_, i) => element("li", { textContent: i ? `Part ${i}` : "Whole" }));
  return element("div", { className: "parts" },
    element("ol", { ariaLabel: "Steps" }, ...steps), element("p", { className: "prompt ask" }), buttons);
}

// Asks for the step after those that have been chosen, and plays its part.
export function showPart(asked, chosen) {
  playing = asked[chosen.length - 1] ?? null;
  const steps = document.querySelectorAll(".parts li");
  if (!steps.length) return;
  steps.forEach((step, i) => {
    step.classList.toggle("chosen", i < chosen.length);
    step.ariaCurrent = i === chosen.length ? "step" : null;
    step.dataset.arrow = CHOICES[chosen[i]]?.arrow ?? "";
  });
  document.querySelector(".parts .ask").textContent = chosen.length
    ? `Which one is better in part ${chosen.length} of ${asked.length}?` : "Which one is better as a whole?";
  replay();
}

// Controls

export function scale(giveScore, toggleHalf) {
  const steps = Array.from({ length: 11 }, (_, score) => {
    const node = button("step", () => giveScore(score), `${score}`);
    node.dataset.score = score;
    node.style.setProperty("--level", score / 10);
    return node;
  });
  const half = button("half", toggleHalf, "+ ½");
  Object.assign(half, { id: "half", title: "The next score gets a half more", ariaPressed: "false" });
  return element("div", { className: "scores" },
    element("div", { className: "scale", role: "group", ariaLabel: "Score from 0 to 10" }, ...steps), half,
    element("div", { className: "anchors" }, ...SCORE_ANCHORS.map((text) => element("span", { textContent: text }))));
}

export function choices(choose) {
  const nodes = Object.entries(CHOICES).map(([choice, { arrow, text }]) => {
    const node = button("choice", () => choose(choice), key(arrow), text);
    node.dataset.choice = choice;
    return node;
  });
  return element("div", { className: "choices" }, ...nodes);
}

export function criteria(giveMark) {
  return element("div", { className: "criteria" }, ...CRITERIA.map(([name, title, question, ...anchors]) => {
    const marks = [1, 2, 3, 4, 5].map((mark) => {
      const anchor = mark % 2 ? element("small", { textContent: anchors[(mark - 1) / 2] }) : null;
      const node = button("mark", () => giveMark(mark, name), element("b", { textContent: mark }), anchor);
      node.dataset.mark = mark;
      return node;
    });
    const row = element("div", { className: "criterion", role: "group", ariaLabel: title },
      element("div", {}, element("h2", { textContent: title }), element("p", { textContent: question })), ...marks);
    row.dataset.name = name;
    return row;
  }));
}

export function showMarks(marks) {
  const current = CRITERIA.find(([name]) => !(name in marks))?.[0];
  for (const row of document.querySelectorAll(".criterion")) {
    row.classList.toggle("current", row.dataset.name === current);
    for (const node of row.querySelectorAll(".mark")) {
      node.classList.toggle("chosen", Number(node.dataset.mark) === marks[row.dataset.name]);
    }
  }
}

// The end

export function finished({ rater, count, scores, exports, proceed, proceedText }) {
  return element("div", { className: "finished" },
    element("div", { className: "tick", textContent: "✓" }),
    element("h1", { textContent: `Thank you, ${rater}!` }),
    element("p", { textContent: count ? `All ${count} answers are saved.` : "There is nothing to compare here." }),
    scores ? histogram(scores) : null,
    proceed ? button("primary", proceed, proceedText) : null,
    element("p", { className: "exports" }, "Everybody's answers: ", ...exports.map((name) =>
      element("a", { href: `export/${name}`, download: name, textContent: name }))));
}

function histogram(scores) {
  const counts = Array(11).fill(0);
  for (const score of scores) counts[Math.floor(score)] += 1;
  const most = Math.max(...counts, 1);
  const bars = counts.map((count, score) => {
    const bar = element("i", { title: `${count}` });
    bar.style.height = `${(72 * count) / most + 3}px`;
    bar.style.setProperty("--level", score / 10);
    return element("div", {}, bar, `${score}`);
  });
  return element("div", { className: "histogram", role: "img", ariaLabel: `Your scores: ${counts.join(", ")}` }, ...bars);
}
