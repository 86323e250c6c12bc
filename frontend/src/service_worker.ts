// Shows what this Greylag pushes, and leads to it. It answers nothing itself, and touches no request.

/** What the server encrypts for this browser. */
interface Told {
  title: string;
  body: string;
  project: string;
  session: string;
  turn: string;
  asks: boolean;
}

// The types of pages and of workers cannot be had together.
const worker = self as any;
const ANSWERS = [{ action: "allow_once", title: "Allow" }, { action: "reject_once", title: "Decline" }];

worker.addEventListener("install", () => worker.skipWaiting());
worker.addEventListener("push", (event: any) => event.waitUntil(show(event.data.json())));
worker.addEventListener("notificationclick", (event: any) => {
  event.notification.close();
  event.waitUntil(lead(event.notification.data, event.action));
});

async function windows(): Promise<any[]> {
  return worker.clients.matchAll({ type: "window", includeUncontrolled: true });
}

async function show(told: Told): Promise<void> {
  const tag = told.turn || "test";
  // Browsers want each push shown; who looks at the project already is not disturbed by it.
  const silent = told.turn !== "" && (await windows()).some((one) => one.focused && one.url.split(/[?#]/)[0] === told.project);
  const options = { body: told.body, tag, data: told, silent, renotify: !silent, requireInteraction: told.asks && !silent };
  await worker.registration.showNotification(told.title, told.asks ? { ...options, actions: ANSWERS } : options);
  if (silent) for (const one of await worker.registration.getNotifications({ tag })) one.close();
}

async function lead(told: Told, action: string): Promise<void> {
  const answer = `${told.project}/turns/${encodeURIComponent(told.turn)}/answer${action && `?choice=${action}`}`;
  const session = told.session && `?session=${encodeURIComponent(told.session)}`;
  const url = told.asks ? answer : told.project + session;
  const there = told.asks ? undefined : (await windows()).find((one) => one.url === url);
  await (there ? there.focus() : worker.clients.openWindow(url));
}

export {};
