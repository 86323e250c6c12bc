// What a program printed for a terminal, with its colours. Anser finds them; other control sequences
// are shown as what they are.
import Anser from "anser";
import { visible } from "./text";

const MOST = 200_000;
const MOVES = /\x1b\[[0-9;?]*[A-HJKSTfhlsu]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[()][A-Z0-9]/g;
const REDRAWN = /^.*\r(?=[^\n])/gm; // of a line that was written over, the last state counts

/** Text with ANSI colours, shown up to a limit. */
export function TerminalText({ text }: { text: string }) {
  const shown = text.slice(0, MOST).replace(/\r\n/g, "\n").replace(MOVES, "").replace(REDRAWN, "");
  const pieces = Anser.ansiToJson(shown, { json: true, use_classes: true, remove_empty: true });
  return (
    <>
      {pieces.map((piece, index) => <span key={index} class={classOf(piece)}>{visible(piece.content)}</span>)}
      {text.length > MOST && "\n(The rest is not shown.)"}
    </>
  );
}

function classOf({ fg, bg, decorations }: Anser.AnserJsonEntry): string | undefined {
  const names = [...(fg ? [fg] : []), ...(bg ? [`${bg}-bg`] : []), ...decorations.map((one) => `ansi-${one}`)];
  return names.length ? names.join(" ") : undefined;
}
