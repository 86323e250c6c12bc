// The button that undoes a turn; its dialog is loaded when it is pressed first.
import type { ChangeLog, TurnChanges } from "./changes";
import { loaded } from "./notices";

/** Undoes a turn's changes, or the undo that holds of them. */
export function UndoButton({ log, turn, changes, style = "btn-text" }: { log: ChangeLog; turn: string; changes: TurnChanges; style?: string }) {
  const undo = changes.undo_id ?? null;
  const ask = async () => (await loaded(import("./undo_dialog")))?.askUndo(log, turn, undo);
  return (
    <button type="button" class={style} aria-haspopup="dialog" onClick={ask}>
      {undo === null ? "Undo" : "Undo the undo"}
    </button>
  );
}
