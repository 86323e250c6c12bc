// One terminal on the page: xterm.js and the WebSocket behind it. Loaded when the first is shown.
import { FitAddon } from "@xterm/addon-fit";
import { Terminal } from "@xterm/xterm";
import sheetText from "@xterm/xterm/css/xterm.css";
import { Backoff, Refused, ask, wordsOf } from "./sse";
import { textOr } from "./text";

// The server ends a connection that sends more at once (docs/terminal.md); what is pasted may be long.
const MOST_BYTES = 32_768;

// A connection may die without a word. What is said on it is answered soon by a shell that lives, and else when asked.
const QUIET_MS = 20_000;
const SOON_MS = 3_000;
const LIFE_MS = 10_000;

/** How a terminal stands, in words; empty while all is well. */
type Told = (words: string, ended: boolean) => void;

/** A terminal in `place`, attached until it is disposed of. */
export class Screen {
  #terminal: Terminal;
  #fit = new FitAddon();
  #socket: WebSocket | null = null;
  #pulse: Pulse | null = null; // once it is attached to a server that answers
  #leave = new AbortController();
  #replay = 0;
  #muted = true;
  #ended = false;
  #watchers: { disconnect: () => void }[] = [];

  /** `list` is the address of the terminals in the API; one that has ended is told nothing, only shown. */
  constructor(private place: HTMLElement, private list: string, private id: string, private over: boolean, private told: Told) {
    this.#terminal = new Terminal({
      fontFamily: getComputedStyle(place).fontFamily, fontSize: 13, theme: theme(),
      minimumContrastRatio: 4.5, scrollback: 5000,
    });
    this.#terminal.loadAddon(this.#fit);
    this.#terminal.attachCustomKeyEventHandler((event) => !(event.altKey && !event.ctrlKey && /^\d$/.test(event.key)));
    this.#terminal.open(place);
    // The class is another thing's here: the output of a step.
    this.#terminal.element?.classList.remove("terminal");
    this.#terminal.onData((text) => this.#isAnswer(text) || this.#send(new TextEncoder().encode(text)));
    this.#terminal.onBinary((text) => this.#muted || this.#send(Uint8Array.from(text, (one) => one.charCodeAt(0))));
    this.#terminal.onResize(() => this.#sayLength());
    this.#watch();
    void this.#stayAttached();
  }

  focus(): void {
    this.#terminal.focus();
  }

  dispose(): void {
    this.#leave.abort();
    this.#socket?.close();
    this.#pulse?.over();
    for (const watcher of this.#watchers) watcher.disconnect();
    this.#terminal.dispose();
  }

  #watch(): void {
    const size = new ResizeObserver(() => this.place.clientHeight > 0 && this.#fit.fit());
    size.observe(this.place);
    const colours = new MutationObserver(() => { this.#terminal.options.theme = theme(); });
    colours.observe(document.documentElement, { attributeFilter: ["data-theme"] });
    this.#watchers.push(size, colours);
  }

  async #stayAttached(): Promise<void> {
    const { signal } = this.#leave;
    const backoff = new Backoff();
    while (!signal.aborted && !this.#ended) {
      if (await this.#attach()) backoff.reset();
      if (signal.aborted || this.#ended) return;
      this.told("The connection was lost. Trying again...", false);
      await backoff.pause(signal);
      if (!signal.aborted && (await this.#isGone())) return;
    }
  }

  /** Attach until the connection ends; return whether it was one. */
  #attach(): Promise<boolean> {
    const url = new URL(`${this.list}/${encodeURIComponent(this.id)}`, location.href);
    url.protocol = url.protocol.replace("http", "ws");
    const socket = new WebSocket(url);
    socket.binaryType = "arraybuffer";
    this.#socket = socket;
    let attached = false;
    return new Promise((resolve) => {
      const over = () => {
        resolve(attached);
        if (this.#socket !== socket) return; // given up before, and another is attached
        this.#pulse?.over();
        this.#pulse = null;
        socket.close(); // of one that is dead the browser tells the end much later
      };
      socket.addEventListener("message", ({ data }) => {
        attached = true;
        if (typeof data === "string") this.#hear(JSON.parse(data), new Pulse(() => socket.send('{"ping": true}'), over));
        else this.#show(new Uint8Array(data));
        this.#pulse?.heard();
      });
      socket.addEventListener("close", over);
    });
  }

  /** A page's WebSocket does not tell why it failed: the list does. */
  async #isGone(): Promise<boolean> {
    try {
      const { terminals } = await (await ask(this.list)).json();
      if (terminals.some((one: { terminal_id: string }) => one.terminal_id === this.id)) return false;
      this.#end("This terminal is gone: the environment was started anew.");
    } catch (error) {
      if (!(error instanceof Refused) || error.passing) return false;
      this.#end(wordsOf(error));
    }
    return true;
  }

  #hear(message: Record<string, any>, pulse: Pulse): void {
    if (message.attached) {
      if (message.attached.pings) this.#pulse = pulse;
      this.#terminal.reset();
      this.#replay = Number(message.attached.replay);
      this.#muted = this.#replay > 0;
      this.told("", false);
      this.#fit.fit();
      this.#sayLength();
    } else if (message.skipped) {
      this.#replay = Math.max(0, this.#replay - Number(message.skipped)); // what is left out is the oldest
      this.#terminal.write("", () => { this.#muted = this.#replay > 0; });
      this.told(`${message.skipped} bytes were left out: this page was too slow.`, false);
    } else if (message.error) {
      this.#end([textOr(message.error.message), textOr(message.error.hint)].filter(Boolean).join(" "));
    } else if ("exit" in message) {
      this.#end(message.exit === null ? "The shell ended; its exit code is not known." : `The shell ended with exit code ${Number(message.exit)}.`);
    }
  }

  #show(bytes: Uint8Array): void {
    const old = bytes.subarray(0, this.#replay);
    this.#replay -= old.length;
    // What a program asked the terminal before is not answered again.
    if (old.length) this.#terminal.write(old, () => { this.#muted = this.#replay > 0; });
    if (old.length < bytes.length) this.#terminal.write(bytes.subarray(old.length));
  }

  #end(words: string): void {
    this.#ended = true;
    this.#terminal.options.disableStdin = true;
    this.#terminal.options.cursorBlink = false;
    this.told(words, true);
  }

  #sayLength(): void {
    const { rows, cols: columns } = this.#terminal;
    if (!this.over && this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify({ resize: { rows, columns } }));
  }

  /** What a program asked before is answered by escape sequences; what a person types meanwhile is not lost. */
  #isAnswer(text: string): boolean {
    return this.#muted && text.startsWith("\x1b");
  }

  #send(bytes: Uint8Array<ArrayBuffer>): void {
    if (this.#socket?.readyState !== WebSocket.OPEN) return;
    this.#pulse?.sent();
    for (let at = 0; at < bytes.length; at += MOST_BYTES) this.#socket.send(bytes.subarray(at, at + MOST_BYTES));
  }
}

