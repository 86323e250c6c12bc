// What differs between two texts, as rows to show: lines with their numbers, and in them the words.
import { type ChangeObject, diffLines, diffWordsWithSpace } from "diff";

const MOST_ROWS = 1500;
const LONGEST_LINE = 2000;
const MOST_WORDS = 6000; // characters of lines that are compared word by word
const LEAST_ALIKE = 0.3; // below that, marks would be everywhere
const LINES_MS = 200; // for the lines of two texts; such as have little in common take very long
const WORDS_MS = 100; // for all words of a difference

/** A line, or what is between lines that are shown (`gap`); of `pieces` the marked ones differ. */
export interface Row {
  kind: "same" | "added" | "removed" | "gap";
  line: number | null;
  pieces: { text: string; marked: boolean }[];
}

/** What a page shows of a difference; `cut`: not all of it. */
export interface Difference {
  rows: Row[];
  cut: boolean;
}

/** Return what is shown of a unified diff, which may end anywhere. */
export function ofDiff(diff: string): Difference {
  const rows: Row[] = [];
  let before = 0;
  let after = 0;
  for (const line of diff.replace(/\n$/, "").split("\n")) {
    const hunk = /^@@ -(\d+)(?:,\d+)? \+(\d+)/.exec(line);
    if (hunk) {
      before = Number(hunk[1]);
      after = Number(hunk[2]);
      if (rows.length > 0 || Math.max(before, after) > 1) rows.push(row("gap", null, `Line ${after}`));
    } else if (before + after === 0) continue;
    else if (line.startsWith("+")) rows.push(row("added", after++, line.slice(1)));
    else if (line.startsWith("-")) rows.push(row("removed", before++, line.slice(1)));
    else if (line.startsWith("\\")) rows.push(row("gap", null, "No newline at the end"));
    else {
      rows.push(row("same", after++, line.slice(1)));
      before += 1;
    }
  }
  return shownOf(rows);
}

/** Return what is shown of two texts, with what is the same in both. */
export function ofTexts(before: string, after: string): Difference {
  const rows: Row[] = [];
  for (const part of partsOf(before, after)) {
    const kind = part.added ? "added" : part.removed ? "removed" : "same";
    for (const text of part.value.replace(/\n$/, "").split("\n")) rows.push(row(kind, null, text));
    if (rows.length > MOST_ROWS) break;
  }
  return shownOf(rows);
}

/** Return the lines of two texts as far as they differ; as wholly different ones where it would take too long. */
export function partsOf(before: string, after: string): ChangeObject<string>[] {
  const whole = (value: string, added: boolean) => ({ value, added, removed: !added, count: value.replace(/\n$/, "").split("\n").length });
  return diffLines(before, after, { timeout: LINES_MS }) ?? [whole(before, false), whole(after, true)];
}

function shownOf(all: Row[]): Difference {
  const rows = all.slice(0, MOST_ROWS);
  let cut = rows.length < all.length;
  for (const { pieces: [piece] } of rows) {
    if (!piece || piece.text.length <= LONGEST_LINE) continue;
    piece.text = `${piece.text.slice(0, LONGEST_LINE)}\u2026`;
    cut = true;
  }
  markWords(rows);
  return { rows, cut };
}

function row(kind: Row["kind"], line: number | null, text: string): Row {
  return { kind, line, pieces: [{ text, marked: false }] };
}

/** Mark the words that differ where lines take the place of others. */
function markWords(rows: Row[]): void {
  const until = performance.now() + WORDS_MS;
  let at = 0;
  while (at < rows.length && performance.now() < until) {
    const removed = run(rows, at, "removed");
    const added = run(rows, at + removed.length, "added");
    if (removed.length && added.length) markRun(removed, added);
    at += Math.max(1, removed.length + added.length);
  }
}

function run(rows: Row[], from: number, kind: Row["kind"]): Row[] {
  let to = from;
  while (rows[to]?.kind === kind) to += 1;
  return rows.slice(from, to);
}

function markRun(removed: Row[], added: Row[]): void {
  const [one, other] = [removed, added].map((rows) => rows.map(({ pieces }) => pieces[0]!.text).join("\n")) as [string, string];
  if (one.length + other.length > MOST_WORDS) return;
  const parts = diffWordsWithSpace(one, other, { timeout: WORDS_MS });
  if (!parts) return;
  const alike = parts.filter((part) => !part.added && !part.removed).reduce((sum, { value }) => sum + value.trim().length, 0);
  if (alike * 2 < LEAST_ALIKE * (one.length + other.length)) return;
  spread(removed, parts.filter((part) => !part.added));
  spread(added, parts.filter((part) => !part.removed));
}

/** Give each line its pieces of what was compared as one. */
function spread(rows: Row[], parts: ChangeObject<string>[]): void {
  let at = 0;
  for (const one of rows) one.pieces = [];
  for (const part of parts) {
    for (const [index, text] of part.value.split("\n").entries()) {
      if (index > 0) at += 1;
      if (text) rows[at]?.pieces.push({ text, marked: Boolean(part.added || part.removed) });
    }
  }
}
