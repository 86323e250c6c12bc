// An answer's words as they come: CommonMark with GFM's tables, strikethrough, links and task lists.
// markdown-it parses; what it finds becomes elements here, never HTML, so nothing the agent writes is markup.
import MarkdownIt, { type Env, type Token } from "markdown-it";
import { type ComponentChild, type ComponentChildren, Fragment, type JSX, h } from "preact";
import { CodeBlock } from "./code_block";
import { visible } from "./text";

const GROUP = 32; // blocks; a frame then looks at the groups and at the last one's blocks, however many there are
const LONG = 4000; // what grows past this many characters is parsed and laid out in pieces
const SHARE = 8; // one part in so many of the time goes to parsing a block that grows and cannot be cut
const SAFE_LINK = /^(https?:|mailto:)/i;
const PICTURE = /^data:image\/(png|jpeg|gif|webp);base64,/i;
const MOST_CELLS = 65_000; // of rows that are cut off a table: the parser's own limit begins anew with each piece
const MOST_UNCUT = 200_000; // characters of a paragraph in which there is no place to cut
const EACH = 64;
const CLOSING = /(?:^|\n) {0,3}(?:`{3,}|~{3,})\s*$/;
const MARKS = /`+|~~|\*+|_+|[[\]()]/g; // what may open or close something within a paragraph
const BEGUN = /^(?:\d{1,9}[.)]?|[-+*_=#`~>|:]*)$/; // a line, without blanks around it, of which it is not known yet what it begins
const TASK = /^\[([ xX])\] /;
const LABEL = /\\[^]|\[((?:\\[^]|[^\\[\]])+)\]/g; // of a link whose address may be defined elsewhere, or an escaped character

const parser = new MarkdownIt({ html: false, linkify: true });

type Definitions = NonNullable<Env["references"]>;

interface Block {
  tokens: Token[];
  line: number;
}

/** A block that may name what is defined after it. */
interface Naming {
  tokens: Token[];
  known: number; // how many definitions it could use
  place: number;
  rows: Row[];
  view: () => JSX.Element;
}

interface Row {
  tokens: Token[];
  view: JSX.Element;
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
  #found: Definitions = {}; // the definitions of the source
  readonly #references: Definitions = {}; // those of what is settled
  readonly #labels: string[] = []; // their names, as they came
  #naming: Naming[] = [];
  #source = ""; // from the beginning of the last block on
  #fence: Fence | null = null; // whose earlier lines are not in the source any more
  #rows: Row[] = []; // of the table that the source goes on with
  #cells = 0; // in them
  #goesOn = false; // whether the source begins in the middle of a paragraph or list
  #isSpaced = false; // whether there is a space before what goes on
  #nextItem = 0; // the number of the item that the rest of an ordered list begins with
  #blocks: JSX.Element[] = [];
  #stale = false; // whether more has come than is in the blocks
  #restsUntil = 0;

  get blocks(): JSX.Element[] {
    return this.#blocks;
  }

  write(text: string): void {
    const plain = text.replaceAll("\r", "");
    this.#source += plain;
    this.#stale = true;
    this.behind();
  }

  /** Take up what has come, unless that took so long the last time that it has to rest; tell whether it does. */
  behind(): boolean {
    const began = performance.now();
    if (!this.#stale || began < this.#restsUntil) return this.#stale;
    this.#parse();
    this.#show();
    this.#stale = false;
    const took = performance.now() - began;
    this.#restsUntil = this.#source.length > 2 * LONG ? performance.now() + (SHARE - 1) * took : 0;
    return false;
  }

  /** No more will come: what is defined at the end counts for the beginning too. Returns whether all that
   * names it could be shown anew `until` then; it is to be called again if not.
   */
  end(until: number): boolean {
    const blocks = this.#split(this.#source);
    this.#learn(this.#source, []);
    this.#finish(blocks, true);
    this.#source = "";
    this.#stale = false;
    const order = new Map(this.#labels.map((label, index) => [label, index]));
    while (this.#naming.length && performance.now() < until) this.#nameAnew(this.#naming.pop()!, order);
    this.#show();
    return this.#naming.length === 0;
  }

  #nameAnew({ tokens, known, place, rows, view }: Naming, order: Map<string, number>): void {
    const isNews = (label = "") => (order.get(parser.utils.normalizeReference(label)) ?? -1) >= known;
    if (!tokens.some(({ content }) => [...content.matchAll(LABEL)].some(([, label]) => isNews(label)))) return;
    this.#parseWords(tokens);
    rows.forEach((row, index) => { row.view = rowsOf(row.tokens, index); });
    const group = this.#groups[Math.floor(place / GROUP)];
    const blocks: JSX.Element[] = group ? [...group.props.blocks] : this.#done;
    blocks[place % GROUP] = view();
    if (group) this.#groups[Number(group.key)] = <Group key={group.key} blocks={blocks} />;
  }

  #show(): void {
    this.#blocks = [...this.#groups, this.#group([...this.#done, ...this.#open])];
  }

  /** Return what a text holds, and what it defines. Of two definitions of a name the first counts. */
  #parsed(text: string): [Token[], Definitions] {
    const references: Definitions = Object.create(this.#references);
    return [parser.parse(text, { references }), references];
  }

  /** What is settled defines names for all that follows; its own words know nothing of a line that may only half have come. */
  #learn(settled: string, blocks: Pick<Block, "tokens">[]): void {
    if (!Object.keys(this.#found).length) return;
    const [, defined] = this.#parsed(settled);
    this.#labels.push(...Object.keys(defined));
    Object.assign(this.#references, defined);
    for (const { tokens } of blocks) this.#parseWords(tokens);
  }

  #parseWords(tokens: Token[]): void {
    for (const token of tokens) {
      if (token.type === "list_item_open") token.meta = null;
      if (!isNaming(token)) continue;
      token.children = parser.parseInline(token.content, { references: this.#references })[0]!.children;
    }
  }

  #split(text = this.#known): Block[] {
    const blocks: Block[] = [];
    const [tokens, found] = this.#parsed(text);
    this.#found = found;
    for (const token of tokens) {
      const last = blocks.at(-1);
      if (token.level === 0 && token.nesting !== -1) blocks.push({ tokens: [token], line: token.map?.[0] ?? 0 });
      else last?.tokens.push(token);
    }
    return blocks;
  }

  /** The source without a last line that may still go on what is before it. */
  get #known(): string {
    const line = this.#source.lastIndexOf("\n") + 1;
    return BEGUN.test(this.#source.slice(line).trim()) ? this.#source.slice(0, line) : this.#source;
  }

  #parse(): void {
    const blocks = this.#split();
    const last = blocks.at(-1);
    if (!last) return;
    const start = startOfLine(this.#source, last.line);
    this.#learn(this.#source.slice(0, start), blocks.slice(0, -1));
    this.#finish(blocks.slice(0, -1), false);
    this.#source = this.#source.slice(start);
    if (this.#source.length > LONG) return this.#cut(last);
    this.#open = [this.#view(last, false)];
  }

  #finish(blocks: Block[], closed: boolean): void {
    for (const block of blocks) {
      this.#settle(block);
      this.#fence = null;
      this.#rows = [];
      this.#cells = 0;
      this.#goesOn = false;
    }
    if (closed) this.#open = [];
  }

  /** Settle the beginning of a block that has grown long, so that what it costs does not grow with it. */
  #cut(last: Block): void {
    const before = this.#source.length;
    const kind = last.tokens[0]?.type;
    if (kind === "fence") this.#cutFence();
    else if (kind === "paragraph_open") this.#cutParagraph();
    else if (kind === "bullet_list_open" || kind === "ordered_list_open") this.#cutList(last);
    else if (kind === "table_open") this.#cutTable(last);
    const rest = this.#source.length < before ? this.#split()[0] : last;
    this.#open = rest ? [this.#view(rest, false)] : [];
  }

  #cutFence(): void {
    const opening = this.#source.slice(0, this.#source.indexOf("\n") + 1);
    const end = this.#source.lastIndexOf("\n") + 1;
    // What closes the block, with the empty lines after it, is none of its lines.
    if (end <= opening.length || CLOSING.test(this.#source.slice(opening.length, end))) return;
    this.#fence ??= { opening, parts: [] };
    const indent = opening.search(/\S/);
    const lines = this.#source.slice(opening.length, end);
    this.#fence.parts.push(indent > 0 ? lines.replace(new RegExp(`^ {0,${indent}}`, "gm"), "") : lines);
    this.#source = opening + this.#source.slice(end);
  }

  #cutParagraph(): void {
    // Between words that cannot be taken for the beginning of another block, best where no mark is open.
    const found = [...this.#source.matchAll(/\s(?=[\p{L}\p{N}]+\s)/gu)].map(({ index }) => index + 1);
    const each = (_: unknown, index: number) => withoutHalf(this.#source, (index + 1) * EACH - 1);
    const anywhere = () => Array.from({ length: this.#source.length / EACH }, each).filter((place) => !isInWord(this.#source, place));
    const end = lastClosed(this.#source, found) ?? lastClosed(this.#source, found.length ? [] : anywhere()) ?? found.at(-1);
    if (end === undefined && this.#source.length < MOST_UNCUT) return;
    this.#cutParagraphAt(end ?? withoutHalf(this.#source, this.#source.length - 1));
  }

  #cutParagraphAt(end: number): void {
    const text = this.#source.slice(0, end);
    const [tokens] = this.#parsed(text);
    this.#learn(text, []);
    this.#settle({ tokens, line: 0 });
    this.#isSpaced = /\s/.test(this.#source[end - 1] ?? "");
    this.#source = this.#source.slice(end);
    this.#goesOn = true;
  }

  #cutList(last: Block): void {
    const begins = last.tokens.findLastIndex((token) => token.type === "list_item_open" && token.level === 1);
    const line = this.#lineOf(last, begins);
    if (line <= 0) return;
    const start = startOfLine(this.#source, line);
    const tokens = [...last.tokens.slice(0, begins), ...last.tokens.slice(-1)];
    this.#learn(this.#source.slice(0, start), [{ tokens }]);
    this.#settle({ tokens, line: 0 });
    this.#source = this.#source.slice(start);
    const items = last.tokens.slice(0, begins).filter((token) => token.type === "list_item_open" && token.level === 1);
    this.#nextItem = items.length + (this.#goesOn ? this.#nextItem : Number(last.tokens[0]?.attrGet("start") ?? 1));
    this.#goesOn = true;
  }

  /** Its rows stay in the one table, which has columns of the same width. */
  #cutTable(last: Block): void {
    const body = last.tokens.findIndex((token) => token.type === "tbody_open");
    const lastRow = last.tokens.findLastIndex((token) => token.type === "tr_open");
    if (body < 0 || lastRow <= body + 1) return;
    const columns = last.tokens.filter((token) => token.type === "th_open").length;
    const cells = columns * last.tokens.slice(body, lastRow).filter((token) => token.type === "tr_open").length;
    if (this.#cells + cells > MOST_CELLS) return;
    this.#cells += cells;
    const tokens = [...last.tokens.slice(body, lastRow), ...last.tokens.slice(-2, -1)];
    this.#learn("", [{ tokens }]);
    this.#rows.push({ tokens, view: rowsOf(tokens, this.#rows.length) });
    this.#source = this.#source.slice(0, startOfLine(this.#source, 2)) + this.#source.slice(startOfLine(this.#source, this.#lineOf(last, lastRow)));
  }

  /** Return the line of the source in which a token of its only block begins; the source was cut since it was parsed. */
  #lineOf(block: Block, token: number): number {
    return (block.tokens[token]?.map?.[0] ?? 0) - block.line;
  }

  #settle(block: Block): void {
    const tokens = [...this.#rows, block].flatMap((one) => one.tokens);
    const place = this.#groups.length * GROUP + this.#done.length;
    if (tokens.some(isNaming)) this.#naming.push({ tokens, known: this.#labels.length, place, rows: this.#rows, view: this.#plain(block) });
    this.#done.push(this.#view(block, true));
    if (this.#done.length === GROUP) this.#groups.push(this.#group(this.#done.splice(0)));
  }

  #group(blocks: JSX.Element[]): JSX.Element {
    return <Group key={this.#groups.length} blocks={blocks} />;
  }

  #view(block: Block, closed: boolean): JSX.Element {
    const [first] = block.tokens;
    if (first?.type === "fence" || first?.type === "code_block") {
      const parts = [...(this.#fence?.parts ?? []), first.content];
      return <CodeBlock key={this.#done.length} language={first.info} parts={parts} closed={closed} />;
    }
    if (this.#goesOn && first?.type === "ordered_list_open") first.attrSet("start", String(this.#nextItem));
    return this.#plain(block)();
  }

  #plain({ tokens }: Block): () => JSX.Element {
    const [key, rows, given] = [this.#done.length, this.#rows, { goesOn: this.#goesOn, isSpaced: this.#isSpaced }];
    return () => <Plain key={key} {...given}>{rows.length ? withRows(tokens, rows.map(({ view }) => view)) : elements(tokens)[0]}</Plain>;
  }
}

// Components, since Preact passes over one whose element is the same as before, and over nothing else.

function Plain({ goesOn, isSpaced, children }: { goesOn: boolean; isSpaced: boolean; children: ComponentChildren }) {
  return <div class={goesOn ? "block goes-on" : "block"} dir="auto">{goesOn && isSpaced && " "}{children}</div>;
}

function Rows({ children }: { children: ComponentChildren }) {
  return <>{children}</>;
}

function rowsOf(tokens: Token[], key: number): JSX.Element {
  return <Rows key={key}>{elements(tokens)[0]}</Rows>;
}

function Group({ blocks }: { blocks: JSX.Element[] }) {
  return <div class="blocks">{blocks}</div>;
}

/** Tell whether words may name what is defined elsewhere. */
function isNaming(token: Token): boolean {
  return token.type === "inline" && token.content.includes("[");
}

/** Return the last of some places before which no emphasis, code or link is open, as far as marks tell. */
function lastClosed(text: string, places: number[]): number | undefined {
  const open = new Set<string>();
  let depth = 0;
  let at = 0;
  let found: number | undefined;
  const pass = (end: number) => {
    for (; at < places.length && places[at]! <= end; at++) if (!open.size && !depth) found = places[at];
  };
  for (const { 0: mark, index } of text.matchAll(MARKS)) {
    if (!isMark(text, mark, index)) continue;
    pass(index);
    if ("[(".includes(mark)) depth += 1;
    else if ("])".includes(mark)) depth = Math.max(0, depth - 1);
    else if (!open.delete(mark)) open.add(mark);
  }
  pass(text.length);
  return found;
}

/** Tell whether a run of one character can open or close anything where it stands. */
function isMark(text: string, run: string, at: number): boolean {
  const around = [text[at - 1] ?? "", text[at + run.length] ?? ""];
  if (run[0] === "*") return around.some((one) => /\S/.test(one));
  return run[0] !== "_" || !around.every((one) => /\w/.test(one));
}

/** Tell whether a place lies within a word or an address of ASCII's characters. */
function isInWord(text: string, place: number): boolean {
  return /[!-~]/.test(text[place - 1] ?? "") && /[!-~]/.test(text[place] ?? "");
}

/** Return a place that splits no character in half, at or before the one given. */
function withoutHalf(text: string, place: number): number {
  const code = text.charCodeAt(place - 1);
  return code >= 0xd800 && code < 0xdc00 ? place - 1 : place;
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
      return table(children);
    case "th_open":
    case "td_open":
      return h(token.tag, { class: attribute(token, "style").replace("text-align:", "text-") }, children);
    default:
      return h(token.tag, null, children);
  }
}

function table(children: ComponentChild[]): JSX.Element {
  return <div class="table" tabIndex={0} role="group" aria-label="Table"><table>{children}</table></div>;
}

/** Return a table with rows that were made before, below its head. */
function withRows(tokens: Token[], rows: JSX.Element[]): JSX.Element {
  const body = tokens.findIndex((token) => token.type === "tbody_open");
  const end = body < 0 ? tokens.length - 1 : body;
  return table([...elements(tokens.slice(1, end)), ...rows, ...elements(tokens.slice(end, -1))]);
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
