// What the environment serves, and files as a browser shows them: each in a frame of its own origin,
// which can do nothing here, or in a tab. Loaded when the pane is first opened.
import { render } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { Asleep } from "./asleep";
import { copy } from "./clipboard";
import { CopyButton } from "./code_block";
import { type Attempt, changing, useAttempt, useAttemptedLook } from "./hooks";
import { isShown, showPane } from "./panes";
import { Refused, ask, post, wordsOf } from "./sse";
import { visible } from "./text";

const FIRST_WAIT_MS = 2000;
const LONGEST_WAIT_MS = 10_000;
const HOUR = 3600;
const TIMES: [string, number][] = [["1 hour", HOUR], ["1 day", 24 * HOUR], ["7 days", 7 * 24 * HOUR], ["30 days", 30 * 24 * HOUR]];
// Never allow-top-navigation: what is shown stays in its frame.
const MAY = "allow-scripts allow-forms allow-same-origin allow-popups allow-downloads";

interface Port {
  port: number;
  process: string;
}

interface Link {
  url: string;
  expires_at: string;
}

interface Share extends Link {
  share: string;
  port: number | null;
  path: string;
}

/** What is shown: a port at a path, or without one the file at it. */
interface Target {
  port: number | null;
  path: string;
}

interface PaneProps {
  api: string;
  page: string;
  status: string;
  wanted: { path: string } | null;
}

/** Show the pane in `place`, or what has changed in it. */
export function show(place: HTMLElement, given: PaneProps): void {
  render(<Pane {...given} />, place);
}

function Pane(given: PaneProps) {
  const { said, attempt } = useAttempt(wordsFor);
  return (
    <div class="preview">
      {given.status === "active" ? <Previews {...given} attempt={attempt} />
        : <Asleep api={given.api} status={given.status} words="What it serves shows once it is active." attempt={attempt} />}
      {said && <p class="preview-said" role="alert">{visible(said)}</p>}
    </div>
  );
}

function wordsFor(failure: unknown): string {
  const forbidden = failure instanceof Refused && failure.problem.code === "forbidden";
  return forbidden ? "A viewer of this project cannot open what it serves. Ask its owner to make you an editor." : wordsOf(failure);
}

function Previews({ api, page, wanted, attempt }: PaneProps & { attempt: Attempt }) {
  const ports = usePorts(api, attempt);
  const [target, setTarget] = useState<Target | null>(null);
  const [opened, setOpened] = useState(0);
  const open = (next: Target) => {
    setTarget(next);
    setOpened((count) => count + 1);
  };
  useEffect(() => { if (wanted) open({ port: null, path: wanted.path }); }, [wanted]);
  const only = ports?.length === 1 ? ports[0]!.port : null;
  useEffect(() => { if (only !== null && !target) open({ port: only, path: "/" }); }, [only]);
  const port = target?.port ?? null;
  const listed = port === null || (ports?.some((one) => one.port === port) ?? true);
  const gone = useRef<number | null>(null);
  useEffect(() => {
    // A server that was started again is looked at again.
    if (listed && target && port !== null && gone.current === port) open(target);
    gone.current = listed ? null : port;
  }, [listed, port]);
  useEffect(() => {
    if (target?.port !== null) return;
    const again = () => setOpened((count) => count + 1);
    document.addEventListener("greylag:turn-ended", again);
    return () => document.removeEventListener("greylag:turn-ended", again);
  }, [target]);
  return (
    <>
      {(ports?.length || target?.port === null) && (
        <div class="files-tools" role="group" aria-label="What can be shown">
          {ports?.map((one) => (
            <button key={one.port} type="button" class="btn btn-small" aria-pressed={one.port === port && target !== null} onClick={() => open({ port: one.port, path: "/" })}>
              {one.port} <span class="quiet">{visible(one.process)}</span>
            </button>
          ))}
          {target?.port === null && <button type="button" class="btn btn-small preview-file" aria-pressed onClick={() => open(target)}><bdi>{visible(target.path)}</bdi></button>}
        </div>
      )}
      {target ? <Opened key={`${target.port} ${target.path}`} api={api} page={page} target={target} opened={opened} open={open} attempt={attempt} />
        : ports?.length === 0 ? <NothingYet /> : ports && <p class="files-empty">Choose what to show.</p>}
      {target && !listed && <p class="preview-said" role="status">Nothing listens on port {target.port} any more. It is shown again once something does.</p>}
    </>
  );
}

