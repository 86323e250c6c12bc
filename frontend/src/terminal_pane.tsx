// The pane of terminals: those of the environment, one of them shown, and what stands in their way.
import { render } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { Asleep } from "./asleep";
import { type Attempt, changing, useAttempt, useAttemptedLook } from "./hooks";
import { loaded } from "./notices";
import { startPane } from "./panes";
import { Refused, ask, post, wordsOf } from "./sse";
import type { Screen } from "./terminal_screen";
import { visible } from "./text";

interface Shell {
  terminal_id: string;
  ended: boolean;
}

/** Bring the pane to life, on a page that has one. */
export function startTerminals(): void {
  startPane("terminal", (place, { api }) => ({ status }) => render(<TerminalPane api={api} status={status} />, place), { always: true });
}

function TerminalPane({ api, status }: { api: string; status: string }) {
  const { said, attempt } = useAttempt(wordsFor);
  return (
    <div class="terminals">
      {said && <p class="terminal-said" role="alert">{visible(said)}</p>}
      {status === "active" ? <Shells list={`${api}/terminals`} failed={said !== ""} attempt={attempt} />
        : <Asleep api={api} status={status} words="Its terminals open once it is active." attempt={attempt} />}
    </div>
  );
}

function wordsFor(failure: unknown): string {
  // What is switched off is told in one sentence; its hint is for another person.
  return failure instanceof Refused && failure.problem.code === "terminal_off" ? failure.message : wordsOf(failure);
}

function Shells({ list, failed, attempt }: { list: string; failed: boolean; attempt: Attempt }) {
  const [shells, setShells] = useState<Shell[] | null>(null);
  const [chosen, choose] = useState<string | null>(null);
  const [tries, setTries] = useState(0);
  const look = async (): Promise<Shell[]> => (await (await ask(list)).json()).terminals;
  const load = async () => setShells(await look());
  useAttemptedLook(attempt, look, setShells, [list, tries]);
  const again = <button type="button" class="btn btn-small" onClick={() => setTries(tries + 1)}>Try again</button>;
  if (shells === null) return failed ? <p class="files-empty">{again}</p> : null;
  const shown = shells.find((one) => one.terminal_id === chosen) ?? shells.at(-1);
  const start = () => attempt(async () => {
    const made = await changing(post(list, { rows: 24, columns: 80 }), load);
    choose((await made.json()).terminal_id);
  });
  const end = (id: string) => attempt(() => changing(ask(`${list}/${encodeURIComponent(id)}`, { method: "DELETE" }), load));
  return (
    <>
      <div class="files-tools" role="group" aria-label="Terminals">
        {shells.map((one, index) => (
          <button key={one.terminal_id} type="button" class="btn btn-small" aria-pressed={one === shown} onClick={() => choose(one.terminal_id)}>Terminal {index + 1}</button>
        ))}
        <button type="button" class={shown ? "btn btn-small btn-quiet" : "btn btn-small"} onClick={start}>New terminal</button>
        {shown && <button type="button" class="btn btn-small btn-quiet ml-auto" onClick={() => end(shown.terminal_id)}>End terminal</button>}
      </div>
      {shown ? <View key={shown.terminal_id} list={list} id={shown.terminal_id} ended={shown.ended} /> : <p class="files-empty">No terminal is open.</p>}
      {shown && <p class="terminal-hint"><kbd>Tab</kbd> goes to the shell. <kbd>Alt</kbd>+<kbd>0</kbd> leaves it for the message.</p>}
    </>
  );
}

function View({ list, id, ended }: { list: string; id: string; ended: boolean }) {
  const place = useRef<HTMLDivElement>(null);
  const [said, say] = useState("Loading...");
  useEffect(() => {
    let current = true;
    let screen: Screen | null = null;
    void loaded(import("./terminal_screen"), say).then((module) => {
      if (!module || !current || !place.current) return;
      screen = new module.Screen(place.current, list, id, ended, say);
      screen.focus();
    });
    return () => {
      current = false;
      screen?.dispose();
    };
  }, [list, id]);
  return (
    <>
      <p class="terminal-said" role="status">{visible(said)}</p>
      <div class="terminal-screen" ref={place} />
    </>
  );
}
