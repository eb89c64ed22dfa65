// Two clips of one text beside each other: which is better?

import { Refused } from "./api.js";

const KEYS = { 1: "a", 2: "b", 0: "tie", ArrowLeft: "a", ArrowRight: "b", ArrowDown: "tie" };

const $ = (id) => document.getElementById(id);

// Those of `jobs` that `job` can be compared with.
export function partners(job, jobs) {
  if (job?.status !== "completed" || job.format !== "mp4") return [];
  const alike = (other) => ["status", "format", "category", "prompt"].every((name) => other[name] === job[name]);
  return jobs.filter((other) => other.id !== job.id && alike(other));
}

// `job` and the first of `others` whose clip is not the same, each as [job, clip], in an order left to chance: nobody
// can tell which was made last, and who likes what is on the left prefers neither.
export async function chosen(job, others, file) {
  const clip = await file(job.id, "video");
  for (const other of others) {
    const another = await file(other.id, "video");
    if (await same(clip, another)) continue;
    const pair = [[job, clip], [other, another]];
    return Math.random() < 0.5 ? pair : pair.reverse();
  }
  throw new Refused(0, "The other clips of this text are the same, byte for byte.");
}

async function same(a, b) {
  if (a.size !== b.size) return false;
  const [one, two] = (await Promise.all([a.arrayBuffer(), b.arrayBuffer()])).map((data) => new Uint8Array(data));
  return one.every((byte, i) => byte === two[i]);
}

// "a", "b" or "tie"; "" when the question was closed.
export function asked(pair) {
  const videos = [$("one"), $("two")];
  videos.forEach((video, i) => {
    video.src = URL.createObjectURL(pair[i][1]);
    video.dataset.id = pair[i][0].id;
  });
  $("both").textContent = pair[0][0].prompt;
  $("pair").returnValue = "";
  $("pair").showModal();
  for (const video of videos) video.play().catch(() => {}); // browsers may want a press first
  return new Promise((resolve) => {
    $("pair").onclose = () => {
      for (const video of videos) {
        URL.revokeObjectURL(video.src);
        video.removeAttribute("src");
      }
      resolve($("pair").returnValue);
    };
  });
}

// Digits by position too: some layouts have them behind Shift.
export function onPairKey(event) {
  const digit = /^(?:Digit|Numpad)(\d)$/.exec(event.code);
  const better = KEYS[digit ? digit[1] : event.key];
  if (!better) return;
  event.preventDefault();
  $("pair").close(better);
}
