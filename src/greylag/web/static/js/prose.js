// An answer's words as they come: paragraphs, lists, headings and code, a light Markdown. Everything
// becomes elements that we make and text that we set; nothing the agent writes is ever markup.
import { element, visible } from "./text.js";

const LINE_LIMIT = 4000; // longer lines are laid out in pieces
const PARAGRAPH_LINES = 60; // longer blocks too: the browser skips those that are out of sight
const CODE_LINES = 200;
const FENCE = /^\s*```/;
const HEADING = /^#{1,6}\s+(.+)$/;
const ITEM = /^\s*(?:([-*+])|\d{1,9}[.)])\s+(.+)$/;
const INLINE = /`([^`]+)`|\*\*([^*]+)\*\*|https?:\/\/[^\s<>"'`]+/g;

/** Writes text into an element, line by line. */
export class Prose {
  #root;
  #block = null;
  #kind = "";
  #lines = 0;
  #line = "";
  #tail = null; // shows the line that has not ended yet

  constructor(root) {
    this.#root = root;
  }

  write(text) {
    const lines = text.split("\n");
    lines.forEach((line, index) => {
      if (index > 0) this.#endLine();
      if (line) this.#grow(line);
    });
  }

  /** Format the last line too: no more will come. */
  end() {
    if (this.#line) this.#endLine();
  }

  #grow(text) {
    if (this.#line.length > LINE_LIMIT) this.#breakLine();
    this.#line += text;
    if (!this.#tail) {
      if (this.#kind !== "text" && this.#kind !== "code") this.#open("p", "text");
      this.#tail = document.createTextNode("");
      this.#block.append(this.#tail);
    }
    this.#tail.appendData(visible(text));
  }

  #endLine() {
    const line = this.#line.replace(/\r$/, "");
    this.#line = "";
    this.#dropTail();
    if (this.#kind === "code") this.#codeLine(line);
    else this.#textLine(line);
  }

  #breakLine() {
    const cut = this.#line.lastIndexOf(" ") + 1 || this.#line.length; // between words, where there are any
    const line = this.#line.slice(0, cut);
    this.#line = this.#line.slice(cut);
    this.#tail.replaceWith(...(this.#kind === "code" ? [visible(line)] : inline(line)));
    this.#goOn();
    this.#tail = document.createTextNode(visible(this.#line));
    this.#block.append(this.#tail);
  }

  #codeLine(line) {
    if (FENCE.test(line)) return this.#close();
    this.#block.append(`${visible(line)}\n`);
    this.#lines += 1;
    if (this.#lines >= CODE_LINES) this.#goOn();
  }

  #textLine(line) {
    const heading = HEADING.exec(line);
    const item = ITEM.exec(line);
    if (FENCE.test(line)) return this.#open("pre", "code", "code").setAttribute("tabindex", "0");
    if (!line.trim()) return this.#close();
    if (heading) {
      this.#open("h3", "heading").append(...inline(heading[1]));
      return this.#close();
    }
    if (item) return this.#listItem(item);
    if (this.#kind !== "text") this.#open("p", "text");
    if (this.#lines > 0) this.#block.append("\n");
    this.#block.append(...inline(line));
    this.#lines += 1;
    if (this.#lines >= PARAGRAPH_LINES) this.#goOn();
  }

  #listItem([whole, bullet, words]) {
    const kind = bullet ? "list" : "numbers";
    if (this.#kind !== kind) {
      this.#open(bullet ? "ul" : "ol", kind, bullet ? "" : "numbered");
      const first = Number.parseInt(whole.trim(), 10);
      if (!bullet && first > 1) this.#block.start = first;
    }
    const made = element("li");
    made.append(...inline(words));
    this.#block.append(made);
  }

  #open(tag, kind, className = "") {
    this.#block = element(tag, className);
    this.#block.dir = "auto";
    this.#kind = kind;
    this.#lines = 0;
    this.#root.append(this.#block);
    return this.#block;
  }

  #goOn() {
    const { tagName, className } = this.#block;
    this.#open(tagName, this.#kind, className.includes("goes-on") ? className : `${className} goes-on`.trim());
  }

  #close() {
    this.#block = null;
    this.#kind = "";
  }

  #dropTail() {
    this.#tail?.remove();
    this.#tail = null;
    if (this.#kind === "text" && this.#block.childNodes.length === 0) {
      this.#block.remove();
      this.#close();
    }
  }
}

/** Writes text as it is, for thoughts and for what a tool prints; it keeps the first `limit` characters. */
export class Plain {
  #node = document.createTextNode("");
  #left;

  constructor(root, limit = 200_000) {
    this.#left = limit;
    root.append(this.#node);
  }

  write(text) {
    if (this.#left <= 0) return;
    this.#node.appendData(visible(text.slice(0, this.#left)));
    this.#left -= text.length;
    if (this.#left <= 0) this.#node.appendData("\n(The rest is not shown.)");
  }
}

function inline(text) {
  const nodes = [];
  let done = 0;
  for (const match of text.matchAll(INLINE)) {
    nodes.push(visible(text.slice(done, match.index)));
    if (match[1] !== undefined) nodes.push(element("code", "", match[1]));
    else if (match[2] !== undefined) nodes.push(element("strong", "", match[2]));
    else nodes.push(...link(match[0]));
    done = match.index + match[0].length;
  }
  nodes.push(visible(text.slice(done)));
  return nodes.filter((node) => node !== "");
}

function link(text) {
  const address = text.replace(/[.,;:!?)\]}*_]+$/, "");
  const rest = text.slice(address.length);
  // An address whose looks and whose target could differ stays plain text.
  if (visible(address) !== address || !URL.canParse(address)) return [visible(text)];
  const made = element("a", "", address);
  made.href = address;
  made.rel = "noopener noreferrer nofollow";
  made.target = "_blank";
  return [made, rest];
}
