// What a turn's events add up to: words, thoughts, steps, notes and problems, in their order.
import type { TurnChanges } from "./changes";
import { MarkdownStream } from "./markdown";
import type { Problem } from "./sse";
import { textOr } from "./text";
import { serverNow } from "./times";

const PIECE = 4096;
const EXITED = "Command exited with code ";
const MOST_TEXT = 400_000; // of what one tool prints

type StepState = "running" | "asks" | "done" | "failed" | "declined" | "stopped";

/** A tool call, from its request to its result, as it stands: one that goes on is another. */
export interface Step {
  readonly kind: "step";
  readonly id: string;
  readonly tool: string;
  readonly arguments: Record<string, unknown>;
  readonly state: StepState;
  readonly confirmation: string | null;
  readonly lasting: boolean; // whether it may be allowed for the rest of the session
  readonly expires: number | null; // when its question ends by itself, Unix seconds
  readonly output: string;
  readonly files: Record<string, unknown>[];
  readonly exitCode: number | null;
  readonly began: number;
  readonly seconds: number | null;
}

/** Words of the answer; `pending` is what has come and is not shown yet. */
export interface Words {
  kind: "words";
  stream: MarkdownStream;
  pending: string;
  ended: boolean;
  finished: boolean;
}

export type Item =
  | Step
  | Words
  | { kind: "thought"; text: string }
  | { kind: "note"; text: string }
  | { kind: "problem"; problem: Problem };

type Content = Record<string, any>;

/** One turn's answer so far. Types of events that are not known are passed over. */
export class TurnModel {
  items: Item[] = [];
  ended = false;
  outcome: "completed" | "cancelled" | "error" = "completed";
  changes: TurnChanges | null | undefined; // null: not known at its end; undefined: never told

  /** Forget the answer, before its events are told from the first on. */
  clear(): void {
    this.items = [];
    this.ended = false;
    this.outcome = "completed";
    this.changes = undefined;
  }

  apply(type: string, content: Content): void {
    const take = this.#takes[type];
    if (!take) return;
    if (type !== "message" && type !== "tool_notification") this.#endWords();
    take(content);
  }

  fail(problem: Problem): void {
    this.#endWords();
    this.outcome = "error";
    this.items.push({ kind: "problem", problem });
  }

  /** No more will come: what is still open was stopped. */
  end(): void {
    this.#endWords();
    this.ended = true;
    for (const step of this.#steps) if (step.state === "running" || step.state === "asks") this.#change(step, { state: "stopped" });
  }

  /** Show more of what has come, within `until`; tell whether there is still more. */
  advance(until: number): boolean {
    for (const item of this.items) {
      if (item.kind !== "words" || item.finished) continue;
      while (item.pending && performance.now() < until) {
        const cut = cutAt(item.pending);
        item.stream.write(item.pending.slice(0, cut));
        item.pending = item.pending.slice(cut);
      }
      if (item.pending || (!item.ended && item.stream.behind())) return true;
      if (!item.ended) continue;
      if (!item.stream.end(until)) return true;
      item.finished = true;
    }
    return false;
  }

  readonly #takes: Record<string, (content: Content) => void> = {
    message: (content) => this.#say(content),
    thinking: (content) => this.#think(textOr(content.message)),
    tool_request: (content) => this.#request(content),
    tool_notification: (content) => this.#print(content),
    tool_response: (content) => this.#respond(content),
    tool_confirmation: (content) => this.#ask(content),
    status: (content) => this.#status(content),
    context_exceeded: (content) => this.#note(textOr(content.message, "The session has grown too long for the model.")),
    history_update: () => this.#note("The agent has shortened its memory of this session."),
    complete: (content) => {
      if (content.stop_reason === "cancelled" && this.outcome === "completed") this.outcome = "cancelled";
      this.changes = content.changes;
    },
    error: (content) =>
      this.fail({ detail: textOr(content.error) || textOr(content.message), hint: textOr(content.hint), code: textOr(content.code) }),
  };

