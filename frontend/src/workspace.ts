// The workspace's files as the API gives them.
import { LONG, ask, post } from "./sse";

export interface Entry {
  path: string;
  name: string;
  kind: "file" | "folder" | "link" | "other";
  size: number;
  modified: string;
  target: string | null;
  media_type: string | null;
  etag: string;
}

export interface Listing {
  entry: Entry;
  entries: Entry[];
  next: string | null;
}

export interface Match {
  path: string;
  line: number;
  text: string;
}

/** What a file holds, as far as it was asked for. */
export interface Content {
  blob: Blob;
  etag: string;
}

/** What came of unpacking an archive. */
interface Unpacked {
  files: number;
  left_out: string[];
}

/** A file on its way into the workspace, with its path there; without one, an empty folder. */
export interface Upload {
  path: string;
  file: Blob | null;
}

const MOST_TRIED = 5;
const ARCHIVE = /\.(tar\.gz|tgz|zip)$/i;

/** The files of one project. */
export class Workspace {
  #api: string;

  /** `api` is the address of the project in the API. */
  constructor(api: string) {
    this.#api = `${api}/files`;
  }

  async list(path: string, after = ""): Promise<Listing> {
    return (await ask(this.#at("", { path, after }))).json();
  }

  async search(text: string): Promise<{ matches: Match[]; whole: boolean }> {
    return (await ask(this.#at("/search", { q: text }), LONG)).json();
  }

  /** Return the first `most` bytes of a file. */
  async read(entry: Entry, most: number): Promise<Content> {
    const headers: Record<string, string> = entry.size > most ? { Range: `bytes=0-${most - 1}` } : {};
    const response = await ask(this.#at("/content", { path: entry.path }), { ...LONG, headers, cache: "no-store" });
    return { blob: await response.blob(), etag: response.headers.get("etag") ?? "" };
  }

  /** Write a file, unless it is another than the one of `etag` by now; without one, whatever is there. */
  async write(path: string, text: BodyInit, etag: string | null): Promise<Entry> {
    const headers: Record<string, string> = etag === null ? {} : { "If-Match": etag };
    return (await ask(this.#at("/content", { path }), { ...LONG, method: "PUT", headers: { ...headers, ...BYTES }, body: text })).json();
  }

  async makeFolder(path: string): Promise<void> {
    await post(`${this.#api}/folder`, { path });
  }

  async move(source: string, target: string): Promise<void> {
    await post(`${this.#api}/move`, { source, target });
  }

  async remove(entry: Entry): Promise<void> {
    await ask(this.#at("", { path: entry.path, recursive: String(entry.kind === "folder") }), { ...LONG, method: "DELETE" });
  }

  /** Unpack an archive that is sent, or the one that is there at a path, into a folder. */
  async unpack(path: string, archive: File | string): Promise<Unpacked> {
    const [name, source, body] = typeof archive === "string" ? [archive, archive, null] : [archive.name, "", archive];
    const address = this.#at("/archive", { path, source, format: /\.zip$/i.test(name) ? "zip" : "tar.gz" });
    return (await ask(address, { ...LONG, method: "POST", headers: BYTES, body })).json();
  }

  /** Return the path of what the agent names, which may call the workspace's own folder by its name. */
  async find(named: string): Promise<string> {
    const path = named.replace(/^\.\//, "");
    if (!path.startsWith("/")) return path;
    // Any folder on the way may have that name, too: what is there decides.
    const below = [...path.matchAll(/\/workspace\/(?=.)/g)].map((found) => path.slice(found.index + found[0].length));
    for (const one of below.slice(-MOST_TRIED, -1)) {
      if (await this.list(one).then(() => true, () => false)) return one;
    }
    return below.at(-1) ?? path;
  }

  contentUrl(path: string): string {
    return this.#at("/content", { path });
  }

  archiveUrl(path: string): string {
    return this.#at("/archive", { path, format: "zip" });
  }

  #at(under: string, query: Record<string, string>): string {
    const given = Object.entries(query).filter(([, value]) => value !== "");
    return `${this.#api}${under}?${new URLSearchParams(given)}`;
  }
}

const BYTES = { "Content-Type": "application/octet-stream" };

/** Whether a file's name says that it can be unpacked. */
export function isArchive(name: string): boolean {
  return ARCHIVE.test(name);
}

/** Return the path of `name`, which a person or a browser gave, in `folder`. */
export function pathIn(folder: string, name: string): string {
  const written = name.replaceAll("\\", "\\\\");
  return folder ? `${folder}/${written}` : written;
}

/** Return the folder that a path is in; empty for the workspace itself. */
export function folderOf(path: string): string {
  return path.includes("/") ? path.slice(0, path.lastIndexOf("/")) : "";
}

/** Return all that was dropped, folders with all that they hold. */
export async function dropped(transfer: DataTransfer, folder: string): Promise<Upload[]> {
  // All must be taken before the first wait: the transfer is empty afterwards.
  const roots = [...transfer.items].map((item) => ({ entry: item.webkitGetAsEntry(), file: item.getAsFile() }));
  const found = roots.map(({ entry, file }) => {
    if (entry) return walk(entry, folder);
    return file ? [{ path: pathIn(folder, file.name), file }] : [];
  });
  return (await Promise.all(found)).flat();
}

/** Return the files of an input, which knows the folder that they come from. */
export function chosen(files: FileList, folder: string): Upload[] {
  return [...files].map((file) => ({ path: pathIn(folder, file.webkitRelativePath || file.name), file }));
}

async function walk(entry: FileSystemEntry, folder: string): Promise<Upload[]> {
  const path = pathIn(folder, entry.name);
  if (entry.isFile) {
    const file = await new Promise<File>((resolve, reject) => (entry as FileSystemFileEntry).file(resolve, reject));
    return [{ path, file }];
  }
  const reader = (entry as FileSystemDirectoryEntry).createReader();
  const found: Upload[] = [];
  let isEmpty = true;
  for (;;) {
    // A hundred at a time, until there are none.
    const some = await new Promise<FileSystemEntry[]>((resolve, reject) => reader.readEntries(resolve, reject));
    if (some.length === 0) return isEmpty ? [{ path, file: null }] : found;
    isEmpty = false;
    for (const one of some) found.push(...(await walk(one, path)));
  }
}

/** Return "12.3 kB" of a number of bytes. */
export function sized(bytes: number): string {
  const units = ["B", "kB", "MB", "GB", "TB"];
  const step = bytes < 1000 ? 0 : Math.min(units.length - 1, Math.floor(Math.log10(bytes) / 3));
  const value = bytes / 1000 ** step;
  return `${step === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${units[step]}`;
}
