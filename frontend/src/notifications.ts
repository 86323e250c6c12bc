// Turns notifications on in this browser, on the account page: asked for by a click, never before.
import { post, wordsOf } from "./sse";

export function startNotifications(): void {
  const place = document.getElementById("notify-here");
  if (!place) return;
  place.hidden = false;
  const button = place.querySelector("button")!;
  const say = (words: string) => { place.querySelector("p")!.textContent = words; };
  if (!("serviceWorker" in navigator && "PushManager" in window)) {
    button.hidden = true;
    say(isSecureContext ? "This browser cannot: on an iPhone, add this page to the home screen first." : "Browsers take notifications over https only.");
    return;
  }
  void showWhetherOn(place);
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      if ((await Notification.requestPermission()) !== "granted") {
        say("This browser does not let Greylag notify you: allow it in the settings of this page.");
        return;
      }
      const { endpoint, keys } = (await subscribe(place.dataset)).toJSON();
      await post(`${place.dataset.api}/browsers`, { name: nameOf(navigator.userAgent), endpoint, p256dh: keys?.p256dh, auth: keys?.auth });
      location.reload();
    } catch (error) {
      say(error instanceof DOMException ? `This browser's push service fails: ${error.message}` : wordsOf(error));
    } finally {
      button.disabled = false;
    }
  });
}

async function subscribe({ worker, scope, key }: DOMStringMap): Promise<PushSubscription> {
  await navigator.serviceWorker.register(worker!, { scope: scope! });
  const { pushManager } = await navigator.serviceWorker.ready;
  const options = { userVisibleOnly: true, applicationServerKey: key! };
  try {
    return await pushManager.subscribe(options);
  } catch (error) {
    // It has let another key in: that of this Greylag before its store was replaced.
    const old = await pushManager.getSubscription();
    if (!old) throw error;
    await old.unsubscribe();
    return pushManager.subscribe(options);
  }
}

/** Say so where this browser is one of those that are told; the server knows it by the same id. */
async function showWhetherOn(place: HTMLElement): Promise<void> {
  const registration = await navigator.serviceWorker.getRegistration(place.dataset.scope!);
  const endpoint = (await registration?.pushManager.getSubscription())?.endpoint;
  if (!endpoint || Notification.permission !== "granted") return;
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", new TextEncoder().encode(endpoint)));
  const id = [...digest.slice(0, 8)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  const row = document.querySelector(`[data-target="${id}"] .font-semibold`);
  if (!row) return;
  row.insertAdjacentHTML("beforeend", ' <span class="badge badge-active">This one</span>');
  place.hidden = true;
}

function nameOf(agent: string): string {
  const first = (names: [RegExp, string][], other: string) => names.find(([form]) => form.test(agent))?.[1] ?? other;
  const browser = first([[/Edg/, "Edge"], [/Firefox|FxiOS/, "Firefox"], [/Chrome|CriOS/, "Chrome"], [/Safari/, "Safari"]], "Browser");
  const system = first([[/Android/, "Android"], [/iPhone|iPad/, "iOS"], [/Mac OS/, "macOS"], [/Windows/, "Windows"], [/Linux|CrOS/, "Linux"]], "a device");
  return `${browser} on ${system}`;
}