  get #steps(): Step[] {
    return this.items.filter((item) => item.kind === "step");
  }

  /** Put another step in its place: what is shown of a step is made anew for another one only. */
  #change(step: Step, changes: Partial<Step>): void {
    this.items[this.items.indexOf(step)] = { ...step, ...changes };
  }

  #endWords(): void {
    const last = this.items.at(-1);
    if (last?.kind === "words") last.ended = true;
  }

  #say(content: Content): void {
    if (content.role && String(content.role).toLowerCase() !== "assistant") return;
    const last = this.items.at(-1);
    const text = textOr(content.content);
    if (last?.kind === "words" && !last.ended) last.pending += text;
    else this.items.push({ kind: "words", stream: new MarkdownStream(), pending: text, ended: false, finished: false });
  }

  #think(text: string): void {
    const last = this.items.at(-1);
    if (last?.kind === "thought") last.text += text;
    else this.items.push({ kind: "thought", text });
  }

  #note(text: string): void {
    if (text) this.items.push({ kind: "note", text });
  }

  #request(content: Content): Step {
    const given = typeof content.arguments === "object" && content.arguments ? content.arguments : {};
    const step: Step = {
      kind: "step", id: textOr(content.id), tool: textOr(content.tool_name, "tool"), arguments: given, state: "running",
      confirmation: null, lasting: false, expires: null, output: "", files: [], exitCode: null, began: secondsOf(content), seconds: null,
    };
    this.items.push(step);
    return step;
  }

  #print(content: Content): void {
    const step = this.#steps.find((one) => one.id === content.tool_call_id);
    const chunks: unknown = content.params?.chunks;
    if (!step || !Array.isArray(chunks) || step.output.length > MOST_TEXT) return;
    this.#change(step, { output: step.output + chunks.map((chunk) => textOr(chunk?.output)).join("") });
  }

  #respond(content: Content): void {
    const step = this.#steps.find((one) => one.id === content.id) ?? this.#request(content);
    const seconds = Math.max(0, secondsOf(content) - step.began);
    // What a declined call is answered with is meant for the model.
    if (step.state === "declined" || step.state === "stopped") return this.#change(step, { seconds });
    const { text, files, exitCode } = resultOf(content.result ?? {});
    // The result tells again what was printed meanwhile: the longer of the two is the whole.
    const output = text.length > step.output.trimEnd().length ? text.slice(0, MOST_TEXT) : step.output;
    this.#change(step, { state: content.is_error ? "failed" : "done", seconds, output, files, exitCode });
  }

  #ask(content: Content): void {
    const open = this.#steps.filter((one) => one.state === "running");
    const known = open.find((one) => one.id === content.tool_call_id) ?? open.find((one) => one.tool === content.tool_name);
    const step = known ?? this.#request(content);
    this.#change(step, {
      state: "asks",
      confirmation: textOr(content.id),
      lasting: Array.isArray(content.decisions) && content.decisions.includes("allow_session"),
      expires: typeof content.expires_at === "number" ? content.expires_at : null,
      arguments: Object.keys(content.arguments ?? {}).length ? content.arguments : step.arguments,
    });
  }

  #status(content: Content): void {
    if (!content.confirmation_id || !content.decision) {
      this.#note([textOr(content.message), textOr(content.hint)].filter(Boolean).join(" "));
      return;
    }
    const step = this.#steps.find((one) => one.confirmation === content.confirmation_id);
    const states: Record<string, StepState> = { allow_once: "running", allow_session: "running", reject_once: "declined" };
    if (step?.state === "asks") this.#change(step, { state: states[content.decision] ?? "stopped" });
  }
}

function secondsOf(content: Content): number {
  return typeof content.timestamp === "number" ? content.timestamp : serverNow() / 1000;
}

interface Result {
  text: string;
  files: Record<string, unknown>[];
  exitCode: number | null;
}

function resultOf(result: Content): Result {
  const failed = "Err" in result;
  const given = failed ? (result.content ?? []) : result.Ok;
  if (!Array.isArray(given)) return withExitCode(textOr(failed ? result.Err : given));
  const parts = given.filter((part: unknown) => part !== null && typeof part === "object") as Content[];
  const texts = parts.filter((part) => dataOf(part) === null).map(partText);
  if (failed) texts.unshift(textOr(result.Err) || JSON.stringify(result.Err));
  if ("data" in result) texts.push(JSON.stringify(result.data, null, 2));
  return { ...withExitCode(texts.join("\n")), files: parts.filter((part) => dataOf(part) !== null) };
}

function withExitCode(text: string): Result {
  const at = text.lastIndexOf(EXITED);
  const found = at < 0 ? null : /^(\d+)\s*$/.exec(text.slice(at + EXITED.length));
  if (!found) return { text, files: [], exitCode: null };
  let end = at;
  while (text[end - 1] === "\n") end -= 1;
  return { text: text.slice(0, end), files: [], exitCode: Number(found[1]) };
}

function partText(part: Content): string {
  const text: unknown = part.text ?? part.resource?.text;
  return typeof text === "string" ? text : JSON.stringify(part, null, 2);
}

/** Return the base64 that a part of a result holds, null when it is text. */
export function dataOf(part: Content): string | null {
  const data = part.data ?? part.resource?.blob;
  return typeof data === "string" ? data : null;
}

function cutAt(text: string): number {
  if (text.length <= PIECE) return text.length;
  const code = text.charCodeAt(PIECE - 1);
  const splitsAPair = code >= 0xd800 && code < 0xdc00;
  return splitsAPair ? PIECE + 1 : PIECE;
}