function NothingYet() {
  return (
    <div class="files-empty">
      <p class="mb-3">Nothing is served yet. Ask the agent to start the application, or start a server in the terminal, such as <code>python3 -m http.server 8000</code>. It appears here by itself.</p>
      <p class="mb-3">An HTML file needs no server: open it under Files, and choose Preview.</p>
      <button type="button" class="btn btn-small" onClick={() => showPane("terminal")}>Go to the terminal</button>
    </div>
  );
}

/** Return what listens, asked for again and again while somebody sees the pane; null until it is known. */
function usePorts(api: string, attempt: Attempt): Port[] | null {
  const [ports, setPorts] = useState<Port[] | null>(null);
  useEffect(() => {
    let wait = FIRST_WAIT_MS;
    let timer = 0;
    let before = "";
    let left = false;
    const look = async () => {
      clearTimeout(timer);
      if (left || document.hidden || !isShown("preview")) return;
      const found: Port[] = (await (await ask(`${api}/ports`)).json()).ports;
      const now = JSON.stringify(found);
      wait = now === before ? Math.min(wait * 1.5, LONGEST_WAIT_MS) : FIRST_WAIT_MS;
      before = now;
      if (left) return;
      setPorts(found);
      clearTimeout(timer);
      timer = window.setTimeout(() => void again(), wait);
    };
    const again = () => look().catch((failure) => {
      clearTimeout(timer);
      if (!(failure instanceof Refused) || failure.passing) timer = window.setTimeout(() => void again(), LONGEST_WAIT_MS);
      else attempt(() => Promise.reject(failure));
    });
    const anew = () => {
      wait = FIRST_WAIT_MS;
      void again();
    };
    const events = ["visibilitychange", "greylag:turn-ended", "greylag:shown"];
    for (const one of events) document.addEventListener(one, anew);
    anew();
    return () => {
      left = true;
      clearTimeout(timer);
      for (const one of events) document.removeEventListener(one, anew);
    };
  }, [api]);
  return ports;
}

interface OpenedProps {
  api: string;
  page: string;
  target: Target;
  opened: number;
  open: (target: Target) => void;
  attempt: Attempt;
}

/** One preview, with what may be done with it; `opened` changes when it is to be loaded again. */
function Opened({ api, page, target, opened, open, attempt }: OpenedProps) {
  const [link, setLink] = useState<Link | null>(null);
  useAttemptedLook(attempt, () => linkTo(api, target), setLink, [api, target, opened]);
  const where = target.port === null ? `${page}/preview?` : `${page}/preview/${encodeURIComponent(target.port)}?`;
  const name = target.port === null ? target.path : `port ${target.port}`;
  return (
    <>
      <div class="files-tools">
        {target.port !== null && <PathForm target={target} open={open} />}
        <button type="button" class="btn btn-small" title="Reload" aria-label="Reload" onClick={() => open({ ...target })}><span aria-hidden="true">&#8635;</span></button>
        <a class="btn btn-small" title="Open in a new tab" aria-label="Open in a new tab" href={where + new URLSearchParams({ path: target.path })} target="_blank" rel="noopener noreferrer"><span aria-hidden="true">&#8599;</span></a>
      </div>
      <Shares api={api} target={target} attempt={attempt} />
      {link && (canBeFramed(link.url)
        ? <iframe key={link.url} class="preview-frame" src={link.url} title={`Preview of ${visible(name)}`} sandbox={MAY} allow="" referrerpolicy="no-referrer" />
        : <p class="files-empty">Browsers show this only in a tab of its own, as the site is not reached by https.</p>)}
    </>
  );
}

