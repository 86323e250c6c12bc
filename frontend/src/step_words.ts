// What a tool call does, in words: goose's own tools by what they are for, others by their name.
import { partsOf } from "./differences";
import type { Step } from "./turn_model";
import { textOr } from "./text";

const BRIEF = 160;
const COUNTING_MS = 150; // at once, of lines of changes: hundreds of steps may come in one frame

export type StepKind = "run" | "write" | "list" | "read" | "plan" | "use";

/** A step's title: a verb, what it is done to (as code), and what else there is to tell. */
export interface StepWords {
  kind: StepKind;
  verb: string;
  object: string;
  more: string;
  command: string | null;
  change: { before: string; after: string } | null;
}

/** Return how to tell of `step`; `tense` is present while it runs or asks. */
export function wordsOf(step: Step): StepWords {
  const past = step.state === "done" || step.state === "failed";
  const given = step.arguments;
  const path = textOr(given.path) || textOr(given.file_path);
  const words = (kind: StepKind, now: string, then: string, object: string): StepWords => ({
    kind, verb: past ? then : now, object: brief(object), more: "", command: null, change: null,
  });
  switch (step.tool.split("__").at(-1)) {
    case "shell": {
      const command = textOr(given.command);
      return { ...words("run", "Run", "Ran", command), command };
    }
    case "write": {
      const change = { before: "", after: textOr(given.content) || textOr(given.file_text) };
      return { ...words("write", "Write", "Wrote", path), more: countsOf(given, change), change };
    }
    case "edit": {
      const change = { before: textOr(given.before) || textOr(given.old_str), after: textOr(given.after) || textOr(given.new_str) };
      return { ...words("write", "Edit", "Edited", path), more: countsOf(given, change), change };
    }
    case "tree":
      return words("list", "List", "Listed", path || ".");
    case "read":
    case "read_image":
    case "analyze":
      return words("read", "Read", "Read", path);
    case "todo_write":
      return words("plan", "Plan", "Planned", "");
    default:
      return words("use", "Use", "Used", [step.tool.replaceAll("__", " "), argument(given)].filter(Boolean).join(" "));
  }
}

const counted = new WeakMap<Step["arguments"], string>(); // a step is told of in every frame of its turn
let left = COUNTING_MS; // for all that is counted until the page has had its turn

function countsOf(given: Step["arguments"], change: { before: string; after: string }): string {
  const known = counted.get(given);
  if (known !== undefined || left <= 0) return known ?? "";
  const began = performance.now();
  const counts = countOf(change);
  counted.set(given, counts);
  if (left === COUNTING_MS) setTimeout(() => { left = COUNTING_MS; });
  left -= Math.max(0.01, performance.now() - began);
  return counts;
}

function countOf(change: { before: string; after: string }): string {
  let added = 0;
  let removed = 0;
  for (const part of partsOf(change.before, change.after)) {
    if (part.added) added += part.count;
    if (part.removed) removed += part.count;
  }
  return [added && `+${added}`, removed && `\u2212${removed}`].filter(Boolean).join(" ");
}

function argument(given: Record<string, unknown>): string {
  const values = Object.values(given);
  return values.length === 1 && typeof values[0] === "string" ? values[0] : "";
}

function brief(text: string): string {
  const line = text.trim().split("\n")[0] ?? "";
  return line.length > BRIEF || line.length < text.trim().length ? `${line.slice(0, BRIEF)}\u2026` : line;
}
