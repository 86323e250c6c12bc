// One file of the workspace: text in colours, a picture, or what there is to save; text can be edited.
import type { ComponentChild } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { useHighlighted } from "./code_block";
import { Draft } from "./drafts";
import { useLook } from "./hooks";
import { previewFile } from "./preview_pane";
import { Refused, wordsOf } from "./sse";
import { visible } from "./text";
import { type Content, type Entry, type Workspace, folderOf, sized } from "./workspace";

const MOST_SHOWN = 1_000_000;
const MOST_PICTURE = 8_000_000;
const PICTURES: Record<string, string> = { png: "image/png", jpg: "image/jpeg", jpeg: "image/jpeg", gif: "image/gif", webp: "image/webp" };
const SHOWN_BY_BROWSERS = /\.(html?|xhtml|svg)$/i;
const LANGUAGES: Record<string, string> = {
  c: "c", cc: "cpp", cpp: "cpp", css: "css", diff: "diff", go: "go", h: "c", hpp: "cpp", htm: "xml", html: "xml", ini: "ini",
  java: "java", js: "javascript", json: "json", jsx: "javascript", md: "markdown", mjs: "javascript", patch: "diff", py: "python",
  rb: "ruby", rs: "rust", sh: "bash", sql: "sql", svg: "xml", toml: "ini", ts: "typescript", tsx: "typescript", xml: "xml",
  yaml: "yaml", yml: "yaml",
};

interface Shown extends Content {
  entry: Entry;
  text: string | null; // of what is text
  picture: string | null;
}

interface FileViewProps {
  workspace: Workspace;
  path: string;
  news: number; // changes when what is shown may not be true any more
  onClose: () => void;
  onFolder: (path: string) => void;
}

/** Shows the file at `path`, one for as long as it lives; a folder or a link to one is shown as the folder. */
export function FileView({ workspace, path, news, onClose, onFolder }: FileViewProps) {
  const [editing, setEditing] = useState(false);
  const { shown, said } = useFile({ workspace, path, news, onFolder }, editing);
  const edit = useRef<HTMLButtonElement>(null);
  const done = () => setEditing(false);
  // The way back from the editor, which has taken its focus with it.
  useEffect(() => editing ? () => edit.current?.focus() : undefined, [editing]);
  const isWhole = shown !== null && shown.entry.size <= MOST_SHOWN;
  const isText = shown?.text != null && isWhole && !editing;
  const draft = draftOf(workspace, path);
  const isMixed = isText && endsOf(shown.text!).length > 1;
  const name = path.split("/").at(-1) ?? "";
  return (
    <div class="files">
      <div class="files-tools">
        <button type="button" class="btn btn-small" onClick={onClose}>&#8592; Files</button>
        {isText && (!isMixed || draft) && <button type="button" class="btn btn-small" ref={edit} onClick={() => setEditing(true)}>Edit</button>}
        {SHOWN_BY_BROWSERS.test(name) && !editing && <button type="button" class="btn btn-small" onClick={() => previewFile(path)}>Preview</button>}
        <a class="btn btn-small" href={workspace.contentUrl(path)} download={name}>Download</a>
      </div>
      <p class="file-name"><bdi>{visible(path)}</bdi> {shown && <span class="quiet">{sized(shown.entry.size)}</span>}</p>
      <p class="files-status" role="status">{visible(said)}</p>
      {isMixed && <p class="help">It cannot be edited here: its lines end in different ways, and a browser would make them all alike.</p>}
      {isText && draft && <p class="help">You have changed it and not saved that: Edit shows your draft.</p>}
      {shown && editing && <Editor workspace={workspace} shown={shown} onDone={done} />}
      {shown && !editing && <Body shown={shown} isWhole={isWhole} />}
      {!shown && !said && <p class="files-empty">Loading...</p>}
      {!shown && said && <p class="files-empty"><button type="button" class="btn btn-small" onClick={() => onFolder(folderOf(path))}>Show its folder</button></p>}
    </div>
  );
}

/** Return what the file holds, as it was read last, and what went wrong since. */
function useFile({ workspace, path, news, onFolder }: Omit<FileViewProps, "onClose">, editing: boolean) {
  const [shown, setShown] = useState<Shown | null>(null);
  const [said, say] = useState("");
  const look = async () => {
    say("");
    const { entry } = await workspace.list(path);
    if (entry.kind === "folder") return null;
    return entry.etag === shown?.entry.etag ? shown : read(workspace, entry);
  };
  const take = (found: Shown | null) => (found ? setShown(found) : onFolder(path));
  const refuse = (error: unknown) => {
    if (error instanceof Refused && error.status === 404 && !editing) setShown(null);
    say(wordsOf(error));
  };
  useLook(look, take, refuse, [news, editing]);
  return { shown, said };
}

function Body({ shown, isWhole }: { shown: Shown; isWhole: boolean }) {
  const extension = extensionOf(shown.entry.name);
  const coloured = useHighlighted(shown.text ?? "", LANGUAGES[extension] ?? "", shown.text !== null);
  if (shown.picture) return <img class="result-image" alt={visible(shown.entry.name)} src={shown.picture} />;
  if (shown.text === null) return <p class="files-empty">This is not text. Download it to open it.</p>;
  if (shown.text === "") return <p class="files-empty">It is empty.</p>;
  return (
    <>
      <Lines>{coloured ?? visible(shown.text)}</Lines>
      {!isWhole && <p class="files-empty">This is its beginning. Download it to see all.</p>}
    </>
  );
}

