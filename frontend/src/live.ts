// Keeps the open page as things are: one stream per page, closed while nobody looks at it (a browser
// opens only six connections to a host, and every tab would hold one), unless others rest on what it tells.
import htmx from "htmx.org/dist/htmx.esm.js";
import { type Doing, isHeeded, onOtherLive, tellDoing, tellLive } from "./doing";
import { Place } from "./places";
import { Backoff, Refused, Silence, ask, frames, isUnreached } from "./sse";

const TOLD_MS = 5_000; // what runs has been told then, if anything does
const LOST_MS = 3_000; // one that was cut may be there again before anybody needs to know

interface Live {
  url: string;
  leave: AbortController;
  last: string | null;
  doing: Doing | null; // null: that is not known yet
}

let open: Live | null = null;
let left: Live | null = null; // the one before, which the page may go on with

/** Follow the stream that the page names in `data-live`, if it names one; again when that changes. */
export function startLive(): void {
  document.addEventListener("visibilitychange", look);
  document.body.addEventListener("htmx:afterSettle", look);
  onOtherLive(() => document.visibilityState === "hidden" && become(null));
  look();
}

function look(): void {
  const isNeeded = document.visibilityState === "visible" || (open !== null && isHeeded());
  if (!isNeeded && open) tellDoing({});
  become(isNeeded ? (document.querySelector<HTMLElement>("[data-live]")?.dataset.live ?? null) : null);
}

function become(wanted: string | null): void {
  if (wanted === (open?.url ?? null)) return;
  open?.leave.abort();
  left = open ?? left;
  const last = left?.url === wanted ? left.last : null;
  open = wanted === null ? null : { url: wanted, leave: new AbortController(), last, doing: null };
  if (!open) return;
  tellLive();
  void follow(open);
}

/** It has given a sign of life: what it told last is so. */
function heard(stream: Live): void {
  if (stream.doing) tellDoing(stream.doing);
  look();
}

async function follow(stream: Live): Promise<void> {
  const { signal } = stream.leave;
  const backoff = new Backoff();
  let losing: ReturnType<typeof setTimeout> | undefined;
  let why = "";
  let isTold = false;
  const tell = () => {
    isTold = true;
    say(`Not live: ${why || "the connection is lost."} Trying again...`);
  };
  signal.addEventListener("abort", () => clearTimeout(losing));
  while (!signal.aborted) {
    const given = new AbortController();
    const place = new Place(() => given.abort());
    await place.taken(signal);
    const silence = new Silence();
    try {
      const headers: Record<string, string> = stream.last === null ? {} : { "Last-Event-ID": stream.last };
      const response = await ask(stream.url, { signal: AbortSignal.any([signal, silence.signal, given.signal]), headers });
      backoff.opened();
      clearTimeout(losing);
      losing = undefined;
      isTold = false;
      say("");
      document.dispatchEvent(new Event("greylag:live"));
      const openedAt = performance.now();
      stream.doing = null;
      const alive = () => {
        silence.heard();
        if (performance.now() - openedAt > TOLD_MS) stream.doing ??= {};
        heard(stream);
      };
      for await (const frame of frames(response, alive)) {
        if (signal.aborted) return;
        place.opened();
        if (frame.data.type === "gone") return leave();
        if (frame.id !== null) stream.last = frame.id;
        if (frame.data.type === "html") show(frame.data.content.html);
        if (frame.data.type === "order") order(frame.data.content.ids);
        if (frame.data.type === "doing") {
          stream.doing = frame.data.content.turns;
          heard(stream);
        }
        if (frame.data.type === "turns") {
          document.dispatchEvent(new CustomEvent("greylag:turns", { detail: frame.data.content.turns }));
        }
      }
    } catch (error) {
      if (signal.aborted) return;
      if (given.signal.aborted) continue;
      if (error instanceof Refused && error.status === 404) return leave();
      why = isUnreached(error) ? "" : (error as Refused).message;
    } finally {
      silence.over();
      place.leave();
    }
    losing ??= setTimeout(tell, LOST_MS);
    if (isTold) tell(); // for another reason, it may be
    await backoff.pause(signal);
  }
}

function say(words: string): void {
  const place = document.getElementById("live-lost");
  if (place && place.textContent !== words) place.textContent = words;
}

function show(html: string): void {
  const log = document.getElementById("log");
  const isAtEnd = log && log.scrollHeight - log.clientHeight - log.scrollTop < 2;
  htmx.swap(document.body, html, { swapStyle: "none" } as never);
  if (isAtEnd) log.scrollTop = log.scrollHeight;
  document.dispatchEvent(new Event("greylag:changed"));
}

/** Put elements of one list into this order; what stands between them stays behind its predecessor. */
function order(ids: string[]): void {
  const rows = ids.map((id) => document.getElementById(id)).filter((row) => row !== null);
  const list = rows[0]?.parentElement;
  if (!list) return;
  const listed = new Set<Element>(rows);
  const wanted = rows.flatMap((row) => {
    const group: Element[] = [row];
    for (let next = row.nextElementSibling; next && !listed.has(next); next = next.nextElementSibling) group.push(next);
    return group;
  });
  let next = list.firstElementChild;
  for (const one of wanted) {
    if (one === next) next = next.nextElementSibling;
    else list.insertBefore(one, next);
  }
}

function leave(): void {
  const place = document.querySelector<HTMLElement>("[data-gone]");
  if (place?.dataset.gone) location.assign(place.dataset.gone);
}