function PathForm({ target, open }: { target: Target; open: (target: Target) => void }) {
  const [path, setPath] = useState(target.path);
  return (
    <form class="preview-path" onSubmit={(event) => { event.preventDefault(); open({ ...target, path: path.startsWith("/") ? path : `/${path}` }); }}>
      <input class="input" aria-label="Path" value={path} spellcheck={false} autocomplete="off" onInput={(event) => setPath(event.currentTarget.value)} />
    </form>
  );
}

/** In a frame a cookie must be a secure one, which browsers keep at https and on this machine. */
function canBeFramed(url: string): boolean {
  const { protocol, hostname } = new URL(url);
  return protocol === "https:" || hostname.endsWith(".localhost");
}

async function linkTo(api: string, { port, path }: Target, seconds: number | null = null): Promise<Link> {
  const where = port === null ? `${api}/files/preview` : `${api}/ports/${encodeURIComponent(port)}/preview`;
  return (await post(where, { path, share_seconds: seconds })).json();
}

/** The links by which anybody may see something of the project, and new ones to the target. */
function Shares({ api, target, attempt }: { api: string; target: Target; attempt: Attempt }) {
  const [shares, setShares] = useState<Share[] | null>(null);
  const [isOpen, setOpen] = useState(false);
  const look = async (): Promise<Share[]> => (await (await ask(`${api}/shares`)).json()).shares;
  const load = async () => setShares(await look());
  useAttemptedLook(attempt, isOpen ? look : null, setShares, [api, isOpen]);
  // Where it is not copied, it can be below.
  const make = (seconds: number) => attempt(() => changing(copy(linkTo(api, target, seconds).then(({ url }) => url)), load));
  const end = (name: string) => attempt(() => changing(ask(`${api}/shares/${encodeURIComponent(name)}`, { method: "DELETE" }), load));
  return (
    <details class="preview-shares" onToggle={(event) => setOpen(event.currentTarget.open)}>
      <summary>Shared links</summary>
      <p class="quiet">Whoever has a link sees {target.port === null ? "this file and what lies beside and below it" : "and uses all that this port serves"}, without signing in, until it runs out or you end it.</p>
      <div class="files-tools" role="group" aria-label="Copy a link that is good for">
        <span aria-hidden="true">Copy a link for</span>
        {TIMES.map(([words, seconds]) => <button key={words} type="button" class="btn btn-small" onClick={() => make(seconds)}>{words}</button>)}
      </div>
      {shares?.length === 0 && <p class="quiet" role="status">Nothing of this project is shared.</p>}
      {shares && shares.length > 0 && (
        <ul class="files-list" aria-label="Shared links">
          {shares.map((one) => <SharedLink key={one.share} share={one} onEnd={() => end(one.share)} />)}
        </ul>
      )}
    </details>
  );
}

/** Return an address's path as files are named on the page: bytes that are no UTF-8 stay visible. */
function named(path: string): string {
  return path.replace(/%[c-f][0-9a-f](%[89ab][0-9a-f]){1,3}|%[0-9a-f]{2}/gi, (bytes) => {
    try {
      return decodeURIComponent(bytes);
    } catch {
      return bytes.replaceAll("%", "\\x");
    }
  });
}

function SharedLink({ share, onEnd }: { share: Share; onEnd: () => void }) {
  const name = share.port === null ? named(share.path).slice(1) : `Port ${share.port}${share.path}`;
  return (
    <li class="preview-share">
      <span class="preview-share-name"><bdi>{visible(name)}</bdi> <span class="quiet">until {new Date(share.expires_at).toLocaleString()}</span></span>
      <input class="input" readOnly value={share.url} aria-label={`Link to ${visible(name)}`} onFocus={(event) => event.currentTarget.select()} />
      <CopyButton text={share.url} />
      <button type="button" class="btn-text btn-danger-text" onClick={onEnd}>End<span class="visually-hidden"> the link to {visible(name)}</span></button>
    </li>
  );
}
