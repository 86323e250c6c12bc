// An answer's words as they come: CommonMark with GFM's tables, strikethrough, links and task lists.
// markdown-it parses; what it finds becomes elements here, never HTML, so nothing the agent writes is markup.
import MarkdownIt, { type Env, type Token } from "markdown-it";
import { type ComponentChild, Fragment, type JSX, h } from "preact";
import { CodeBlock } from "./code_block";
import { visible } from "./text";

const GROUP = 32; // blocks; a frame then looks at the groups and at the last one's blocks, however many there are
const LONG = 4000; // what grows past this many characters is parsed and laid out in pieces
const SAFE_LINK = /^(https?:|mailto:)/i;
const PICTURE = /^data:image\/(png|jpeg|gif|webp);base64,/i;
const TASK = /^\[([ xX])\] /;

const parser = new MarkdownIt({ html: false, linkify: true });

interface Block {
  tokens: Token[];
  line: number;
}

interface Fence {
  opening: string; // the line that began it
  parts: string[];
}

/** Takes text piece by piece; `blocks` are its elements so far, in groups of which only the last may change. */
export class MarkdownStream {
  readonly #groups: JSX.Element[] = []; // that are full
  readonly #done: JSX.Element[] = []; // of the last group
  #open: JSX.Element[] = [];
  #env: Env = {};
  #whole = "";
  #source = ""; // from the beginning of the last block on
  #fence: Fence | null = null; // whose earlier lines are not in the source any more
  #goesOn = false; // whether the source begins in the middle of a paragraph or list
  #blocks: JSX.Element[] = [];

  get blocks(): JSX.Element[] {
    return this.#blocks;
  }

  write(text: string): void {
    const plain = text.replaceAll("\r", "");
    this.#whole += plain;
    this.#source += plain;
    this.#parse();
    this.#show();
  }

  /** No more will come: what is named at the end counts for the beginning too. */
  end(): void {
    if (Object.keys(this.#env.references ?? {}).length > 0) this.#restart();
    this.#finish(this.#split(), true);
    this.#show();
  }

  #show(): void {
    this.#blocks = [...this.#groups, this.#group([...this.#done, ...this.#open])];
  }

  #restart(): void {
    this.#groups.length = 0;
    this.#done.length = 0;
    this.#env = {}; // of two definitions of a name the first counts: that of a line that had only half come must not
    this.#source = this.#whole;
    this.#fence = null;
    this.#goesOn = false;
  }

  #split(): Block[] {
    const blocks: Block[] = [];
    for (const token of parser.parse(this.#source, this.#env)) {
      const last = blocks.at(-1);
      if (token.level === 0 && token.nesting !== -1) blocks.push({ tokens: [token], line: token.map?.[0] ?? 0 });
      else last?.tokens.push(token);
    }
    return blocks;
  }

  #parse(): void {
    const blocks = this.#split();
    const last = blocks.at(-1);
    if (!last) return;
    this.#finish(blocks.slice(0, -1), false);
    if (last.line > 0) this.#source = this.#source.slice(startOfLine(this.#source, last.line));
    if (this.#source.length > LONG) return this.#cut(last);
    this.#open = [this.#view(last, false)];
  }

