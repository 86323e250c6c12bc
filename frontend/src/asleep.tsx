// What a pane shows while the environment is not there to tell it anything.
import type { Attempt } from "./hooks";
import { post } from "./sse";

interface AsleepProps {
  api: string;
  status: string;
  words: string;
  attempt: Attempt;
}

/** Says that the project sleeps, and wakes it. */
export function Asleep({ api, status, words, attempt }: AsleepProps) {
  if (status !== "inactive" && status !== "error") return <p class="files-empty" role="status">The project is not ready yet.</p>;
  return (
    <div class="files-empty">
      <p class="mb-3">The project sleeps. {words}</p>
      <button type="button" class="btn" onClick={() => attempt(() => post(`${api}/activate`))}>Activate it</button>
    </div>
  );
}
