// Colours for code: a worker, started when the first code is shown, finds the words within a deadline.
import type { ElementContent, RootContent } from "hast";
import { type ComponentChild, h } from "preact";
import type { Code } from "./highlight_worker";

const WITHIN_MS = 1000;

type Nodes = (RootContent | ElementContent)[];

interface Asked extends Code {
  found: (nodes: Nodes | null) => void;
}

const waiting: Asked[] = [];
let asked: Asked | null = null; // what the worker is at
let worker: Worker | null = null;
let ready = false;
let deadline = 0;

/** Return `text` as elements with classes of highlight.js; null when nobody knows the language or it takes too long. */
export async function highlight(text: string, language: string): Promise<ComponentChild> {
  const nodes = await new Promise<Nodes | null>((found) => {
    waiting.push({ text, language, found });
    askNext();
  });
  return nodes && nodes.map(view);
}

function askNext(): void {
  if (asked || !waiting.length) return;
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
  const wasReady = ready;
  ready = false;
  answer(null);
  // Without its script there are no colours, and nobody waits for them.
  if (wasReady) askNext();
  else for (const one of waiting.splice(0)) one.found(null);
}

function view(node: RootContent | ElementContent): ComponentChild {
  if (node.type === "text") return node.value;
  if (node.type !== "element") return null;
  const names = node.properties.className;
  return h("span", { class: Array.isArray(names) ? names.join(" ") : "" }, node.children.map(view));
}
