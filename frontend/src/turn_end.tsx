// The line below a turn that has ended: what it changed, and what one may do with it.
import { render } from "preact";
import { useEffect, useState } from "preact/hooks";
import { reviewTurn } from "./changes_pane";
import { type ChangeLog, type Changes, type TurnChanges, onUndone, outcomeOf, refusalOf } from "./changes";
import { LineCounts } from "./diff_view";
import { copy } from "./clipboard";
import { useAttempt } from "./hooks";
import { counted, visible } from "./text";
import { UndoButton } from "./undo_button";

/** What the lines of a conversation can do. */
export interface TurnEnds {
  log: ChangeLog;
  mayWrite: boolean;
  session(): string | null;
  /** Send a message once more, as another turn. */
  send(message: string): void;
  /** Put a message into the composer. */
  edit(message: string): void;
}

/** Show the line of the turn in `article`, whose data tell its id, how it ended, and what it changed. */
export function showTurnEnd(article: HTMLElement, ends: TurnEnds): void {
  const { turn, turnStatus, changes } = article.dataset;
  if (!turn || turnStatus === "running") return;
  let place = article.querySelector<HTMLElement>(".turn-line");
  if (!place) {
    place = document.createElement("div");
    place.className = "turn-line";
    article.append(place);
  }
  const known: TurnChanges | null = JSON.parse(changes ?? "null");
  const kept = "kept" in article.dataset;
  const answered = article.querySelector(".prose") !== null;
  render(<TurnEnd ends={ends} turn={turn} answered={answered} failed={turnStatus === "error"} known={known} ask={changes === "null" && !kept} kept={kept} />, place);
}

interface TurnEndProps {
  ends: TurnEnds;
  turn: string;
  answered: boolean;
  failed: boolean;
  known: TurnChanges | null;
  ask: boolean; // what it changed was not known at its end
  kept: boolean; // nobody can be asked: its environment sleeps
}

function TurnEnd({ ends, turn, answered, failed, known, ask, kept }: TurnEndProps) {
  const [changes, setChanges] = useState(known);
  const { said, say, attempt } = useAttempt(refusalOf);
  const { log, mayWrite } = ends;
  useEffect(() => {
    if (!ask) return;
    const set = ({ total: files, added_lines, deleted_lines }: Changes) => setChanges({ files, added_lines, deleted_lines });
    log.list({ turn }).then(set, () => {}); // what is not kept has no line
  }, [log, turn, ask]);
  useEffect(() => onUndone((news) => {
    if (news.turn !== turn) return;
    setChanges((now) => now && { ...now, ...news.changes });
    say(outcomeOf(news.undone));
  }), [turn]);
  // As it was written, not as it is shown.
  const copyAnswer = async () => {
    const copied = await copy(log.said("answer", turn, ends.session()));
    say(copied ? "Copied." : "The browser does not let this page copy. Select the answer, and copy it yourself.");
  };
  const message = () => log.said("message", turn, ends.session());
  if (kept) return changes !== null && changes.files > 0 ? <div class="turn-actions"><Summary changes={changes} /></div> : null;
  return (
    <>
      <div class="turn-actions" role="group" aria-label="This turn">
        {changes !== null && changes.files > 0 && (
          <>
            <Summary changes={changes} />
            <button type="button" class="btn-text" onClick={() => reviewTurn(turn)}>Review</button>
            {mayWrite && <UndoButton log={log} turn={turn} changes={changes} />}
          </>
        )}
        {answered && <button type="button" class="btn-text" onClick={() => attempt(copyAnswer)}>Copy</button>}
        {mayWrite && failed && <button type="button" class="btn-text" onClick={() => attempt(async () => ends.send(await message()))}>Retry</button>}
        {mayWrite && <button type="button" class="btn-text" onClick={() => attempt(async () => ends.edit(await message()))}>Edit and resend</button>}
      </div>
      <p class="turn-said" role="status">{visible(said)}</p>
    </>
  );
}

function Summary({ changes: { files, added_lines, deleted_lines, undo_id, undone_files = 0 } }: { changes: TurnChanges }) {
  return (
    <span>
      {counted(files, "file")} changed <LineCounts added={added_lines} deleted={deleted_lines} />
      {undo_id && (undone_files < files ? `, ${undone_files} undone` : ", undone")}
    </span>
  );
}
