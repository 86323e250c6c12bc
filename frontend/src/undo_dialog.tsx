// The dialog before an undo: what is brought back, and what of others' work stays as it is.
import { render } from "preact";
import { useEffect, useState } from "preact/hooks";
import { type ChangeLog, type Changes, FORGOTTEN, type FileChange, type Undone, reasonsOf, refusalOf, tellUndone } from "./changes";
import { counted, visible } from "./text";

const MOST_NAMED = 100;

/** Ask whether a turn's changes (or the `undo` that holds of them) shall be undone, do it, and tell the page. */
export function askUndo(log: ChangeLog, turn: string, undo: string | null): void {
  const dialog = document.createElement("dialog");
  dialog.className = "dialog";
  dialog.setAttribute("aria-labelledby", "undo-title");
  document.body.append(dialog);
  dialog.addEventListener("close", () => {
    render(null, dialog);
    dialog.remove();
  });
  const done = (undone: Undone | null) => {
    dialog.close();
    if (!undone) return;
    tellUndone(turn, undone, undo !== null);
    if (undone.forgotten_turns) markForgotten(turn);
  };
  render(<UndoDialog log={log} span={undo ?? turn} again={undo !== null} onDone={done} />, dialog);
  dialog.showModal();
}

/** Say in the conversation, as the server does, that the agent has forgotten a turn and those after it. */
function markForgotten(turn: string): void {
  let at: Element | null = document.querySelector(`.turn[data-turn="${turn}"]`);
  for (; at; at = at.nextElementSibling) {
    if (!at.matches("[data-turn]:not([data-forgotten])")) continue;
    at.setAttribute("data-forgotten", "");
    at.querySelector(".turn-end")?.append(" ", FORGOTTEN);
  }
}

function Choice({ words, checked, onChange }: { words: string; checked: boolean; onChange: (checked: boolean) => void }) {
  return <label class="undo-override"><input type="checkbox" checked={checked} onChange={(event) => onChange(event.currentTarget.checked)} /> {words}</label>;
}

interface Plan {
  changes: Changes;
  after: Set<string>; // what changed since
}

interface UndoDialogProps {
  log: ChangeLog;
  span: string;
  again: boolean;
  onDone: (undone: Undone | null) => void;
}

function UndoDialog({ log, span, again, onDone }: UndoDialogProps) {
  const [plan, setPlan] = useState<Plan | null>(null);
  const [error, setError] = useState("");
  const [override, setOverride] = useState(false);
  const [forget, setForget] = useState(false);
  const [busy, setBusy] = useState(false);
  useEffect(() => {
    const look = async () => {
      const changes = await log.list({ turn: span });
      setPlan({ changes, after: await log.changedAfter(changes) });
    };
    look().catch((failure) => setError(refusalOf(failure)));
  }, [log, span]);
  const kept = plan?.changes.changes.filter((change) => keptAs(change, plan.after)) ?? [];
  const undone = plan?.changes.changes.filter((change) => override || !kept.includes(change)) ?? [];
  const undo = async () => {
    setBusy(true);
    setError("");
    try {
      onDone(await log.undo(span, override, forget));
    } catch (failure) {
      setError(refusalOf(failure));
      setBusy(false);
    }
  };
  return (
    <div class="form">
      <h2 class="dialog-title" id="undo-title">{again ? "Undo the undo?" : "Undo what this turn changed?"}</h2>
      {!plan && !error && <p class="quiet" role="status">Looking at what it changed...</p>}
      {plan && <What undone={undone} total={plan.changes.total} />}
      {plan && kept.length > 0 && (
        <div>
          <p>Others changed {kept.length} of its files, too. {override ? "Also undone" : "Kept as they are"}: {reasonsOf(kept.map((change) => ({ path: change.path, reason: keptAs(change, plan.after) })), kept.length)}.</p>
          <Choice words="Undo what others changed, too" checked={override} onChange={setOverride} />
        </div>
      )}
      {plan && plan.changes.left_out_total > 0 && <p class="help">What is not kept stays: {reasonsOf(plan.changes.left_out, plan.changes.left_out_total, 3)}.</p>}
      {plan && !again && <p class="help">What was done in a terminal while the turn ran counts as the turn's, whoever did it.</p>}
      {plan && !again && (
        <div>
          <Choice words="Make the agent forget this turn and those after it" checked={forget} onChange={setForget} />
          {forget && <p class="help">They stay in the conversation here, marked. Undoing the undo brings the files back, not what the agent knew.</p>}
        </div>
      )}
      {error && <p class="problem" role="alert">{visible(error)}</p>}
      <div class="form-actions">
        <button type="button" class="btn" autoFocus onClick={() => onDone(null)}>Cancel</button>
        <button type="button" class="btn btn-danger" disabled={busy || (undone.length === 0 && !forget)} onClick={undo}>{busy ? "Undoing..." : "Undo"}</button>
      </div>
    </div>
  );
}

function What({ undone, total }: { undone: FileChange[]; total: number }) {
  if (undone.length === 0) return <p>{total ? "Nothing of it can be undone without taking away others' work." : "It changed no file."}</p>;
  return (
    <div>
      <p>{counted(undone.length, "file")} {undone.length === 1 ? "is" : "are"} brought back. That can itself be undone.</p>
      <ul class="undo-files" tabIndex={0} aria-label="What is undone">
        {undone.slice(0, MOST_NAMED).map((change) => <li key={change.path}><bdi>{visible(change.path)}</bdi> <span class="quiet">{fateOf(change)}</span></li>)}
        {undone.length > MOST_NAMED && <li class="quiet">and {undone.length - MOST_NAMED} more</li>}
      </ul>
    </div>
  );
}

function fateOf({ change, old_path }: FileChange): string {
  switch (change) {
    case "added": return "is removed";
    case "deleted": return "comes back";
    case "renamed": return `is ${visible(old_path ?? "")} again`;
    case "modified": return "is as it was";
  }
}

/** Return why an undo keeps a change as it is, nothing when it does not. */
function keptAs({ path, old_path, shared }: FileChange, after: Set<string>): string {
  if (after.has(path) || (old_path !== null && after.has(old_path))) return "changed_since";
  return shared ? "changed_by_others" : "";
}
