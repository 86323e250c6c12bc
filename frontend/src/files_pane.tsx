// The pane of the workspace's files: folders page by page, one open file, uploads, search.
import { type ComponentChildren, render } from "preact";
import { useCallback, useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { Asleep } from "./asleep";
import { FileView } from "./file_view";
import { GitBar } from "./git_bar";
import { useAttempt, useLive, useLook } from "./hooks";
import { LineForm } from "./line_form";
import { type Now, showPane, startPane } from "./panes";
import { isUnreached, wordsOf } from "./sse";
import { ago } from "./times";
import { counted, visible } from "./text";
import { uploadAll } from "./upload";
import { type Entry, type Listing, type Match, type Upload, Workspace, chosen, dropped, folderOf, isArchive, pathIn, sized } from "./workspace";

const SEARCH_WAIT_MS = 250;

/** Bring the pane to life, on a page that has one. */
export function startFiles(): void {
  startPane("files", (place, { api }) => {
    const workspace = new Workspace(api);
    return (now) => render(<FilesPane api={api} workspace={workspace} {...now} />, place);
  });
}

/** Show a file in the pane, by what the agent calls it: its path, which may begin with the workspace's. */
export function openFile(path: string): void {
  showPane("files");
  document.dispatchEvent(new CustomEvent("greylag:open-file", { detail: path }));
}

function FilesPane({ api, workspace, news, status }: { api: string; workspace: Workspace } & Now) {
  const [folder, setFolder] = useState("");
  const [open, show, close] = useOpenFile(workspace);
  const [repository, setRepository] = useState(false);
  const { said, again, attempt } = useDoing();
  const upload = (uploads: Upload[] | Promise<Upload[]>) => attempt(async (say) => say(await uploadAll(workspace, await uploads, say)));
  const unpack = (into: string, archive: File | string) =>
    attempt(async (say) => {
      const name = typeof archive === "string" ? archive : archive.name;
      const isEmpty = (await workspace.list(into)).entries.length === 0;
      if (!isEmpty && !confirm(`Unpack ${visible(name)}? Its files replace those of the same path.`)) return;
      say(`Unpacking ${name}`);
      const { files, left_out } = await workspace.unpack(into, archive);
      say(`${counted(files, "file")} unpacked.${left_out.length ? ` Left out: ${left_out.join(", ")}` : ""}`);
    });
  const listed = useRef(0);
  if (open === null) listed.current = news + again; // what nobody sees is not looked at anew
  return (
    <>
      {open !== null && <FileView key={open} workspace={workspace} path={open} news={news} onClose={close} onFolder={(path) => { close(); setFolder(path); }} />}
      {open === null && status !== "active" && <div class="files"><Asleep api={api} status={status} words="Its files show once it is active." attempt={attempt} /><p class="files-status" role="status">{visible(said)}</p></div>}
      {status === "active" && (
        <DropZone hidden={open !== null} onDrop={(transfer) => void upload(dropped(transfer, folder))}>
          {repository && <GitBar api={api} news={listed.current} />}
          <Toolbar workspace={workspace} folder={folder} attempt={attempt} onUpload={upload} onUnpack={(archive) => unpack(folder, archive)} />
          <p class="files-status" role="status">{visible(said)}</p>
          <Search workspace={workspace} onOpen={show}>
            <Path folder={folder} onOpen={setFolder} />
            <Folder workspace={workspace} folder={folder} news={listed.current} attempt={attempt} onUnpack={unpack}
              onFolder={setFolder} onFile={show} onTop={setRepository} />
          </Search>
        </DropZone>
      )}
    </>
  );
}

/** Return the path of the file that is open, null for none; how to open one from the list; and how to close it, which
 * leads back to where it was opened.
 */
function useOpenFile(workspace: Workspace) {
  const [open, setOpen] = useState<string | null>(null);
  const opener = useRef<HTMLElement | null>(null); // in the list
  // Before the pane is painted: what opens a file has just brought the pane up.
  useLayoutEffect(() => {
    let newest = "";
    const take = async (event: Event) => {
      const named = (event as CustomEvent<string>).detail;
      newest = named;
      const path = await workspace.find(named);
      if (newest !== named) return;
      opener.current = null;
      setOpen(path);
    };
    document.addEventListener("greylag:open-file", take);
    return () => document.removeEventListener("greylag:open-file", take);
  }, [workspace]);
  useLayoutEffect(() => {
    if (open === null) opener.current?.focus({ preventScroll: true });
    else if (opener.current) document.querySelector<HTMLElement>("#files .files-tools button")?.focus();
  }, [open]);
  const show = (path: string) => {
    opener.current = document.activeElement as HTMLElement | null;
    setOpen(path);
  };
  return [open, show, () => setOpen(null)] as const;
}

type Doing = (action: (say: (words: string) => void) => Promise<unknown>) => Promise<void>;

/** Return how to do something; what is `said` of that, and of what goes on at once; and what grows with each thing that
 * is done.
 */
function useDoing() {
  const [said, setSaid] = useState("");
  const [again, setAgain] = useState(0);
  const lines = useRef(new Map<unknown, string>()); // by what was done last, and what is under way
  const under = useRef(new Set<unknown>());
  const lost = useRef(new Set<unknown>()); // what did not reach the server
  const tell = (action: unknown, words: string) => {
    lines.current.set(action, words);
    setSaid([...lines.current.values()].filter(Boolean).join(" "));
  };
  useLive(() => {
    for (const action of lost.current) tell(action, "");
    lost.current.clear();
  });
  const attempt = useCallback<Doing>(async (action) => {
    const say = (words: string) => tell(action, words);
    for (const one of lines.current.keys()) if (!under.current.has(one)) lines.current.delete(one);
    lost.current.clear(); // it is of what is over alone
    under.current.add(action);
    say("");
    try {
      await action(say);
    } catch (error) {
      say(wordsOf(error));
      if (isUnreached(error)) lost.current.add(action);
    }
    under.current.delete(action);
    setAgain((count) => count + 1);
  }, []);
  return { said, again, attempt };
}

function DropZone({ hidden, onDrop, children }: { hidden: boolean; onDrop: (transfer: DataTransfer) => void; children: ComponentChildren }) {
  const [over, setOver] = useState(false);
  const take = (event: DragEvent) => {
    event.preventDefault();
    setOver(false);
    if (event.dataTransfer) onDrop(event.dataTransfer);
  };
  const hover = (event: DragEvent) => {
    event.preventDefault();
    setOver(true);
  };
  return <div hidden={hidden} class={over ? "files files-over" : "files"} onDragOver={hover} onDragLeave={() => setOver(false)} onDrop={take}>{children}</div>;
}

interface ToolbarProps {
  workspace: Workspace;
  folder: string;
  attempt: Doing;
  onUpload: (uploads: Upload[]) => void;
  onUnpack: (archive: File) => void;
}

function Toolbar({ workspace, folder, attempt, onUpload, onUnpack }: ToolbarProps) {
  const [naming, setNaming] = useState(false);
  const make = (name: string) => {
    setNaming(false);
    void attempt(() => workspace.makeFolder(pathIn(folder, name)));
  };
  return (
    <div class="files-tools">
      <Picker label="Upload files" onPick={(files) => onUpload(chosen(files, folder))} />
      <details class="menu">
        <summary class="btn btn-small btn-quiet" aria-label="More for this folder">&#8943;</summary>
        <div class="menu-body">
          <Picker label="Upload a folder" folder onPick={(files) => onUpload(chosen(files, folder))} />
          <Picker label="Upload and unpack an archive" accept=".zip,.gz,.tgz" onPick={([archive]) => archive && onUnpack(archive)} />
          <button type="button" class="menu-item" onClick={() => setNaming(true)}>New folder</button>
          <a class="menu-item" href={workspace.archiveUrl(folder)} download={`${folder.split("/").at(-1) || "workspace"}.zip`}>Download as an archive</a>
        </div>
      </details>
      {naming && <LineForm label="Name of the new folder" verb="Create" value="" style="input mono" onDone={make} onLeave={() => setNaming(false)} />}
    </div>
  );
}

interface PickerProps {
  label: string;
  folder?: boolean;
  accept?: string;
  onPick: (files: FileList) => void;
}

function Picker({ label, folder = false, accept = "", onPick }: PickerProps) {
  const input = useRef<HTMLInputElement>(null);
  const pick = () => {
    const files = input.current?.files;
    if (files?.length) onPick(files);
    if (input.current) input.current.value = "";
  };
  useEffect(() => { if (input.current) input.current.webkitdirectory = folder; }, [folder]);
  return (
    <>
      <button type="button" class={folder || accept ? "menu-item" : "btn btn-small"} onClick={() => input.current?.click()}>{label}</button>
      <input ref={input} type="file" hidden multiple={!accept} accept={accept} aria-label={label} onChange={pick} />
    </>
  );
}

function Path({ folder, onOpen }: { folder: string; onOpen: (folder: string) => void }) {
  const parts = folder ? folder.split("/") : [];
  return (
    <nav class="files-path" aria-label="Folder">
      <button type="button" class="btn-text" onClick={() => onOpen("")}>workspace</button>
      {parts.map((part, index) => (
        <span key={index}>/<button type="button" class="btn-text" onClick={() => onOpen(parts.slice(0, index + 1).join("/"))}>{visible(part)}</button></span>
      ))}
    </nav>
  );
}

interface FolderProps {
  workspace: Workspace;
  folder: string;
  news: number;
  attempt: Doing;
  onUnpack: (into: string, archive: string) => void;
  onFolder: (path: string) => void;
  onFile: (path: string) => void;
  onTop: (isRepository: boolean) => void; // once the workspace's own folder is listed
}

function Folder({ folder, news, onTop, ...given }: FolderProps) {
  const { listing, said, more } = useListing(given.workspace, folder, news, onTop);
  const renamed = useRef("");
  if (!listing) return <p class="files-empty">{visible(said) || "Loading..."}</p>;
  if (listing.entries.length === 0) return <p class="files-empty">Nothing is here yet. Drop files or folders to upload them.</p>;
  return (
    <>
      <ul class="files-list" key={listing.entry.path}>
        {listing.entries.map((entry) => <Row key={entry.path} entry={entry} renamed={renamed} {...given} />)}
      </ul>
      {listing.next && <button type="button" class="btn btn-small" onClick={more}>Show more</button>}
      {said && <p class="files-status" role="alert">{visible(said)}</p>}
    </>
  );
}

/** Return as much of a folder as is shown, what is `said` of what went wrong, and how to show more. */
function useListing(workspace: Workspace, folder: string, news: number, onTop: FolderProps["onTop"]) {
  const [listing, setListing] = useState<Listing | null>(null);
  const { said, say, attempt } = useAttempt();
  const shown = useRef(listing);
  shown.current = listing;
  const look = async (isWanted: () => boolean) => {
    // As much of the same folder as was shown.
    const least = shown.current?.entry.path === folder ? shown.current.entries.length : 0;
    let found = await workspace.list(folder);
    while (isWanted() && found.next && found.entries.length < least) {
      const next = await workspace.list(folder, found.next);
      found = { ...next, entries: [...found.entries, ...next.entries] };
    }
    return found;
  };
  const take = (found: Listing) => {
    setListing(found);
    say("");
    if (!folder) onTop(found.entries.some((entry) => entry.name === ".git"));
  };
  const refuse = (failure: unknown) => {
    setListing(null);
    attempt(() => Promise.reject(failure));
  };
  useLook(look, take, refuse, [workspace, folder, news, onTop]);
  const more = () => attempt(async () => {
    const isShown = () => shown.current === listing; // another folder's list takes no more of this one
    const next = await workspace.list(folder, listing?.next ?? "").catch((failure) => {
      if (isShown()) throw failure;
    });
    if (next && listing && isShown()) setListing({ ...next, entries: [...listing.entries, ...next.entries] });
  });
  return { listing, said, more };
}

interface RowProps extends Omit<FolderProps, "folder" | "news" | "onTop"> {
  entry: Entry;
  renamed: { current: string }; // the path that a row has got here, until the list has it
}

function Row({ workspace, entry, renamed, attempt, onUnpack, onFolder, onFile }: RowProps) {
  const [moving, setMoving] = useState(false);
  const name = visible(entry.name);
  const move = (target: string) => {
    setMoving(false);
    if (target === entry.path) return;
    renamed.current = target;
    void attempt(() => workspace.move(entry.path, target));
  };
  const opener = useRef<HTMLButtonElement>(null);
  useLayoutEffect(() => {
    if (renamed.current !== entry.path) return;
    renamed.current = "";
    if (document.activeElement === document.body) opener.current?.focus();
  }, []);
  const remove = () => {
    if (confirm(`Delete ${name}${entry.kind === "folder" ? " and all that is in it" : ""}?`)) void attempt(() => workspace.remove(entry));
  };
  if (moving) return <li><LineForm label="New path" verb="Move" value={entry.path} style="input mono" onDone={move} onLeave={() => setMoving(false)} /></li>;
  const open = () => (entry.kind === "folder" ? onFolder(entry.path) : onFile(entry.path));
  return (
    <li class="files-row">
      <button type="button" ref={opener} class={`files-name files-${entry.kind}`} onClick={open}><bdi>{name}</bdi>{entry.kind === "link" && <> {"\u2192"} <bdi>{visible(entry.target ?? "")}</bdi></>}</button>
      <span class="files-facts">{entry.kind === "file" && sized(entry.size)}</span>
      <span class="files-facts files-when" title={entry.modified}>{ago(new Date(entry.modified))}</span>
      <details class="menu">
        <summary class="btn btn-small btn-quiet btn-icon" aria-label={`More for ${name}`}>&#8943;</summary>
        <div class="menu-body">
          {entry.kind === "file" && <a class="menu-item" href={workspace.contentUrl(entry.path)} download={entry.name}>Download</a>}
          {entry.kind === "folder" && <a class="menu-item" href={workspace.archiveUrl(entry.path)} download={`${entry.name}.zip`}>Download as an archive</a>}
          {entry.kind === "file" && isArchive(entry.name) && <button type="button" class="menu-item" onClick={() => onUnpack(folderOf(entry.path), entry.path)}>Unpack here</button>}
          <button type="button" class="menu-item" onClick={() => setMoving(true)}>Rename or move</button>
          <button type="button" class="menu-item btn-danger-text" onClick={remove}>Delete</button>
        </div>
      </details>
    </li>
  );
}

interface SearchProps {
  workspace: Workspace;
  onOpen: (path: string) => void;
  children: ComponentChildren;
}

/** Shows what a search finds; `children` while nothing is searched for. */
function Search({ workspace, onOpen, children }: SearchProps) {
  const [text, setText] = useState("");
  const [found, setFound] = useState<{ matches: Match[]; whole: boolean } | string | null>(null);
  const look = async (isWanted: () => boolean) => {
    setFound(null);
    await new Promise((done) => setTimeout(done, SEARCH_WAIT_MS));
    return isWanted() && text.trim() ? workspace.search(text.trim()) : null;
  };
  useLook(look, setFound, (failure) => setFound(wordsOf(failure)), [workspace, text]);
  return (
    <>
      <input class="input files-search" type="search" placeholder="Search names and contents" aria-label="Search files" value={text}
        onInput={(event) => setText(event.currentTarget.value)} />
      <div class="contents" hidden={Boolean(text.trim())}>{children}</div>
      {text.trim() && <Matches found={found} onOpen={onOpen} />}
    </>
  );
}

function Matches({ found, onOpen }: { found: { matches: Match[]; whole: boolean } | string | null; onOpen: (path: string) => void }) {
  if (found === null) return <p class="files-empty" role="status">Searching...</p>;
  if (typeof found === "string") return <p class="files-empty" role="status">{visible(found)}</p>;
  return (
    <>
      <p class="files-status" role="status">{counted(found.matches.length, "match", "matches")}{!found.whole && ", and more"}</p>
      <ul class="files-list">
        {found.matches.map((match, index) => (
          <li key={index} class="files-match">
            <button type="button" class="files-name" onClick={() => onOpen(match.path)}><bdi>{visible(match.path)}</bdi>{match.line > 0 && `:${match.line}`}</button>
            {match.line > 0 && <code>{visible(match.text)}</code>}
          </li>
        ))}
      </ul>
    </>
  );
}
