// What a turn, or all since one, changed in the workspace: chosen, listed, and opened file by file.
import { useEffect, useState } from "preact/hooks";
import { Asleep } from "./asleep";
import { ChangeView } from "./change_view";
import { type ChangeLog, type Span, type Turn, onUndone, outcomeOf, reasonsOf, refusalOf } from "./changes";
import { LineCounts } from "./diff_view";
import { type Attempt, useAnswer, useAttempt, useAttemptedLook } from "./hooks";
import type { Now } from "./panes";
import { counted, visible } from "./text";
import { ago } from "./times";
import { UndoButton } from "./undo_button";
import type { Workspace } from "./workspace";

const PAGE = 200;
const BRIEF = 60;

interface PaneProps extends Now {
  api: string;
  log: ChangeLog;
  workspace: Workspace;
  mayWrite: boolean;
  session: string;
  reviewed: string;
}

export function ChangesPane({ status, ...props }: PaneProps) {
  const { said, attempt } = useAttempt(refusalOf);
  return (
    <div class="changes">
      {said && <p class="problem" role="alert">{visible(said)}</p>}
      {status === "active"
        ? <Review key={props.session} {...props} attempt={attempt} />
        : <Asleep api={props.api} status={status} words="What its turns changed shows once it is active." attempt={attempt} />}
    </div>
  );
}

interface ReviewProps extends Omit<PaneProps, "status"> {
  attempt: Attempt;
}

/** Lets the person choose what is compared: the newest turn that changed something, until they do. */
function Review({ log, workspace, mayWrite, session, reviewed, news, attempt }: ReviewProps) {
  const [turns, setTurns] = useState<Turn[] | null>(null);
  const [chosen, choose] = useState("");
  const [older, setOlder] = useState<Turn | null>(null); // than those that are listed
  useAttemptedLook(attempt, async () => (session ? log.turns(session) : []), setTurns, [log, session, news]);
  useEffect(() => { if (reviewed) choose(`turn ${reviewed}`); }, [reviewed, news]);
  const all = turns && older && !turns.some((one) => one.turn_id === older.turn_id) ? [...turns, older] : (turns ?? []);
  const ended = all.filter((one) => one.status !== "running" && one.changes?.files !== 0);
  const newest = ended.find((one) => one.changes) ?? ended[0];
  const shown = chosen || (newest ? `turn ${newest.turn_id}` : "");
  const [kind, id = ""] = shown.split(" ");
  const lacking = turns && id && !turns.some((one) => one.turn_id === id);
  useAttemptedLook(attempt, lacking ? () => log.turn(id) : null, setOlder, [turns, id]);
  if (turns === null) return null;
  const turn = kind === "turn" ? all.find((one) => one.turn_id === id) : undefined;
  return (
    <>
      <label class="visually-hidden" for="changes-of">What is compared</label>
      <select class="select changes-of" id="changes-of" value={shown} onChange={(event) => choose(event.currentTarget.value)}>
        {!shown && <option value="">Choose what to compare</option>}
        <optgroup label="What a turn changed">{ended.map((one) => <option key={one.turn_id} value={`turn ${one.turn_id}`}>{titleOf(one)}</option>)}</optgroup>
        <optgroup label="All since before">
          {ended.map((one) => <option key={one.turn_id} value={`since ${one.turn_id}`}>Since {titleOf(one)}</option>)}
          <option value="since ">Since the oldest state that is kept</option>
        </optgroup>
      </select>
      {!shown && <p class="files-empty">No turn of this session has changed a file yet.</p>}
      {shown && <Comparison key={shown} log={log} workspace={workspace} news={news}
        span={kind === "turn" ? { turn: id } : { since: id }} turn={mayWrite ? turn : undefined} />}
    </>
  );
}

function titleOf({ message, started_at }: Turn): string {
  const line = visible(message.trim().split("\n")[0] ?? "");
  return `${line.length > BRIEF ? `${line.slice(0, BRIEF)}\u2026` : line} \u00b7 ${ago(new Date(started_at))}`;
}

interface ComparisonProps {
  log: ChangeLog;
  workspace: Workspace;
  span: Span;
  turn: Turn | undefined; // that may be undone
  news: number;
}

function Comparison({ log, workspace, span, turn, news }: ComparisonProps) {
  // A turn's states stay as they are: only what is compared with the present is looked at anew.
  const found = useAnswer(() => log.list(span), "turn" in span ? [] : [news], refusalOf);
  const [said, say] = useState("");
  const [shown, setShown] = useState(PAGE);
  useEffect(() => onUndone((undo) => undo.turn === turn?.turn_id && say(outcomeOf(undo.undone))), [turn?.turn_id]);
  if (found === null) return <p class="files-empty" role="status">Comparing...</p>;
  if (typeof found === "string") return <p class="files-empty" role="alert">{visible(found)}</p>;
  const undone = turn?.changes?.undo_id;
  return (
    <>
      <div class="changes-head">
        <p>{counted(found.total, "file")} changed <LineCounts added={found.added_lines} deleted={found.deleted_lines} />{undone && <span class="quiet"> &middot; undone</span>}</p>
        {turn && found.total > 0 && <UndoButton log={log} turn={turn.turn_id} changes={turn.changes ?? { files: found.total, added_lines: 0, deleted_lines: 0 }} style="btn btn-small" />}
      </div>
      <p class="files-status" role="status">{visible(said)}</p>
      <ul class="changes-list">
        {found.changes.slice(0, shown).map((change) => (
          <ChangeView key={change.path} log={log} workspace={workspace} changes={found} change={change} open={found.total === 1} />
        ))}
      </ul>
      {found.changes.length > shown && <button type="button" class="btn btn-small" onClick={() => setShown(shown + PAGE)}>Show more</button>}
      {found.changes.length <= shown && found.total > shown && <p class="help">{found.total - found.changes.length} more are not listed.</p>}
      {found.left_out_total > 0 && <p class="help">Not kept, and so not compared: {reasonsOf(found.left_out, found.left_out_total)}.</p>}
    </>
  );
}
