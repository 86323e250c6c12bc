// One turn in the page: the message, and below it what the agent says, thinks, does and asks.
import { paint, painted } from "./paint.js";
import { Plain, Prose } from "./prose.js";
import { element } from "./text.js";

const BRIEF = 120;
const SHOWABLE = new Set(["image/png", "image/jpeg", "image/gif", "image/webp"]);
const SHOWN = new Set([
  "message", "thinking", "tool_request", "tool_response", "tool_notification", "tool_confirmation",
  "status", "context_exceeded", "history_update", "error",
]);

export class TurnView {
  #answer;
  #end;
  #prose = null;
  #thought = null;
  #waking = null;
  #tools = new Map();
  #asks = new Map();
  #decide;

  /** `article` is a turn that the server rendered; `decide(id, decision)` answers a confirmation. */
  constructor(article, decide) {
    this.article = article;
    this.#answer = article.querySelector(".answer");
    this.#end = article.querySelector(".turn-end");
    this.#decide = decide;
  }

  static create(message, decide) {
    const article = element("article", "turn");
    const said = element("div", "said", message);
    said.dir = "auto";
    article.append(said, element("div", "answer"), element("p", "turn-end quiet"));
    return new TurnView(article, decide);
  }

  /** Take away what is shown of the answer, before its events are shown from the first on. */
  clear() {
    this.#answer.replaceChildren();
    this.#end.replaceChildren();
    this.#prose = this.#thought = this.#waking = null;
    this.#tools.clear();
    this.#asks.clear();
  }

  working(words) {
    this.#end.replaceChildren(words);
    this.#end.classList.toggle("working", words !== "");
  }

  /** Show what is done to wake the environment; a repeated request tells it again from the start. */
  waking(content) {
    if (!this.#waking) {
      this.#waking = element("div", "steps");
      this.#answer.prepend(this.#waking);
    }
    this.#waking.append(step(content.message));
  }

  forgetWaking() {
    this.#waking?.replaceChildren();
  }

  /** Show one event of the turn. Types that are not known are passed over. */
  apply(type, content) {
    if (type !== "message" && type !== "tool_notification") this.#endProse();
    if (type !== "thinking") this.#thought = null;
    if (SHOWN.has(type)) this[`_${type}`](content);
  }

  fail(problem) {
    this.#endProse();
    const box = element("div", "problem");
    box.append(element("p", "problem-message", problem.detail || "The request failed."));
    if (problem.hint) box.append(element("p", "problem-hint", problem.hint));
    if (problem.code) box.append(element("p", "problem-code", problem.code));
    this.#answer.append(box);
  }

