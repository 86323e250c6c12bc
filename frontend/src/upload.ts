// Files on their way into the workspace.
import { Refused, checkOwn, isUnreached, refusal, wordsOf } from "./sse";
import { visible } from "./text";
import type { Upload, Workspace } from "./workspace";

const MOST_NAMED = 5;

/** Send all, ask before what is there is replaced, and return in words what came of it. */
export async function uploadAll(workspace: Workspace, uploads: Upload[], say: (words: string) => void): Promise<string> {
  const failed = new Map<Upload, string>();
  const there: Upload[] = [];
  let done = 0;
  const putAll = (some: Upload[], replace: boolean) => {
    const put = async ({ path, file }: Upload) => {
      if (file) await send(workspace.contentUrl(path), file, replace, (share) => say(`Uploading ${done + 1} of ${uploads.length}, ${share} %`));
      else await workspace.makeFolder(path);
      done += 1;
    };
    return putEach(some, put, (upload, error) => {
      const refused = error instanceof Refused ? error : null;
      if (!replace && refused?.status === 412) there.push(upload);
      else failed.set(upload, refused && !isUnreached(refused) ? refused.message : wordsOf(error));
    });
  };
  await putAll(uploads, false);
  const replaced = there.length > 0 && confirm(`${listed(there)} ${there.length === 1 ? "is" : "are"} there already. Replace?`);
  if (replaced) await putAll(there, true);
  const kept = there.length && !replaced ? ` Kept as it was: ${listed(there)}.` : "";
  const lost = failed.size ? ` Not uploaded: ${listed([...failed.keys()])}. ${[...new Set(failed.values())].join(" ")}` : "";
  return `${done} of ${uploads.length} uploaded.${kept}${lost}`.trim();
}

/** Put one file after the other; `fail` is told why one is not there. Where nothing answers the next will not arrive, either:
 * it fails as that did, and is not tried.
 */
export async function putEach<T extends Pick<Upload, "file">>(all: T[], put: (one: T) => Promise<void>, fail: (one: T, why: unknown) => void): Promise<void> {
  let away: unknown = null;
  for (const one of all) {
    try {
      if (away) throw away;
      await put(one);
    } catch (error) {
      // What the browser cannot read fails as what nothing answers does.
      const isThere = away !== null || !one.file || (await one.file.stream().getReader().read().then(() => true, () => false));
      if (isThere && (!(error instanceof Refused) || error.status >= 500)) away = error;
      fail(one, isThere ? error : new Refused(0, { detail: "It cannot be read." }));
    }
  }
}

/** Return the paths of the first few. */
function listed(uploads: Upload[]): string {
  const rest = uploads.length - MOST_NAMED;
  return uploads.slice(0, MOST_NAMED).map(({ path }) => visible(path)).join(", ") + (rest > 0 ? ` and ${rest} more` : "");
}

/** Send a file, which must be new unless it is to `replace` one; unlike fetch this tells how much of it has gone. */
function send(url: string, file: Blob, replace: boolean, progress: (share: number) => void): Promise<void> {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("PUT", url);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    if (!replace) request.setRequestHeader("If-None-Match", "*");
    request.upload.onprogress = (event) => progress(event.total ? Math.floor((event.loaded / event.total) * 100) : 100);
    request.onload = () => {
      if (request.status >= 300) return reject(refusal(request));
      try {
        resolve(checkOwn(request.getResponseHeader("content-type")));
      } catch (error) {
        reject(error);
      }
    };
    request.onerror = () => reject(new Error("The upload broke off."));
    request.send(file);
  });
}
