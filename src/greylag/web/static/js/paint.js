// Text comes faster than pages can be laid out. It is put into the page once per frame, a bounded
// amount each time, so that ten thousand pieces or two megabytes never freeze what a person does.
const BUDGET_MS = 8;
const PIECE = 4096;

const waiting = []; // [writer, text] in order
const listeners = new Set();
let scheduled = false;
let idle = Promise.resolve();
let settle = () => {};

/** Hand `text` to `writer.write` soon, after all that was handed over before. */
export function paint(writer, text) {
  const last = waiting.at(-1);
  if (last && last[0] === writer) last[1] += text;
  else waiting.push([writer, text]);
  if (scheduled) return;
  scheduled = true;
  idle = new Promise((resolve) => { settle = resolve; });
  schedule();
}

/** Resolves once everything handed over so far stands in the page. */
export function painted() {
  return idle;
}

/** Call `before()` ahead of each frame's work, and what it returns after it. */
export function aroundPaint(before) {
  listeners.add(before);
}

function schedule() {
  // A hidden page gets no frames, and its streams go on all the same.
  if (document.visibilityState === "hidden") setTimeout(work, 50);
  else requestAnimationFrame(work);
}

function work() {
  const afters = [...listeners].map((before) => before());
  const end = performance.now() + BUDGET_MS;
  while (waiting.length && performance.now() < end) {
    const [writer, text] = waiting[0];
    const cut = cutAt(text);
    writer.write(text.slice(0, cut));
    if (cut < text.length) waiting[0][1] = text.slice(cut);
    else waiting.shift();
  }
  for (const after of afters) after();
  scheduled = waiting.length > 0;
  if (scheduled) schedule();
  else settle();
}

function cutAt(text) {
  if (text.length <= PIECE) return text.length;
  const code = text.charCodeAt(PIECE - 1);
  const splitsAPair = code >= 0xd800 && code < 0xdc00;
  return splitsAPair ? PIECE + 1 : PIECE;
}
