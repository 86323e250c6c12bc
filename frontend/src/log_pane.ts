// The logs of a project: what Greylag did, which is live anyway, and the last of what its environment said.
import { isShown, showPane, whenShown } from "./panes";
import { ask, isUnreached, wordsOf } from "./sse";
import { visible } from "./text";

const LINES = 200;

/** Bring the pane of the logs to life, on a page that has one; it is shown from the project's menu. */
export function startLog(): void {
  const place = document.getElementById("environment-log");
  const api = document.querySelector<HTMLElement>("[data-api]")?.dataset.api;
  if (!place || !api) return;
  let isLost = false;
  const read = async () => {
    isLost = false;
    const text = place.querySelector("pre")!;
    place.hidden = false;
    try {
      const said = await (await ask(`${api}/logs?tail=${LINES}`)).text();
      text.textContent = said.split("\n").map(inWords).join("\n") || "Nothing yet.";
    } catch (error) {
      isLost = isUnreached(error);
      text.textContent = wordsOf(error);
    }
    text.scrollTop = text.scrollHeight;
  };
  whenShown("log", () => {
    const log = document.getElementById("log")!;
    log.scrollTop = log.scrollHeight;
    void read();
  });
  document.addEventListener("greylag:live", () => isLost && isShown("log") && void read());
  place.querySelector("button")!.addEventListener("click", () => void read());
  document.addEventListener("click", (event) => {
    const link = (event.target as Element).closest<HTMLElement>("[data-shows]");
    if (!link) return;
    event.preventDefault();
    showPane(link.dataset.shows!);
    document.getElementById(`tab-${link.dataset.shows}`)?.focus();
  });
}

/** Return a line for people: what a program logged as an object begins with its time and what happened. */
function inWords(line: string): string {
  try {
    const { timestamp = "", level = "", event, ...more } = JSON.parse(line) as Record<string, unknown>;
    if (typeof event !== "string") return visible(line);
    const rest = Object.entries(more).map(([name, value]) => `${name}=${typeof value === "string" ? value : JSON.stringify(value)}`);
    return visible([timestamp, level, event, ...rest].filter(Boolean).join(" "));
  } catch {
    return visible(line);
  }
}