  /** Resolves when all is shown; `words` say how the turn ended, when that is worth words. */
  async finish(words) {
    this.#endProse();
    for (const id of this.#asks.keys()) this.#settle(id, "The turn has ended.");
    await painted();
    this.working("");
    this.#end.replaceChildren(words);
  }

  _message(content) {
    if (content.role && content.role.toLowerCase() !== "assistant") return;
    if (!this.#prose) {
      const root = element("div", "prose");
      this.#answer.append(root);
      this.#prose = new Prose(root);
    }
    paint(this.#prose, String(content.content ?? ""));
  }

  _thinking(content) {
    if (!this.#thought) {
      const { body } = this.#fold([element("span", "", "Thinking")]);
      const words = element("p", "thought");
      body.append(words);
      this.#thought = new Plain(words);
    }
    paint(this.#thought, String(content.message ?? ""));
  }

  _tool_request(content) {
    this.#tool(content.id, content.tool_name, content.arguments);
  }

  _tool_response(content) {
    const tool = this.#tools.get(content.id) ?? this.#tool(content.id, "tool", {});
    const result = content.result ?? {};
    const text = "Err" in result ? result.Err : textOf(result);
    tool.state.textContent = content.is_error ? "failed" : "done";
    tool.body.append(element("p", "fold-label", content.is_error ? "Error" : "Result"));
    const files = Array.isArray(result.Ok) ? result.Ok.map(fileOf).filter(Boolean) : [];
    if (text !== "" || files.length === 0) {
      paint(this.#output(tool), typeof text === "string" ? text : JSON.stringify(text, null, 2));
    }
    tool.body.append(...files);
  }

  _tool_notification(content) {
    const tool = this.#tools.get(content.tool_call_id);
    const pieces = content.params?.chunks?.map((chunk) => chunk.output ?? "").join("");
    if (!tool || !pieces) return;
    if (!tool.live) {
      tool.body.append(element("p", "fold-label", "Output"));
      tool.live = this.#output(tool);
    }
    paint(tool.live, pieces);
  }

  _tool_confirmation(content) {
    const box = element("div", "ask");
    box.setAttribute("role", "group");
    box.setAttribute("aria-label", "The agent asks");
    const question = element("p");
    question.append("The agent wants to use ", element("strong", "", content.tool_name), ".");
    const details = element("div", "fold-text", JSON.stringify(content.arguments ?? {}, null, 2));
    const actions = element("div", "ask-actions");
    for (const [label, decision, style] of [["Allow", "allow_once", "btn-primary"], ["Decline", "reject_once", ""]]) {
      const button = element("button", `btn ${style}`, label);
      button.type = "button";
      button.addEventListener("click", () => this.#answerAsk(content.id, decision, actions));
      actions.append(button);
    }
    box.append(question, details, actions);
    this.#answer.append(box);
    this.#asks.set(content.id, { box, actions });
    this.working("Waiting for your answer");
  }

  _status(content) {
    if (content.confirmation_id && content.decision) {
      const allowed = content.decision === "allow_once";
      this.#settle(content.confirmation_id, allowed ? "You allowed it." : "It was declined.");
      this.working("Working");
    } else if (content.message) {
      this.#answer.append(step(content.message, content.hint));
    }
  }

  _context_exceeded(content) {
    this.#answer.append(step(content.message ?? "The session has grown too long for the model."));
  }

  _history_update() {
    this.#answer.append(step("The agent has shortened its memory of this session."));
  }

  _error(content) {
    const message = content.error || content.message;
    this.fail({ detail: String(message ?? ""), hint: content.hint, code: content.code });
  }

  async #answerAsk(id, decision, actions) {
    for (const button of actions.children) button.disabled = true;
    const accepted = await this.#decide(id, decision);
    if (!accepted) for (const button of actions.children) button.disabled = false;
  }

  #settle(id, words) {
    const ask = this.#asks.get(id);
    if (!ask) return;
    this.#asks.delete(id);
    ask.actions.replaceWith(element("p", "quiet", words));
  }

  #tool(id, name, args) {
    const brief = element("span", "tool-brief", briefly(args));
    const state = element("span", "quiet");
    const { body } = this.#fold([element("span", "tool-name", name), brief, state]);
    body.append(element("p", "fold-label", "Arguments"));
    body.append(element("div", "fold-text", JSON.stringify(args ?? {}, null, 2)));
    const tool = { body, state, live: null };
    this.#tools.set(id, tool);
    return tool;
  }

  #output(tool) {
    const root = element("div", "fold-text");
    root.tabIndex = 0;
    tool.body.append(root);
    return new Plain(root);
  }

  #fold(summary) {
    const details = element("details", "fold");
    const head = element("summary");
    head.append(...summary);
    const body = element("div");
    details.append(head, body);
    this.#answer.append(details);
    return { details, body };
  }

  #endProse() {
    const ended = this.#prose;
    this.#prose = null;
    // After its text, which may not stand in the page yet.
    if (ended) paint({ write: () => ended.end() }, "\n");
  }
}

function step(message, hint = "") {
  return element("p", "step", hint ? `${message} ${hint}` : message);
}

function textOf(result) {
  if (!Array.isArray(result.Ok)) return result.Ok ?? "";
  const texts = result.Ok.filter((part) => !dataOf(part)).map(partText);
  if ("data" in result) texts.push(JSON.stringify(result.data, null, 2));
  return texts.join("\n");
}

function partText(part) {
  return part?.text ?? part?.resource?.text ?? JSON.stringify(part, null, 2);
}

function dataOf(part) {
  const data = part?.data ?? part?.resource?.blob;
  return typeof data === "string" ? data : null;
}

// A picture is shown, of kinds that hold nothing but a picture; everything else is for saving.
function fileOf(part) {
  const data = dataOf(part);
  if (data === null) return null;
  const kind = part.mimeType ?? part.resource?.mimeType ?? "application/octet-stream";
  const url = `data:${SHOWABLE.has(kind) ? kind : "application/octet-stream"};base64,${data}`;
  if (SHOWABLE.has(kind)) {
    const image = element("img", "result-image");
    image.alt = `A picture from the tool (${kind})`;
    image.src = url;
    return image;
  }
  const link = element("a", "", `Save what the tool gave (${kind}, ${Math.floor((data.length * 3) / 4)} bytes)`);
  link.download = "result";
  link.href = url;
  return link;
}

function briefly(args) {
  const values = Object.values(args ?? {});
  const text = values.length === 1 && typeof values[0] === "string" ? values[0] : JSON.stringify(args ?? {});
  return text.length > BRIEF ? `${text.slice(0, BRIEF)}...` : text;
}
