// Colours for code: a worker, started when the first code is shown, finds the words within a deadline.
import type { ElementContent, RootContent } from "hast";
import { type ComponentChild, h } from "preact";
import type { Code } from "./highlight_worker";

const WITHIN_MS = 1000;
const MOST_LOST = 5; // workers that did not answer; then the page does without

type Nodes = (RootContent | ElementContent)[];

interface Asked extends Code {
  isWanted: () => boolean;
  found: (nodes: Nodes | null) => void;
}

const waiting: Asked[] = [];
let asked: Asked | null = null; // what the worker is at
let worker: Worker | null = null;
let ready = false;
let deadline = 0;
let lost = 0;

/** Return `text` as elements with classes of highlight.js; null when nobody knows the language, it takes too
 * long, or `isWanted` no longer says so when its turn comes.
 */
export async function highlight(text: string, language: string, isWanted: () => boolean): Promise<ComponentChild> {
  const nodes = await new Promise<Nodes | null>((found) => {
    waiting.push({ text, language, isWanted, found });
    askNext();
  });
  return nodes && nodes.map(view);
}

function askNext(): void {
  if (asked) return;
  while (waiting.length && (lost > MOST_LOST || !waiting[0]!.isWanted())) waiting.shift()!.found(null);
  if (!waiting.length) return;
  worker ??= started();
  if (!ready) return;
  asked = waiting.shift()!;
  deadline = setTimeout(giveUp, WITHIN_MS);
  worker.postMessage({ text: asked.text, language: asked.language });
}

function started(): Worker {
  const made = new Worker(new URL("./highlight_worker.js", import.meta.url));
  made.onmessage = ({ data }: MessageEvent<Nodes | null | "ready">) => {
    if (data === "ready") ready = true;
    else answer(data);
    askNext();
  };
  made.onerror = giveUp;
  return made;
}

function answer(nodes: Nodes | null): void {
  clearTimeout(deadline);
  asked?.found(nodes);
  asked = null;
}

/** End a worker that does not answer; the next code gets another. */
function giveUp(): void {
  worker?.terminate();
  worker = null;
  lost = ready ? lost + 1 : MOST_LOST + 1; // without its script there are no colours at all
  ready = false;
  answer(null);
  askNext();
}

function view(node: RootContent | ElementContent): ComponentChild {
  if (node.type === "text") return node.value;
  if (node.type !== "element") return null;
  const names = node.properties.className;
  return h("span", { class: Array.isArray(names) ? names.join(" ") : "" }, node.children.map(view));
}
