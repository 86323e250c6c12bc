// The bar of the workspace's git repository, above its files: branch, how far ahead, fetch, commit, push.
import { useState } from "preact/hooks";
import { useAnswer } from "./hooks";
import { LineForm } from "./line_form";
import { LONG, ask, post, wordsOf } from "./sse";
import { visible } from "./text";

interface GitStatus {
  repository: boolean;
  branch: string | null;
  commit: string | null;
  upstream: string | null;
  ahead: number;
  behind: number;
  changed: number;
  untracked: number;
  conflicted: number;
}

type Wish = "commit" | "push" | null;

/** `news` changes when what is shown may not be true any more. Where there is no repository, nothing is shown. */
export function GitBar({ api, news }: { api: string; news: number }) {
  const [wish, setWish] = useState<Wish>(null);
  const [said, say] = useState("");
  const [busy, setBusy] = useState(false);
  const [again, setAgain] = useState(0);
  const status = useAnswer<GitStatus>(async () => (await ask(`${api}/git`, LONG)).json(), [api, news, again]);
  if (status === null || typeof status === "string" || !status.repository) return null;
  const act = async (verb: string, body: object, told: (done: Record<string, any>) => string) => {
    setWish(null);
    setBusy(true);
    say("");
    try {
      say(told(await (await post(`${api}/git/${verb}`, body, LONG)).json()));
    } catch (error) {
      say(wordsOf(error));
    }
    setBusy(false);
    setAgain((count) => count + 1);
  };
  const commit = (message: string) => act("commit", { message }, (made) => `Committed as ${made.commit.slice(0, 8)}.`);
  const push = (branch: string) => act("push", { branch }, (done) => `Pushed to ${visible(done.branch)}.`);
  const fetchAll = () => act("fetch", {}, ({ behind }) => (behind ? `Fetched: ${behind} behind.` : "Fetched."));
  const dirty = status.changed + status.untracked + status.conflicted;
  return (
    <section class="git-bar" aria-label="Git">
      <div class="git-line">
        <span class="git-branch" title={status.branch ? "The branch that is checked out" : "No branch is checked out"}>
          {visible(status.branch ?? status.commit?.slice(0, 8) ?? "no commit yet")}
        </span>
        <span class="git-facts">{facts(status, dirty)}</span>
        <span class="git-verbs">
          {status.upstream && <button type="button" class="btn btn-small" disabled={busy} onClick={fetchAll}>Fetch</button>}
          <button type="button" class="btn btn-small" disabled={busy || !dirty} onClick={() => setWish("commit")}>Commit</button>
          <button type="button" class="btn btn-small" disabled={busy || !status.commit} onClick={() => setWish("push")}>Push</button>
        </span>
      </div>
      {wish === "commit" && <LineForm label="What the commit says" verb="Commit" value="" onDone={commit} onLeave={() => setWish(null)} />}
      {wish === "push" && <LineForm label="Branch to push to" verb="Push" value={status.branch ?? ""} onDone={push} onLeave={() => setWish(null)} />}
      <p class="files-status" role="status">{busy ? "Working..." : visible(said)}</p>
    </section>
  );
}

function facts(status: GitStatus, dirty: number): string {
  const counts: [number, string][] = [[status.conflicted, "in conflict"], [status.ahead, "ahead"], [status.behind, "behind"]];
  const told = counts.filter(([count]) => count).map(([count, words]) => `${count} ${words}`);
  return [dirty ? `${dirty} changed` : "nothing changed", ...told].join(" · ");
}
