// What turns changed in the workspace, as the API gives it.
import { LONG, Refused, ask, post, wordsOf } from "./sse";
import { counted, visible } from "./text";

export interface FileChange {
  path: string;
  change: "added" | "modified" | "deleted" | "renamed";
  kind: "file" | "folder" | "link";
  old_path: string | null;
  old_mode: string | null;
  mode: string | null;
  binary: boolean;
  added_lines: number | null;
  deleted_lines: number | null;
  shared: boolean;
}

interface Reason {
  path: string;
  reason: string;
}

export interface Changes {
  from_snapshot: number;
  to_snapshot: number;
  changes: FileChange[];
  total: number;
  added_lines: number;
  deleted_lines: number;
  left_out: Reason[];
  left_out_total: number;
}

export interface FileDiff {
  change: FileChange;
  diff: string;
  whole: boolean;
}

export interface Undone {
  undo_id: string;
  changes: Changes;
  kept: Reason[];
  kept_total: number;
  forgotten_turns?: number;
}

/** How much a turn changed; `undo_id` is the undo that holds of it. */
export interface TurnChanges {
  files: number;
  added_lines: number;
  deleted_lines: number;
  undo_id?: string | null;
  undone_files?: number;
}

export interface Turn {
  turn_id: string;
  message: string;
  answer: string;
  status: string;
  started_at: string;
  changes?: TurnChanges | null;
}

interface Said {
  role: string;
  content: string;
  turn_id: string | null;
  shortened: boolean;
}

/** What is compared: a turn's (or an undo's) two states, or the state before a turn (`""`: the oldest) and now. */
export type Span = { turn: string } | { since: string };

/** The changes of one project's workspace. */
export class ChangeLog {
  #api: string;

  /** `api` is the address of the project in the API. */
  constructor(api: string) {
    this.#api = api;
  }

  /** Return the address of a turn or an undo, whose id is the environment's word. */
  #turn(id: string): string {
    return `${this.#api}/turns/${encodeURIComponent(id)}`;
  }

  async turns(session: string): Promise<Turn[]> {
    return (await (await ask(`${this.#api}/sessions/${encodeURIComponent(session)}/turns?limit=30`)).json()).turns;
  }

  async turn(id: string): Promise<Turn> {
    return (await ask(this.#turn(id))).json();
  }

  /** Return a turn's message or answer; while its environment sleeps, from the copy of that, if it is whole there. */
  async said(part: "message" | "answer", id: string, session: string | null): Promise<string> {
    try {
      return (await this.turn(id))[part];
    } catch (error) {
      if (!session || !(error instanceof Refused) || error.problem.code !== "environment_not_active") throw error;
      const { messages } = await (await ask(`${this.#api}/sessions/${encodeURIComponent(session)}/messages`, LONG)).json();
      const role = part === "message" ? "user" : "assistant";
      const found = (messages as Said[]).find((one) => one.turn_id === id && !one.shortened && one.role.toLowerCase() === role);
      if (!found) throw error;
      return found.content;
    }
  }

  async list(span: Span): Promise<Changes> {
    if ("turn" in span) return (await ask(`${this.#turn(span.turn)}/changes`, LONG)).json();
    return (await ask(`${this.#api}/changes?${new URLSearchParams(span.since ? { from: span.since } : {})}`, LONG)).json();
  }

  /** Return what differs in one file of `changes`. */
  async diff({ from_snapshot, to_snapshot }: Changes, path: string): Promise<FileDiff> {
    const query = { from: String(from_snapshot), to: String(to_snapshot), path };
    return (await ask(`${this.#api}/changes/diff?${new URLSearchParams(query)}`, LONG)).json();
  }

  /** Return the paths that changed after the states that `changes` compares. */
  async changedAfter({ to_snapshot }: Changes): Promise<Set<string>> {
    const { changes } = await this.list({ since: String(to_snapshot) });
    return new Set(changes.flatMap(({ path, old_path }) => [path, old_path ?? path]));
  }

  /** Undo; with `forget` the agent's history is cut, too. */
  async undo(id: string, override: boolean, forget: boolean): Promise<Undone> {
    // An environment of an older version knows no `history`.
    return (await post(`${this.#turn(id)}/undo`, { override, ...(forget && { history: "cut" }) }, LONG)).json();
  }
}

const REFUSALS: Record<string, string> = {
  turn_running: "The agent is still at work on this turn. Stop it, or wait for its end.",
  snapshot_gone: "The workspace's state of that time is not kept: it made room for newer ones, or could not be taken. So this can be neither compared nor undone.",
};

/** Return in words why changes are not told, or not undone. */
export function refusalOf(error: unknown): string {
  return (error instanceof Refused && REFUSALS[error.problem.code ?? ""]) || wordsOf(error);
}

const REASONS: Record<string, string> = {
  build: "made again by tools", ignored: "named in .gitignore", too_large: "too large", no_room: "no room for it",
  unreadable: "cannot be read", special: "not a regular file", too_deep: "too deep", changed: "changed while it was read",
  changed_since: "changed afterwards", changed_by_others: "changed by somebody else meanwhile", left_out: "not kept",
  not_empty: "holds what stays", folder_gone: "its folder is gone",
};

/** Return "notes.txt (changed afterwards)", for the first few of some paths. */
export function reasonsOf(all: Reason[], total: number, most = 5): string {
  const named = all.slice(0, most).map(({ path, reason }) => `${visible(path)} (${REASONS[reason] ?? visible(reason)})`);
  return named.join(", ") + (total > named.length ? ` and ${total - named.length} more` : "");
}

/** What stands at the end of a turn that an undo has cut out of the agent's history. */
export const FORGOTTEN = "The agent has forgotten this.";

/** Return in words what an undo did. */
export function outcomeOf({ changes, kept, kept_total, forgotten_turns = 0 }: Undone): string {
  const did = [changes.total ? `${counted(changes.total, "file")} brought back.` : "Nothing was brought back."];
  if (kept_total) did.push(`Left as it is: ${reasonsOf(kept, kept_total)}.`);
  if (forgotten_turns) did.push(`The agent has forgotten ${counted(forgotten_turns, "turn")}.`);
  return did.join(" ");
}

/** An undo of a turn, or of the undo that held of it, has been done. */
interface UndoNews {
  turn: string;
  undone: Undone;
  changes: Partial<TurnChanges>;
}

/** Tell all of the page of an undo; `again` when it brought the turn's changes back. */
export function tellUndone(turn: string, undone: Undone, again: boolean): void {
  const { undo_id, changes } = undone;
  const standing = again ? { undo_id: null, undone_files: 0 } : { undo_id, undone_files: changes.total };
  const detail: UndoNews = { turn, undone, changes: changes.total ? standing : {} };
  document.dispatchEvent(new CustomEvent("greylag:undone", { detail }));
}

/** Call `take` for each undo on the page; returns how to stop. */
export function onUndone(take: (news: UndoNews) => void): () => void {
  const listener = (event: Event) => take((event as CustomEvent<UndoNews>).detail);
  document.addEventListener("greylag:undone", listener);
  return () => document.removeEventListener("greylag:undone", listener);
}
