// Finds words again in another form of the same text, by their letters: marks, numbers of lists and what is put in between
// do not count.
const LENGTHS = [80, 24, 8]; // letters that are looked for, the more the surer

/** A place in an element's text. */
export class Words {
  #of: Node;
  #letter: Range; // the first

  private constructor(of: Node, letter: Range) {
    this.#of = of;
    this.#letter = letter;
  }

  /** Return the first words in `element` at a point of the screen or after it; null where there are none. */
  static at(element: HTMLElement, x: number, y: number): Words | null {
    const caret = document.caretPositionFromPoint?.(x, y);
    if (!caret || !element.contains(caret.offsetNode)) return null;
    const rest = document.createRange();
    rest.selectNodeContents(element);
    rest.setStart(caret.offsetNode, caret.offset);
    for (const node of textsIn(element)) {
      const from = node === rest.startContainer ? rest.startOffset : 0;
      const letter = rest.intersectsNode(node) ? letterIn(node, 0, from) : null;
      if (letter) return new Words(element, letter);
    }
    return null;
  }

  /** Where they stand on the screen now. */
  get top(): number {
    return this.#letter.getBoundingClientRect().top;
  }

  /** Return the same words in another element, or what stands about there; null where there are none. */
  sameIn(other: HTMLElement): Words | null {
    const [before, after] = this.#around;
    const nodes = textsIn(other);
    const letters = nodes.map((node) => lettersOf(node.data));
    const all = letters.join("");
    const about = Math.floor((before.length / (before.length + after.length)) * all.length);
    let place = nearest(all, after, about);
    const found = letters.findIndex(({ length }) => (place -= length) < 0);
    const letter = found < 0 ? null : letterIn(nodes[found]!, place + letters[found]!.length);
    return letter && new Words(other, letter);
  }

  /** The letters before them and from them on. */
  get #around(): [string, string] {
    const { startContainer, startOffset } = this.#letter;
    const part = document.createRange();
    part.selectNodeContents(this.#of);
    part.setEnd(startContainer, startOffset);
    const before = lettersOf(part.toString());
    part.selectNodeContents(this.#of);
    part.setStart(startContainer, startOffset);
    return [before, lettersOf(part.toString())];
  }
}

function lettersOf(text: string): string {
  return text.replace(/^[^\S\n]*\d+[.)]\s/gm, "").replace(/[^\p{L}\p{N}]+/gu, "");
}

function textsIn(element: Node): Text[] {
  const walker = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
  const found: Text[] = [];
  while (walker.nextNode()) {
    const node = walker.currentNode as Text;
    if (node.parentElement?.closest(".prose")) found.push(node); // steps and thoughts one of the two forms alone has
  }
  return found;
}

/** Return the letter of a text that has so many units before it, of those of letters after `from`. */
function letterIn(node: Text, units: number, from = 0): Range | null {
  for (const found of node.data.slice(from).matchAll(/[\p{L}\p{N}]/gu)) {
    units -= found[0].length;
    if (units >= 0) continue;
    const letter = document.createRange();
    letter.setStart(node, from + found.index);
    letter.setEnd(node, from + found.index + found[0].length);
    return letter;
  }
  return null;
}

/** Return where `all` has the beginning of `wanted`, next to `about`; that, where it has not. */
function nearest(all: string, wanted: string, about: number): number {
  for (const length of LENGTHS) {
    const words = wanted.slice(0, length);
    const places = [all.lastIndexOf(words, about), all.indexOf(words, about)].filter((place) => place >= 0);
    if (places.length) return places.reduce((one, other) => (Math.abs(one - about) <= Math.abs(other - about) ? one : other));
  }
  return about;
}
