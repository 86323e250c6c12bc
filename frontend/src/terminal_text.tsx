// What a program printed for a terminal, with its colours. ansi-sequence-parser finds them; other control
// sequences are shown as what they are. Lines that have come are made once, however long a program prints.
import { type Color, createAnsiSequenceParser } from "ansi-sequence-parser";
import type { JSX } from "preact";
import { useRef } from "preact/hooks";
import { visible } from "./text";

const MOST = 200_000;
const MOVES = /\x1b\[[0-9;?]*[A-HJKSTfhlsu]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[()][A-Z0-9]/g;
const REDRAWN = /^.*\r(?=[^\n])/gm; // of a line that was written over, the last state counts
const OTHERS = /\x1b(?!\[[0-9;]*m)/g; // the parser would look for an end that never comes

/** Text with ANSI colours, shown up to a limit. */
export function TerminalText({ text }: { text: string }) {
  const printed = useRef<Printed>(null);
  printed.current = printed.current?.takes(text) ? printed.current : new Printed();
  return (
    <>
      {printed.current.show(text.slice(0, MOST))}
      {text.length > MOST && "\n(The rest is not shown.)"}
    </>
  );
}

/** The lines of a text that grows. */
class Printed {
  #parser = createAnsiSequenceParser();
  #whole = ""; // lines that are made
  #made: JSX.Element[] = [];

  takes(text: string): boolean {
    return text.startsWith(this.#whole);
  }

  show(text: string): JSX.Element[] {
    const end = text.lastIndexOf("\n") + 1;
    if (end > this.#whole.length) {
      const pieces = piecesOf(text.slice(this.#whole.length, end), this.#parser);
      this.#made.push(<Pieces key={this.#made.length} pieces={pieces} />);
      this.#whole = text.slice(0, end);
    }
    // What a line will be is not known before its end: it leaves the colours of the next one alone.
    const rest = piecesOf(text.slice(end), createAnsiSequenceParser());
    return [...this.#made, <Pieces key="rest" pieces={rest} />];
  }
}

interface Piece {
  text: string;
  names: string | undefined;
}

/** A component, since Preact passes over one whose element is the same as before. */
function Pieces({ pieces }: { pieces: Piece[] }) {
  return <>{pieces.map(({ text, names }, index) => <span key={index} class={names}>{text}</span>)}</>;
}

function piecesOf(text: string, parser: ReturnType<typeof createAnsiSequenceParser>): Piece[] {
  const plain = text.replace(/\r\n/g, "\n").replace(MOVES, "").replace(REDRAWN, "").replace(OTHERS, "\u241b");
  return parser.parse(plain).map(({ value, foreground, background, decorations }) => {
    const turned = decorations.has("reverse");
    const names = [nameOf(turned ? background : foreground), nameOf(turned ? foreground : background, "-bg")];
    return { text: visible(value), names: [...names, ...[...decorations].map((one) => `ansi-${one}`)].filter(Boolean).join(" ") || undefined };
  });
}

const NAMES = ["black", "red", "green", "yellow", "blue", "magenta", "cyan", "white"];

/** Return the class of one of the sixteen colours that have a name; others stay as the text is. */
function nameOf(color: Color | null, end = ""): string {
  if (color?.type === "table" && color.index < 16) return `ansi-${color.index > 7 ? "bright-" : ""}${NAMES[color.index % 8]}${end}`;
  return color?.type === "named" ? `ansi-${color.name.replace("bright", "bright-").toLowerCase()}${end}` : "";
}