/** Asks for a sign of life where none comes, and tells when there is none. */
class Pulse {
  #timer: ReturnType<typeof setTimeout> | undefined;
  #awaits = false;

  constructor(private ask: () => void, private lost: () => void) {}

  heard(): void {
    this.#awaits = false;
    this.#in(QUIET_MS, () => this.#ask());
  }

  sent(): void {
    if (this.#awaits) return;
    this.#awaits = true;
    this.#in(SOON_MS, () => this.#ask());
  }

  over(): void {
    clearTimeout(this.#timer);
  }

  #ask(): void {
    this.#awaits = true;
    this.ask();
    this.#in(LIFE_MS, this.lost);
  }

  #in(wait: number, then: () => void): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(then, wait);
  }
}

function theme() {
  const style = getComputedStyle(document.documentElement);
  const colour = (name: string) => style.getPropertyValue(name).trim();
  return {
    background: colour("--surface"), foreground: colour("--ink"), cursor: colour("--accent"), cursorAccent: colour("--surface"),
    selectionBackground: colour("--line-strong"),
  };
}

// xterm.js writes <style> elements and style attributes, which the content security policy forbids. Here they
// become adopted style sheets and properties, which it allows.

const makeElement = document.createElement.bind(document);

function makeQuiet(name: string): HTMLElement {
  // An empty <style> would already be refused.
  const element = makeElement(name === "style" ? "template" : name);
  if (name === "style") {
    const sheet = new CSSStyleSheet();
    document.adoptedStyleSheets.push(sheet);
    Object.defineProperty(element, "textContent", { set: (text: string) => sheet.replaceSync(text) });
    element.remove = () => {
      document.adoptedStyleSheets = document.adoptedStyleSheets.filter((one) => one !== sheet);
      Element.prototype.remove.call(element);
    };
  }
  return withQuietAttributes(element);
}

function withQuietAttributes(element: HTMLElement): HTMLElement {
  element.setAttribute = (key: string, value: string) => {
    if (key === "style") element.style.cssText = value;
    else Element.prototype.setAttribute.call(element, key, value);
  };
  // A copy does not have what was set on the object alone.
  element.cloneNode = (deep?: boolean) => withQuietAttributes(Element.prototype.cloneNode.call(element, deep) as HTMLElement);
  return element;
}

// It reaches for the page's own document, so that is where elements of the two kinds are made so.
document.createElement = ((name: string, options?: ElementCreationOptions) =>
  name === "style" || name === "span" ? makeQuiet(name) : makeElement(name, options)) as typeof document.createElement;

const ownSheet = new CSSStyleSheet();
ownSheet.replaceSync(sheetText);
document.adoptedStyleSheets.push(ownSheet);
