// Keeps "3 minutes ago" and "in 3 min" true. The exact time stands in the title; machines read the attribute.
const STEPS: [string, number][] = [["year", 31536000], ["month", 2592000], ["day", 86400], ["hour", 3600], ["minute", 60]];
const REFRESH_MS = 20_000;

/** Return how long ago `moment` was, in words. */
export function ago(moment: Date): string {
  const [count, word] = since(moment);
  return count ? `${count} ${word}${count > 1 ? "s" : ""} ago` : "just now";
}

/** Return the same in a few characters. */
function agoShort(moment: Date): string {
  const [count, word] = since(moment);
  return count ? `${count}${word === "month" ? "mo" : word[0]}` : "now";
}

function since(moment: Date): [number, string] {
  const seconds = (serverNow() - moment.getTime()) / 1000;
  const [word, length] = STEPS.find(([, least]) => seconds >= least) ?? ["", 1];
  return word ? [Math.floor(seconds / length), word] : [0, word];
}

let ahead = 0; // of the server's clock, in milliseconds

/** Learn from an answer's `Date` how far this machine's clock is off. */
export function setClock(date: string | null): void {
  if (date) ahead = Date.now() - Date.parse(date) || 0;
}

/** Return what the server's clock shows, in milliseconds; this machine's may be wrong by days. */
export function serverNow(): number {
  return Date.now() - ahead;
}

/** Return how long something took, in words; nothing for less than a second. */
export function lasted(seconds: number): string {
  const whole = Math.floor(seconds);
  if (whole < 1) return "";
  return whole < 60 ? `${whole} s` : `${Math.floor(whole / 60)} min ${whole % 60} s`;
}

/** Return when a moment of the server's clock (Unix seconds) will be: "in 9 min". */
export function timeLeft(moment: number): string {
  const left = moment - serverNow() / 1000;
  if (left >= 3600) return `in ${Math.floor(left / 3600)} h`;
  return left >= 90 ? `in ${Math.floor(left / 60)} min` : left >= 1 ? `in ${Math.floor(left)} s` : "now";
}

/** Refresh all times of the page now and then. */
export function startTimes(): void {
  for (const place of document.querySelectorAll<HTMLElement>("[data-left]")) {
    // Counted from when the page came: the server has said how long there is.
    const end = serverNow() / 1000 + Number(place.dataset.left);
    setInterval(() => (place.textContent = timeLeft(end)), 1000);
  }
  setInterval(() => {
    for (const time of document.querySelectorAll<HTMLTimeElement>("time[datetime]")) {
      const words = ("short" in time.dataset ? agoShort : ago)(new Date(time.dateTime));
      if (time.textContent !== words) time.textContent = words;
    }
  }, REFRESH_MS);
}