function Lines({ children }: { children: ComponentChild }) {
  return <pre class="code file-text" tabIndex={0} dir="ltr" aria-label="Content"><code>{children}</code></pre>;
}

/** What a person has made of the file of `etag`, with the line ends that it had. */
interface FileDraft {
  etag: string;
  text: string;
}

function placeOf(workspace: Workspace, path: string): Draft {
  return new Draft(`edited ${workspace.contentUrl(path)}`);
}

function draftOf(workspace: Workspace, path: string): FileDraft | null {
  return JSON.parse(placeOf(workspace, path).read() || "null");
}

/** Return the ways in which lines of a text end. */
function endsOf(text: string): string[] {
  return [...new Set(text.match(/\r\n|\r|\n/g))];
}

/** Edits what is shown, or the draft that there is of it: saved as a change of the file that it was made of. */
function Editor({ workspace, shown, onDone }: { workspace: Workspace; shown: Shown; onDone: () => void }) {
  const place = placeOf(workspace, shown.entry.path);
  const [{ base, draft, end, original }] = useState(() => {
    const found = draftOf(workspace, shown.entry.path);
    const begun = found ?? { etag: shown.etag, text: shown.text ?? "" };
    const ends = endsOf(begun.text)[0] ?? endsOf(shown.text ?? "")[0] ?? "\n";
    return { draft: found, base: begun, end: ends, original: begun.text.replaceAll(ends, "\n") }; // as a browser has it in a field
  });
  const field = useRef<HTMLTextAreaElement>(null);
  const leave = () => {
    place.keep("");
    onDone();
  };
  const written = () => field.current!.value.replaceAll("\n", end);
  const { busy, problem, refused, save } = useSaving((etag) => workspace.write(shown.entry.path, written(), etag), leave);
  const changed = refused || shown.etag !== base.etag;
  useEffect(() => field.current!.focus(), []);
  const type = ({ currentTarget }: { currentTarget: HTMLTextAreaElement }) =>
    place.keepSoon(() => {
      const typed = currentTarget.value;
      const made: FileDraft = { etag: base.etag, text: typed.replaceAll("\n", end) };
      return draft === null && typed === original ? "" : JSON.stringify(made);
    });
  const onKeyDown = (event: KeyboardEvent) => {
    if (event.key !== "s" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    void save(base.etag);
  };
  return (
    <>
      {draft && <p class="help">This is your draft, which is not saved.</p>}
      <textarea class="input mono file-editor" aria-label={`Content of ${visible(shown.entry.name)}`} spellcheck={false} defaultValue={original} readOnly={busy}
        ref={field} onInput={type} onKeyDown={onKeyDown} />
      {changed && <p class="problem" role="alert">The file has changed since you began. Overwrite it, or discard what you wrote.</p>}
      {problem && <p class="problem" role="alert">{visible(problem)}</p>}
      <div class="files-tools">
        <button type="button" class="btn btn-small btn-primary" disabled={busy} onClick={() => save(base.etag)}>Save</button>
        {changed && <button type="button" class="btn btn-small btn-danger" disabled={busy} onClick={() => save(null)}>Overwrite it</button>}
        <button type="button" class="btn btn-small" disabled={busy} onClick={leave}>Discard</button>
      </div>
    </>
  );
}

/** Return how to save once by `write`, then `done`; and what is known of that: `refused`, as the file is another now. */
function useSaving(write: (etag: string | null) => Promise<unknown>, done: () => void) {
  const [problem, setProblem] = useState("");
  const [refused, setRefused] = useState(false);
  const [busy, setBusy] = useState(false);
  const save = async (etag: string | null) => {
    if (busy) return;
    setBusy(true);
    setProblem("");
    try {
      await write(etag);
      done();
    } catch (error) {
      const other = error instanceof Refused && error.status === 412;
      setRefused(other);
      setProblem(other ? "" : wordsOf(error));
      setBusy(false);
    }
  };
  return { busy, problem, refused, save };
}

async function read(workspace: Workspace, entry: Entry): Promise<Shown> {
  const kind = PICTURES[extensionOf(entry.name)];
  const content = await workspace.read(entry, kind ? MOST_PICTURE : MOST_SHOWN);
  if (kind && entry.size <= MOST_PICTURE) return { ...content, entry, text: null, picture: await asAddress(content.blob, kind) };
  return { ...content, entry, text: textOf(await content.blob.arrayBuffer(), entry.size > MOST_SHOWN), picture: null };
}

/** Return what the bytes say in UTF-8, null when they are no text; `cut`: the last character may be a part. */
function textOf(bytes: ArrayBuffer, cut: boolean): string | null {
  try {
    const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes, { stream: cut });
    return text.includes("\0") ? null : text;
  } catch {
    return null;
  }
}

function asAddress(blob: Blob, kind: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(String(reader.result));
    reader.onerror = () => reject(reader.error ?? new Error("The picture cannot be read."));
    reader.readAsDataURL(new Blob([blob], { type: kind }));
  });
}

function extensionOf(name: string): string {
  return name.includes(".") ? (name.split(".").at(-1)?.toLowerCase() ?? "") : "";
}
