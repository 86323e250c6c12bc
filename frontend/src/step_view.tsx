// One tool call as a row that opens: what it did in words, how it stands, and what it printed.
import { Component } from "preact";
import { useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import { CopyButton } from "./code_block";
import { DiffRows } from "./diff_view";
import { ofTexts } from "./differences";
import { type StepKind, type StepWords, wordsOf } from "./step_words";
import { openFile } from "./files_pane";
import { leadOn, useDock } from "./question_dock";
import { TerminalText } from "./terminal_text";
import { counted, visible } from "./text";
import { lasted, serverNow, timeLeft } from "./times";
import { type Step, dataOf } from "./turn_model";
import type { Decision } from "./turn_stream";

const SHOWABLE = new Set(["image/png", "image/jpeg", "image/gif", "image/webp"]);

export type Decide = (confirmation: string, decision: Decision) => Promise<boolean>;

/** Steps that follow one another: three or more that are over fold into one row, which is open while one of them is read. */
export function StepGroup({ steps, over, decide }: { steps: Step[]; over: boolean; decide: Decide }) {
  const folds = steps.length >= 3 && over && !steps.some((step) => step.state === "asks" || step.state === "running");
  const place = useRef<HTMLDetailsElement>(null);
  // The rows stand in the same place before and after: made anew they would close.
  useLayoutEffect(() => { place.current!.open = !folds || place.current!.querySelector("[open], :focus") !== null; }, [folds]);
  const unlike = steps.filter((step) => step.state !== "done").length;
  return (
    <details class={folds ? "step step-group" : "step-loose"} ref={place}>
      <summary hidden={!folds}>
        <span class="step-title">{counted(steps.length, "step")}{unlike > 0 && `, ${unlike} not done`}</span>
        <span class="step-state">{lasted(timeOf(steps))}</span>
      </summary>
      <div class="step-rows">{steps.map((step) => <StepRow key={step.id} step={step} decide={decide} />)}</div>
    </details>
  );
}

/** Return for how many seconds any of `steps` ran, which came in this order: several may run at once. */
function timeOf(steps: Step[]): number {
  let sum = 0;
  let over = -Infinity;
  for (const { began, seconds } of steps) {
    const end = began + (seconds ?? 0);
    sum += Math.max(0, end - Math.max(began, over));
    over = Math.max(over, end);
  }
  return sum;
}

/** Passed over by the frames in which its step is the same. */
class StepRow extends Component<{ step: Step; decide: Decide }> {
  override shouldComponentUpdate(next: { step: Step }): boolean {
    return next.step !== this.props.step;
  }

  override render({ step, decide }: { step: Step; decide: Decide }) {
    const words = wordsOf(step);
    if (step.state === "asks") return <Question step={step} words={words} decide={decide} />;
    return <Row step={step} words={words} />;
  }
}

/** What a step holds is made when it is opened: hundreds of steps print more than a page can carry. */
function Row({ step, words }: { step: Step; words: StepWords }) {
  const [open, setOpen] = useState(false);
  return (
    <details class={`step step-${step.state}`} onToggle={(event) => setOpen(event.currentTarget.open)}>
      <summary><Icon kind={words.kind} /><Title words={words} /><State step={step} /></summary>
      {open && <Body step={step} words={words} />}
    </details>
  );
}

function Body({ step, words }: { step: Step; words: StepWords }) {
  return (
    <div class="step-body">
      <Wanted step={step} words={words} />
      {step.output && <pre class="terminal" tabIndex={0} dir="ltr" aria-label="Output"><TerminalText text={step.output} /></pre>}
      {words.change && step.state === "done" && (
        <button type="button" class="btn-text" onClick={() => openFile(words.object)}>Open the file</button>
      )}
      {step.files.map((file, index) => <ResultFile key={index} part={file} />)}
    </div>
  );
}

const ICONS: Record<StepKind, string> = {
  run: "m3 4.5 3.5 3.5-3.5 3.5M8.5 12H13",
  write: "m3 13 .7-2.900 7.100-7.100 2.200 2.200-7.100 7.100z",
  list: "M2.5 12.5v-9h4l1.5 2h5.5v7z",
  read: "M4 2.5h5l3 3v8H4zm5 0v3h3",
  plan: "m2.5 4.5 1.200 1.200 2-2.200m-3.200 7 1.200 1.200 2-2.200M8.5 5H13m-4.5 6H13",
  use: "m8 2.5 5 2.700v5.600l-5 2.700-5-2.700V5.200zM3 5.200 8 8l5-2.800M8 8v5.5",
};

function Icon({ kind }: { kind: StepKind }) {
  return <svg class="step-icon" viewBox="0 0 16 16" width="14" height="14" aria-hidden="true"><path d={ICONS[kind]} /></svg>;
}

function Title({ words }: { words: StepWords }) {
  return (
    <span class="step-title">
      {words.verb} {words.object && <code>{visible(words.object)}</code>}
      {words.more && <span class="step-more"> {words.more}</span>}
    </span>
  );
}

function State({ step }: { step: Step }) {
  if (step.state === "running") return <span class="step-state working"><Running since={step.began} /></span>;
  const words: Record<string, string> = {
    done: step.exitCode ? `exit ${step.exitCode}` : "",
    failed: step.exitCode === null ? "failed" : `exit ${step.exitCode}`,
    declined: "declined",
    stopped: "stopped",
  };
  return <span class="step-state">{[words[step.state], lasted(step.seconds ?? 0)].filter(Boolean).join(", ")}</span>;
}

function Running({ since }: { since: number }) {
  useEachSecond();
  return <>{lasted(serverNow() / 1000 - since) || "running"}</>;
}

function useEachSecond(): void {
  const [, setTicks] = useState(0);
  useEffect(() => {
    const timer = setInterval(() => setTicks((ticks) => ticks + 1), 1000);
    return () => clearInterval(timer);
  }, []);
}

/** What the call was given: a command, a change, else its arguments. */
function Wanted({ step, words }: { step: Step; words: StepWords }) {
  if (words.command !== null) {
    return (
      <div class="step-command">
        <pre class="code" tabIndex={0} dir="ltr"><code>{visible(words.command)}</code></pre>
        <CopyButton text={words.command} />
      </div>
    );
  }
  if (words.change) return <Change {...words.change} />;
  return <pre class="code" tabIndex={0} dir="ltr"><code>{visible(JSON.stringify(step.arguments, null, 2))}</code></pre>;
}

function Change({ before, after }: { before: string; after: string }) {
  const difference = useMemo(() => ofTexts(before, after), [before, after]);
  return <DiffRows difference={difference} label="Change" />;
}

function Question({ step, words, decide }: { step: Step; words: StepWords; decide: Decide }) {
  const [sent, setSent] = useState(false);
  const place = useRef<HTMLDivElement>(null);
  useDock(place, <Title words={words} />);
  const answer = async (decision: Decision) => {
    setSent(true);
    // Its buttons go, and keys that follow are meant for what comes next. A tap brings up no keyboard.
    const isAt = place.current?.contains(document.activeElement);
    if (isAt && !matchMedia("(pointer: coarse)").matches) leadOn(place.current);
    if (!(await decide(step.confirmation ?? "", decision))) setSent(false);
  };
  const onKeyDown = (event: KeyboardEvent) => {
    if (event.key === "Escape" && !sent) void answer("reject_once");
    if (event.repeat) event.preventDefault(); // a key that led here and is held down says nothing
  };
  return (
    <div class="ask" ref={place} role="group" aria-label="The agent asks" onKeyDown={onKeyDown}>
      <p class="ask-question"><Title words={words} />?</p>
      <Wanted step={step} words={words} />
      <div class="ask-actions">
        <button type="button" class="btn btn-primary" disabled={sent} onClick={() => answer("allow_once")}>Allow</button>
        {step.lasting && (
          <button type="button" class="btn" disabled={sent} title={`Each further call of ${visible(step.tool)} runs without asking`} onClick={() => answer("allow_session")}>
            Always in this session
          </button>
        )}
        <button type="button" class="btn" disabled={sent} onClick={() => answer("reject_once")}>Decline</button>
        {step.expires !== null && <TimeLeft expires={step.expires} />}
      </div>
    </div>
  );
}

/** How long an answer is waited for; a timer is not read aloud each second. */
function TimeLeft({ expires }: { expires: number }) {
  useEachSecond();
  return <span class="time-left" role="timer">Declined by itself {timeLeft(expires)}</span>;
}

/** A picture is shown, of kinds that hold nothing but a picture; everything else is for saving. */
function ResultFile({ part }: { part: Record<string, any> }) {
  const data = dataOf(part) ?? "";
  const kind = String(part.mimeType ?? part.resource?.mimeType ?? "application/octet-stream");
  if (SHOWABLE.has(kind)) {
    return <img class="result-image" alt={`A picture from the tool (${kind})`} src={`data:${kind};base64,${data}`} />;
  }
  const size = Math.floor((data.length * 3) / 4);
  return (
    <a download="result" href={`data:application/octet-stream;base64,${data}`}>
      Save the tool's result ({visible(kind)}, {size} bytes)
    </a>
  );
}
