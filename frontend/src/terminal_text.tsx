// What a program printed for a terminal, with its colours. ansi-sequence-parser finds them; other control
// sequences are shown as what they are. Lines that have come are made once, however long a program prints.
import { type Color, parseAnsiSequences } from "ansi-sequence-parser";
import type { JSX } from "preact";
import { useRef } from "preact/hooks";
import { visible } from "./text";

const MOST = 200_000;
const MOVES = /\x1b\[(?![0-9;]*m)[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[()][A-Z0-9]/g;
const REDRAWN = /^.*\r(?=[^\n])/gm; // of a line that was written over, the last state counts
const OTHERS = /\x1b(?!\[[0-9;]*m)/g; // the parser would look for an end that never comes
const STYLES = /\x1b\[([0-9;]*)m/g;
const MOST_CODES = 40; // of one sequence

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
  #styles = ""; // that hold at the end of the lines
  #whole = ""; // lines that are made
  #made: JSX.Element[] = [];

  takes(text: string): boolean {
    return text.startsWith(this.#whole);
  }

  show(text: string): JSX.Element[] {
    const end = text.lastIndexOf("\n") + 1;
    if (end > this.#whole.length) {
      const lines = this.#styles + cleaned(text.slice(this.#whole.length, end));
      this.#made.push(<Pieces key={this.#made.length} pieces={piecesOf(lines)} />);
      this.#styles = stylesAt(lines);
      this.#whole = text.slice(0, end);
    }
    return [...this.#made, <Pieces key="rest" pieces={piecesOf(this.#styles + cleaned(text.slice(end)))} />];
  }
}

/** Return a text as the parser is to have it: each style stands alone, as it takes what ends one first, and none is empty. */
function cleaned(text: string): string {
  const plain = text.replace(/\r\n/g, "\n").replace(MOVES, "").replace(REDRAWN, "").replace(/\r+$/, "").replace(OTHERS, "\u241b");
  return plain.replace(STYLES, (_, given: string) => {
    const codes = given.split(";", MOST_CODES).map((code) => code || "0");
    const styles: string[] = [];
    // 38 and 48 take the codes after them: 5 and a number, or 2 and three.
    for (let at = 0; at < codes.length; at++) {
      const more = /^[34]8$/.test(codes[at]!) ? (codes[at + 1] === "5" ? 2 : codes[at + 1] === "2" ? 4 : 0) : 0;
      styles.push(`\x1b[${codes.slice(at, at + 1 + more).join(";")}m`);
      at += more;
    }
    return styles.join("");
  });
}

/** Return what sets the styles that hold at a text's end. */
function stylesAt(text: string): string {
  const { foreground, background, decorations } = parseAnsiSequences(`${text}.`).at(-1)!;
  const codes = [...codesOf(foreground, 30), ...codesOf(background, 40), ...[...decorations].map((one) => DECORATIONS.indexOf(one))];
  return codes.filter((code) => code > 0).map((code) => `\x1b[${code}m`).join("");
}

const DECORATIONS: string[] = ["", "bold", "dim", "italic", "underline", "", "", "reverse", "hidden", "strikethrough"];

/** Return the code of one of the colours that are shown. */
function codesOf(color: Color | null, base: number): number[] {
  const name = color && nameOf(color);
  if (!name) return [];
  const bright = name.startsWith("ansi-bright-");
  return [base + (bright ? 60 : 0) + NAMES.indexOf(name.replace(/^ansi-(bright-)?/, ""))];
}

interface Piece {
  text: string;
  names: string | undefined;
}

/** A component, since Preact passes over one whose element is the same as before. */
function Pieces({ pieces }: { pieces: Piece[] }) {
  return <>{pieces.map(({ text, names }, index) => <span key={index} class={names}>{text}</span>)}</>;
}

function piecesOf(text: string): Piece[] {
  return parseAnsiSequences(text).map(({ value, foreground, background, decorations }) => {
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