  #finish(blocks: Block[], closed: boolean): void {
    for (const block of blocks) {
      this.#settle(block);
      this.#fence = null;
      this.#goesOn = false;
    }
    if (closed) this.#open = [];
  }

  /** Settle the beginning of a block that has grown long, so that what it costs does not grow with it. */
  #cut(last: Block): void {
    const kind = last.tokens[0]?.type;
    if (kind === "fence") this.#cutFence();
    else if (kind === "paragraph_open") this.#cutParagraph();
    else if (kind === "bullet_list_open" || kind === "ordered_list_open") this.#cutList(last);
    const [rest] = this.#split();
    this.#open = rest ? [this.#view(rest, false)] : [];
  }

  #cutFence(): void {
    const opening = this.#source.slice(0, this.#source.indexOf("\n") + 1);
    const end = this.#source.lastIndexOf("\n") + 1;
    this.#fence ??= { opening, parts: [] };
    this.#fence.parts.push(this.#source.slice(opening.length, end));
    this.#source = opening + this.#source.slice(end);
  }

  #cutParagraph(): void {
    // Between words that cannot be taken for the beginning of another block.
    const found = [...this.#source.matchAll(/\s(?=[\p{L}\p{N}]+\s)/gu)].at(-1);
    const end = found ? found.index + 1 : this.#source.length - 1;
    const piece = parser.parse(this.#source.slice(0, end), this.#env);
    this.#settle({ tokens: piece, line: 0 });
    this.#source = this.#source.slice(end);
    this.#goesOn = true;
  }

  #cutList(last: Block): void {
    const begins = last.tokens.findLastIndex((token) => token.type === "list_item_open" && token.level === 1);
    const line = last.tokens[begins]?.map?.[0];
    if (!line) return;
    const start = startOfLine(this.#source, line);
    const close = last.tokens.at(-1);
    this.#settle({ tokens: [...last.tokens.slice(0, begins), ...(close ? [close] : [])], line: 0 });
    this.#source = this.#source.slice(start);
    this.#goesOn = true;
  }

  #settle(block: Block): void {
    this.#done.push(this.#view(block, true));
    if (this.#done.length === GROUP) this.#groups.push(this.#group(this.#done.splice(0)));
  }

  #group(blocks: JSX.Element[]): JSX.Element {
    return <Group key={this.#groups.length} blocks={blocks} />;
  }

  #view(block: Block, closed: boolean): JSX.Element {
    const key = this.#done.length;
    const [first] = block.tokens;
    if (first?.type === "fence" || first?.type === "code_block") {
      const parts = [...(this.#fence?.parts ?? []), first.content];
      return <CodeBlock key={key} language={first.info} parts={parts} closed={closed} />;
    }
    const [view] = elements(block.tokens);
    return <div key={key} class={this.#goesOn ? "block goes-on" : "block"} dir="auto">{this.#goesOn && " "}{view}</div>;
  }
}

/** A component, since Preact passes over one whose element is the same as before, and over nothing else. */
function Group({ blocks }: { blocks: JSX.Element[] }) {
  return <div class="blocks">{blocks}</div>;
}

function startOfLine(source: string, line: number): number {
  let at = 0;
  for (let passed = 0; passed < line; passed++) at = source.indexOf("\n", at) + 1;
  return at;
}

/** Return the elements of markdown-it's flat list of openings, closings and leaves. */
function elements(tokens: Token[]): ComponentChild[] {
  const stack: { token: Token | null; children: ComponentChild[] }[] = [{ token: null, children: [] }];
  tokens.forEach((token, index) => {
    if (token.type === "list_item_open") markTask(token, tokens[index + 2]);
    if (token.nesting === 1) return void stack.push({ token, children: [] });
    if (token.nesting === 0) return void stack.at(-1)?.children.push(leaf(token));
    const closed = stack.pop();
    if (closed?.token) stack.at(-1)?.children.push(element(closed.token, closed.children));
  });
  return stack[0]?.children ?? [];
}

function markTask(item: Token, inline: Token | undefined): void {
  const first = inline?.children?.[0];
  const task = inline?.type === "inline" && first?.type === "text" ? TASK.exec(first.content) : null;
  if (!task || !first) return;
  item.meta = { done: task[1] !== " " };
  first.content = first.content.slice(task[0].length);
}

function element(token: Token, children: ComponentChild[]): ComponentChild {
  switch (token.type) {
    case "paragraph_open":
      return token.hidden ? <>{children}</> : <p>{children}</p>;
    case "heading_open":
      // The page has an h1 and an h2 of its own.
      return h(`h${Math.min(6, Number(token.tag[1]) + 2)}`, { class: `heading-${token.tag[1]}` }, children);
    case "ordered_list_open":
      return <ol start={Number(token.attrGet("start") ?? 1)}>{children}</ol>;
    case "list_item_open":
      return listItem(token, children);
    case "link_open":
      return link(attribute(token, "href"), children, token.info === "auto");
    case "table_open":
      return <div class="table" tabIndex={0} role="group" aria-label="Table"><table>{children}</table></div>;
    case "th_open":
    case "td_open":
      return h(token.tag, { class: attribute(token, "style").replace("text-align:", "text-") }, children);
    default:
      return h(token.tag, null, children);
  }
}

function attribute(token: Token, name: string): string {
  return String(token.attrGet(name) ?? "");
}

function listItem(token: Token, children: ComponentChild[]): JSX.Element {
  if (!token.meta) return <li>{children}</li>;
  const done = token.meta.done === true;
  return <li class="task"><input type="checkbox" checked={done} disabled aria-label={done ? "Done" : "To do"} /> {children}</li>;
}

function leaf(token: Token): ComponentChild {
  switch (token.type) {
    case "inline":
      return <Fragment>{elements(token.children ?? [])}</Fragment>;
    case "code_inline":
      return <code>{visible(token.content)}</code>;
    case "fence":
    case "code_block":
      return <CodeBlock language={token.info} parts={[token.content]} closed={false} />;
    case "softbreak":
      return "\n";
    case "hardbreak":
    case "hr":
      return h(token.tag, null);
    case "image":
      return picture(attribute(token, "src"), token.content);
    default:
      return visible(token.content);
  }
}

function link(address: string, children: ComponentChild[], isPlain: boolean): JSX.Element {
  const looksAsItIs = visible(decoded(address)) === decoded(address);
  // An address whose looks and whose target could differ stays plain text.
  if (isPlain && !looksAsItIs) return <>{children}</>;
  if (!SAFE_LINK.test(address)) return <>{children} ({visible(decoded(address))})</>;
  return <a href={address} title={isPlain ? "" : address} rel="noopener noreferrer nofollow" target="_blank">{children}</a>;
}

/** A picture that the answer holds is shown. One from elsewhere is a link: to load it would tell who reads. */
function picture(address: string, words: string): JSX.Element {
  const alt = visible(words) || "picture";
  if (PICTURE.test(address)) return <img class="result-image" src={address} alt={alt} />;
  return link(address, [`Picture: ${alt}`], false);
}

function decoded(address: string): string {
  try {
    return decodeURI(address);
  } catch {
    return address;
  }
}
