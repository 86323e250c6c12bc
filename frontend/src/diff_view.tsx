// The rows of a difference, as far as a page can show them.
import type { Row } from "./differences";
import { visible } from "./text";

const MOST_ROWS = 1500;
const LONGEST_LINE = 2000;
const SIGNS = { same: " ", added: "+", removed: "\u2212", gap: "" };

/** Tell whether `DiffRows` shows less than all of `rows`. */
export function isCut(rows: Row[]): boolean {
  return rows.length > MOST_ROWS || rows.some(({ pieces }) => lengthOf(pieces) > LONGEST_LINE);
}

/** Shows lines with their signs, so that colours are not all that tells them apart. */
export function DiffRows({ rows, label }: { rows: Row[]; label: string }) {
  return (
    <pre class="code diff" tabIndex={0} dir="ltr" aria-label={label}>
      <code>{rows.slice(0, MOST_ROWS).map((row, index) => <Line key={index} row={row} />)}</code>
    </pre>
  );
}

/** "+48 −2", without what is none. */
export function LineCounts({ added, deleted }: { added: number; deleted: number }) {
  return <>{added > 0 && <span class="count-added">+{added}</span>} {deleted > 0 && <span class="count-deleted">&minus;{deleted}</span>}</>;
}

function Line({ row: { kind, line, pieces } }: { row: Row }) {
  if (kind === "gap") return <span class="diff-gap">{visible(pieces[0]?.text ?? "")}{"\n"}</span>;
  const shown = lengthOf(pieces) > LONGEST_LINE ? [{ text: `${pieces.map(({ text }) => text).join("").slice(0, LONGEST_LINE)}\u2026`, marked: false }] : pieces;
  return (
    <span class={`diff-${kind}`} data-line={line ?? undefined}>
      {SIGNS[kind]} {shown.map(({ text, marked }, index) => (marked ? <mark key={index}>{visible(text)}</mark> : visible(text)))}{"\n"}
    </span>
  );
}

function lengthOf(pieces: Row["pieces"]): number {
  return pieces.reduce((sum, { text }) => sum + text.length, 0);
}
