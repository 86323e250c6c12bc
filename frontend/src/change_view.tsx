// One changed file as a row that opens: its difference, and what else there is to tell of it.
import { useMemo, useState } from "preact/hooks";
import { type ChangeLog, type Changes, type FileChange, type FileDiff, refusalOf } from "./changes";
import { CopyButton } from "./code_block";
import { DiffRows, LineCounts } from "./diff_view";
import { ofDiff } from "./differences";
import { openFile } from "./files_pane";
import { useAnswer } from "./hooks";
import { visible } from "./text";
import type { Workspace } from "./workspace";

interface ChangeViewProps {
  log: ChangeLog;
  workspace: Workspace;
  changes: Changes;
  change: FileChange;
  open: boolean; // from the beginning
}

export function ChangeView({ change, open, ...props }: ChangeViewProps) {
  const [opened, setOpened] = useState(open);
  const { path, old_path, binary, added_lines, deleted_lines, shared } = change;
  return (
    <li>
      <details class="change" open={open} onToggle={(event) => event.currentTarget.open && setOpened(true)}>
        <summary>
          <span class={`change-kind change-${change.change}`} title={change.change}><span aria-hidden="true">{change.change[0]?.toUpperCase()}</span><span class="visually-hidden">{change.change}: </span></span>
          <span class="change-path"><bdi>{old_path !== null && `${visible(old_path)} \u2192 `}{visible(path)}{change.kind === "folder" && "/"}</bdi></span>
          {shared && <span class="change-shared">others, too</span>}
          <span class="change-facts">{binary ? "binary" : added_lines !== null && <LineCounts added={added_lines} deleted={deleted_lines ?? 0} />}</span>
        </summary>
        {opened && <Body change={change} {...props} />}
      </details>
    </li>
  );
}

function Body({ log, workspace, changes, change }: Omit<ChangeViewProps, "open">) {
  const { path, old_mode, mode, shared } = change;
  const found = useAnswer(() => log.diff(changes, path), [log, changes, path], refusalOf);
  const difference = typeof found === "string" ? null : found;
  const isThere = change.change !== "deleted" && change.kind === "file";
  return (
    <div class="change-body">
      <div class="change-tools">
        <CopyButton text={path} label="Copy path" />
        {isThere && <button type="button" class="btn-text" onClick={() => openFile(path)}>Open in Files</button>}
        {isThere && <a class="btn-text" href={workspace.contentUrl(path)} download={path.split("/").at(-1)}>Download file</a>}
        {difference?.diff && <SaveDiff diff={difference.diff} path={path} />}
      </div>
      {shared && <p class="help">While the turn ran, another session or a person may have changed this, too.</p>}
      {old_mode !== null && mode !== null && old_mode !== mode && <p class="help">Its permissions changed from {old_mode} to {mode}.</p>}
      {found === null && <p class="help" role="status">Comparing...</p>}
      {typeof found === "string" && <p class="help" role="alert">{visible(found)}</p>}
      {difference && <Difference {...difference} />}
    </div>
  );
}

function Difference({ change, diff, whole }: FileDiff) {
  const difference = useMemo(() => ofDiff(diff), [diff]);
  if (!diff) return <p class="help">{emptyWords(change, whole)}</p>;
  return (
    <>
      <DiffRows difference={difference} label={`Difference in ${visible(change.path)}`} />
      {difference.cut && whole && <p class="help">It is shown in part. Save the diff to see all of it.</p>}
      {!whole && <p class="help">It is shown in part: it is too long to be compared whole.</p>}
    </>
  );
}

function emptyWords({ binary, kind }: FileChange, whole: boolean): string {
  if (binary) return "It is not text.";
  if (kind !== "file") return `It is a ${kind}.`;
  return whole ? "Its lines are the same." : "It is too large to be compared.";
}

function SaveDiff({ diff, path }: { diff: string; path: string }) {
  const save = () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([diff], { type: "text/x-diff" }));
    link.download = `${path.split("/").at(-1)}.diff`;
    link.click();
    URL.revokeObjectURL(link.href);
  };
  return <button type="button" class="btn-text" onClick={save}>Save diff</button>;
}
