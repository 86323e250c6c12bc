// Keeps the open page as things are: one stream per page, closed while nobody looks at it (a browser
// opens only six connections to a host, and every tab would hold one).
import htmx from "htmx.org/dist/htmx.esm.js";
import { Backoff, Refused, ask, frames } from "./sse";

interface Live {
  url: string;
  leave: AbortController;
  last: string | null;
}

let open: Live | null = null;

/** Follow the stream that the page names in `data-live`, if it names one; again when that changes. */
export function startLive(): void {
  const check = () => {
    const place = document.querySelector<HTMLElement>("[data-live]");
    const wanted = document.visibilityState === "visible" ? (place?.dataset.live ?? null) : null;
    if (wanted === (open?.url ?? null)) return;
    open?.leave.abort();
    open = wanted === null ? null : { url: wanted, leave: new AbortController(), last: null };
    if (open) void follow(open);
  };
  document.addEventListener("visibilitychange", check);
  document.body.addEventListener("htmx:afterSettle", check);
  check();
}

async function follow(stream: Live): Promise<void> {
  const { signal } = stream.leave;
  const backoff = new Backoff();
  while (!signal.aborted) {
    try {
      const headers: Record<string, string> = stream.last === null ? {} : { "Last-Event-ID": stream.last };
      const response = await ask(stream.url, { signal, headers });
      for await (const frame of frames(response)) {
        if (signal.aborted) return;
        backoff.reset();
        if (frame.data.type === "gone") return leave();
        if (frame.id !== null) stream.last = frame.id;
        if (frame.data.type === "html") show(frame.data.content.html);
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Refused && error.status === 404) return leave();
    }
    await backoff.pause(signal);
  }
}

function show(html: string): void {
  htmx.swap(document.body, html, { swapStyle: "none" } as never);
  const log = document.getElementById("log");
  if (log) log.scrollTop = log.scrollHeight;
  document.dispatchEvent(new Event("greylag:changed"));
}

function leave(): void {
  const place = document.querySelector<HTMLElement>("[data-gone]");
  if (place?.dataset.gone) location.assign(place.dataset.gone);
}
