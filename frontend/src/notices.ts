// What went wrong with what a person asked for: said once, and gone when it works again.
import { ANSWER_MS, UNANSWERED, isUnreached, isWholePage, refusal, wordsOf as said } from "./sse";

const MOST = 3;
const NOT_LOADED = "This cannot be loaded now. Try again when the server can be reached, or reload the page.";
const UNREACHABLE = "The server cannot be reached. Try again when it is back.";

/** Show errors of requests, and take them away after one that succeeds. */
export function startNotices(): void {
  const { body } = document;
  const notices = document.getElementById("notices")!;
  body.addEventListener("htmx:configRequest", (event) => {
    const { detail } = event as CustomEvent;
    detail.headers.Accept = "text/html"; // errors then come as pieces of a page, not as documents for programs
    detail.timeout ||= ANSWER_MS;
    detail.wentOut = navigator.onLine;
  });
  body.addEventListener("htmx:beforeOnLoad", (event) => {
    if ((event as CustomEvent).detail.xhr.status !== 401) return;
    // The sign-in has ended; the page itself leads to the sign-in page and back.
    event.preventDefault();
    location.reload();
  });
  body.addEventListener("htmx:beforeSwap", (event) => {
    const { detail } = event as CustomEvent;
    const { xhr } = detail;
    const isPiece = xhr.getResponseHeader("content-type")?.startsWith("text/html") && !isWholePage(xhr.responseText);
    if (!detail.shouldSwap || isPiece) return;
    detail.shouldSwap = false;
    detail.isError = true;
    // A sign-in that has ended answers with the sign-in page; all else is of what is on the way, as of a proxy whose
    // server is away.
    if (new URL(xhr.responseURL).pathname === body.dataset.signIn) return location.reload();
    const refused = refusal(xhr);
    const isOther = refused.status < 300 || isUnreached(refused);
    notify(isOther ? lost(event, refused.status === 504) : said(refused));
  });
  body.addEventListener("htmx:sendError", (event) => notify(lost(event, (event as CustomEvent).detail.requestConfig.wentOut)));
  body.addEventListener("htmx:timeout", (event) => notify(lost(event, true)));
  body.addEventListener("htmx:afterRequest", (event) => {
    const { successful, xhr } = (event as CustomEvent).detail;
    if (successful && xhr.status >= 200 && xhr.status < 400) notices.replaceChildren();
  });
  document.addEventListener("greylag:live", () => {
    for (const one of notices.children) if (wordsOf(one) === UNREACHABLE) one.remove();
  });
  new MutationObserver(() => tidy(notices)).observe(notices, { childList: true });
}

/** Return what to say of a request without an answer of the server's, which it may have had or not. */
function lost(event: Event, mayHaveCome: boolean): string {
  return mayHaveCome && (event as CustomEvent).detail.requestConfig.verb !== "get" ? UNANSWERED : UNREACHABLE;
}

function notify(words: string): void {
  const box = document.createElement("div");
  box.className = "notice";
  box.innerHTML = '<p class="problem-message"></p><button class="btn btn-quiet btn-icon" type="button" data-dismiss aria-label="Dismiss">&times;</button>';
  box.querySelector("p")!.textContent = words;
  document.getElementById("notices")!.append(box);
}

/** Return a part of the script that is loaded only now; `null`, once it is told, where it does not come: the server
 * may be away, or be of another version, which has other parts.
 */
export async function loaded<T>(part: Promise<T>, tell: (words: string) => void = notify): Promise<T | null> {
  return part.catch(() => {
    tell(NOT_LOADED);
    return null;
  });
}

function wordsOf(notice: Element): string {
  return notice.querySelector(".problem-message")?.textContent ?? "";
}

/** Of notices that say the same the newest stays, and of all the last few. */
function tidy(notices: HTMLElement): void {
  const all = [...notices.children];
  const newest = new Map(all.map((one) => [wordsOf(one), one]));
  const staying = [...newest.values()].slice(-MOST);
  for (const one of all) if (!staying.includes(one)) one.remove();
}
