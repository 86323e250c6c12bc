// What a pane shows while the environment is not there to tell it anything.
import type { Attempt } from "./hooks";
import { LONG, post } from "./sse";

interface AsleepProps {
  api: string;
  status: string;
  words: string;
  attempt: Attempt;
}

const MOVING: Record<string, string> = { activating: "activated", deactivating: "deactivated", deleting: "deleted" };

/** Says that the project is not active, and activates it. */
export function Asleep({ api, status, words, attempt }: AsleepProps) {
  if (status in MOVING) return <p class="files-empty" role="status">The project is being {MOVING[status]}.</p>;
  return (
    <div class="files-empty">
      <p class="mb-3">The project is {status === "error" ? "not active" : "inactive"}. {words}</p>
      <button type="button" class="btn" onClick={() => attempt(() => post(`${api}/activate`, {}, LONG))}>Activate it</button>
    </div>
  );
}
