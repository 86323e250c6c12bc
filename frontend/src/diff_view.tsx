// A difference as lines with their signs, and how many came and went.
import type { Difference, Row } from "./differences";
import { visible } from "./text";

const SIGNS = { same: " ", added: "+", removed: "\u2212", gap: "" };

/** Shows lines with their signs, so that colours are not all that tells them apart. */
export function DiffRows({ difference: { rows, cut }, label }: { difference: Difference; label: string }) {
  return (
    <pre class="code diff" tabIndex={0} dir="ltr" aria-label={label}>
      <code>
        {rows.map((row, index) => <Line key={index} row={row} />)}
        {cut && <span class="diff-gap">Shown in part</span>}
      </code>
    </pre>
  );
}

function Line({ row: { kind, line, pieces } }: { row: Row }) {
  const shown = pieces.map(({ text, marked }, index) => (marked ? <mark key={index}>{visible(text)}</mark> : visible(text)));
  if (kind === "gap") return <span class="diff-gap">{shown}{"\n"}</span>;
  return <span class={`diff-${kind}`} data-line={line ?? undefined}>{SIGNS[kind]} {shown}{"\n"}</span>;
}

/** "+48 −2", without what is none. */
export function LineCounts({ added, deleted }: { added: number; deleted: number }) {
  return <>{added > 0 && <span class="count-added">+{added}</span>} {deleted > 0 && <span class="count-deleted">&minus;{deleted}</span>}</>;
}
