/** A job as it runs: its phases, queue and progress, and its log, of which the last lines are here. */
import { h, replace, visible } from "../kit/dom";
import { exporting, save } from "../kit/export";
import { Endings } from "../kit/host";
import { Rows } from "../kit/rows";
import { root, speaker } from "../kit/sheet";
import { bytes, compact, grouped, tableBehind } from "../kit/table";
import { trouble } from "../kit/trouble";
import { Lines, type Batch, type Line } from "./log_lines";

export interface JobState {
  job: string;
  title: string;
  /** Name, when it began (seconds since 1970), what was said. */
  phases: [string, number, string][];
  expected: string[];
  over: boolean;
  queue: [number, number | null] | null;
  /** Of what, done, of how much, in what. */
  progress: [string, number, number | null, string][];
  now: number;
  cancel: "" | "can" | "asked";
}

export interface Asks {
  cancel(): Promise<unknown>;
  all(): Promise<string>;
}

export interface RemoteLogView {
  setState(state: JobState): void;
  add(batch: Batch): void;
  clear(): void;
  setGone(isGone: boolean): void;
  end(): void;
}

const HEIGHT = 20;
export const ENDS = ["COMPLETED", "ERROR", "CANCELLED", "TIMEOUT", "LOST"];
const TAGS_SHOWN = 12;
const SURE_MS = 4000;
const SHEET = `
.insitu-remote_log .phases{display:flex;flex-wrap:wrap;gap:2px 0;list-style:none;margin:0 0 6px;padding:0}
.insitu-remote_log .phases li{margin:0;white-space:nowrap}
.insitu-remote_log .phases li+li::before{content:"→";color:var(--soft);padding:0 8px}
.insitu-remote_log .phases .to-come{color:var(--soft)}.insitu-remote_log .phases [aria-current]{font-weight:600}
.insitu-remote_log .phases [aria-current] .sign{color:var(--blue)}.insitu-remote_log .phases .failed .sign{color:var(--orange)}
.insitu-remote_log .gauge{display:flex;gap:10px;align-items:center;margin:0 0 6px}
.insitu-remote_log progress{width:180px}
.insitu-remote_log .scroll{height:auto;min-height:140px;max-height:320px}
.insitu-remote_log .row{display:flex;gap:8px;align-items:baseline;white-space:nowrap;padding:0 8px;cursor:default;border-left:3px solid transparent;line-height:20px}
.insitu-remote_log .row:hover{background:var(--tint)}.insitu-remote_log .row[aria-selected=true]{background:var(--tint);border-left-color:var(--blue)}
.insitu-remote_log .at{flex:none;width:9ch;text-align:right}.insitu-remote_log .sign{flex:none;align-self:center;width:12px;text-align:center}
.insitu-remote_log .said{overflow:hidden;text-overflow:ellipsis;flex:1;min-width:0}
.insitu-remote_log .warning .sign,.insitu-remote_log .error .sign{color:var(--orange)}
.insitu-remote_log .error .said,.insitu-remote_log .status .said{font-weight:600}.insitu-remote_log .debug .said,.insitu-remote_log .gap{color:var(--soft)}
.insitu-remote_log .gap{font-style:italic}.insitu-remote_log .tags{flex:none;font-size:11.5px;line-height:1}
.insitu-remote_log mark{background:#d9822b55;color:inherit}
.insitu-remote_log .detail{margin:6px 0 0;white-space:pre-wrap;overflow-wrap:anywhere;max-height:9rem;overflow:auto;background:var(--tint);border-radius:4px;padding:4px 10px}
.insitu-remote_log .scroll>div:empty::after{content:"No lines to show";color:var(--soft);padding:4px 10px;display:block}
.insitu-remote_log .bar{gap:6px 8px}
.insitu-remote_log select{max-width:11rem;padding:2px 4px}
.insitu-remote_log .behind{margin-top:6px}
`;
const SIGNS: Record<string, [string, string]> = { warning: ["▲", "warning"], error: ["✕", "error"], debug: ["·", "debug"] };

export function remoteLog(el: HTMLElement, asks: Asks): RemoteLogView {
  const endings = new Endings();
  const view = root(el, "remote_log", SHEET);
  const say = speaker(view);
  const lines = new Lines();
  let state: JobState = { job: "", title: "", phases: [], expected: [], over: false, queue: null, progress: [], now: 0, cancel: "" };
  let isFollowing = true;
  let selected = -1;
  let unseen = 0;
  let drawing = 0;

  const title = h("b");
  const about = h("span", { class: "soft mono" });
  const cancel = h("button", { type: "button", class: "hidden", click: () => askCancel() });
  const phases = h("ol", { class: "phases", "aria-label": "Phases" });
  const progress = h("div");
  const wrong = h("div");
  const search = h("input", { type: "search", placeholder: "Search the log", "aria-label": "Search the lines of the log" });
  const level = h("select", { "aria-label": "Least level shown" }, h("option", { value: "" }, "All levels"), h("option", { value: "warning" }, "Warnings, errors"), h("option", { value: "error" }, "Errors"));
  const tags = h("span", { role: "group", "aria-label": "Tags" });
  const follow = h("button", { type: "button", "aria-pressed": "true", title: "Keep the last line in sight (End)", click: () => setFollowing(!isFollowing) }, "Follow");
  const count = h("span", { class: "soft" });
  const copy = h("button", { type: "button", title: "Copy the lines that are listed", click: () => void navigator.clipboard?.writeText(lines.shown.map((line) => line.text).join("\n")) }, "Copy");
  const keep = h("button", { type: "button", title: "Save every line that Python keeps", click: () => saveAll() }, "Save");
  const rows = new Rows(HEIGHT, draw, endings, { role: "listbox", tabindex: "0", "aria-label": "Lines of the log" });
  const detail = h("div", { class: "detail mono hidden", "aria-live": "polite" });
  const table = tableBehind("Phases", ["phase", "began", "seconds", "said"], () => state.phases.map(([name, at, said], n) => [name, clock(at), took(n), said]));
  view.append(
    h("div", { class: "bar" }, title, about, h("span", { class: "grow" }), cancel),
    phases,
    progress,
    wrong,
    h("div", { class: "bar" }, search, level, follow, copy, keep, exporting({ name: "log", rows: () => [["time", "tags", "line"], ...lines.shown.map((line) => [clock(line.time), line.tags.join(" "), line.text])] }), h("span", { class: "grow" }), count),
    h("div", { class: "bar" }, tags),
    rows.element,
    detail,
    table,
  );

  // The state of the job ------------------------------------------------------------------------

  const now = (): number => Math.max(Date.now() / 1000, state.now);
  const took = (index: number): number => {
    const [name, began] = state.phases[index] as [string, number, string];
    const end = state.phases[index + 1]?.[1] ?? (ENDS.includes(name) ? began : now());
    return Math.round(Math.max(end - began, 0) * 1000) / 1000;
  };

  function drawPhases(): void {
    const last = state.phases.length - 1;
    const seen = state.phases.map(([name, at, said], index) => {
      const isLast = index === last;
      const isFailed = ENDS.indexOf(name) > 0;
      const place = isLast && name === "QUEUED" && state.queue ? ` (${compact(state.queue[0])}${state.queue[1] ? ` of ${compact(state.queue[1])}` : ""})` : "";
      const sign = isFailed ? "✕ " : isLast && !state.over ? "◉ " : "● ";
      const long = ENDS.includes(name) ? "" : ` ${duration(took(index))}`;
      return h("li", { "aria-current": isLast && "step", class: isFailed && "failed", title: `${clock(at)} ${said}` }, h("span", { class: "sign", "aria-hidden": "true" }, sign), name, h("span", { class: "soft" }, place, long));
    });
    const reached = Math.max(-1, ...state.phases.map(([name]) => state.expected.indexOf(name)));
    const later = state.over ? [] : state.expected.slice(reached + 1);
    replace(phases, ...seen, ...later.map((name) => h("li", { class: "to-come" }, h("span", { class: "sign", "aria-hidden": "true" }, "○ "), name)));
  }

  function drawProgress(): void {
    replace(
      progress,
      ...state.progress.map(([text, done, of, unit]) => {
        const amount = (value: number): string => (unit === "bytes" ? bytes(value) : grouped(Math.round(value * 1000) / 1000));
        const words = `${visible(text) || "Progress"}: ${amount(done)}${of === null ? "" : ` of ${amount(of)}`}${unit && unit !== "bytes" ? ` ${unit}` : ""}${of ? ` (${Math.floor((100 * done) / of)} %)` : ""}`;
        return h("div", { class: "gauge" }, h("progress", of ? { value: Math.min(done, of), max: of, "aria-label": words } : { "aria-label": words }), h("span", {}, words));
      }),
    );
  }

  let sureUntil = 0;
  function drawCancel(): void {
    const isSure = Date.now() < sureUntil;
    cancel.classList.toggle("hidden", !state.cancel);
    cancel.disabled = state.cancel === "asked";
    cancel.textContent = state.cancel === "asked" ? "Cancelling…" : isSure ? "Really cancel?" : "Cancel";
  }

  function askCancel(): void {
    if (Date.now() > sureUntil) {
      sureUntil = Date.now() + SURE_MS;
      const later = setTimeout(drawCancel, SURE_MS + 10);
      endings.add(() => clearTimeout(later));
    } else {
      sureUntil = 0;
      asks.cancel().then(() => replace(wrong), (error: unknown) => replace(wrong, trouble(error)));
    }
    drawCancel();
  }

  function saveAll(): void {
    asks.all().then(
      (text) => save(new Blob([text], { type: "text/plain" }), `${state.job || "log"}.log`),
      (error: unknown) => replace(wrong, trouble(error)),
    );
  }

  const tick = setInterval(() => state.phases.length && !state.over && drawPhases(), 1000);
  endings.add(() => clearInterval(tick));

  // The lines -----------------------------------------------------------------------------------

  function draw(index: number): HTMLElement {
    const line = lines.shown[index] as Line;
    const [sign, words] = SIGNS[line.level] ?? ["", ""];
    const began = state.phases[0]?.[1] ?? lines.began;
    const isSelected = line.number === selected;
    return h(
      "div",
      { class: `row ${line.gap ? "gap" : line.level}${line.tags.includes("status") ? " status" : ""}`, role: "option", id: `${key}-${line.number}`, "aria-selected": String(isSelected), click: () => choose(index), title: clock(line.time) },
      h("code", { class: "at soft" }, line.gap ? "" : offset(line.time - began)),
      h("span", { class: "sign", role: words && "img", "aria-label": words || null }, sign),
      h("code", { class: "said" }, ...found(readable(line.text))),
      line.tags.length > 0 && h("span", { class: "soft tags" }, visible(line.tags.filter((tag) => tag !== "status" && tag !== line.level).join(", "))),
    );
  }

  function found(text: string): (Node | string)[] {
    const words = lines.words;
    const at = words ? text.toLowerCase().indexOf(words) : -1;
    return at < 0 ? [text] : [text.slice(0, at), h("mark", {}, text.slice(at, at + words.length)), text.slice(at + words.length)];
  }

  function choose(index: number): void {
    const line = lines.shown[index];
    if (!line) return;
    selected = line.number;
    setFollowing(index === lines.shown.length - 1 && isFollowing);
    rows.element.setAttribute("aria-activedescendant", `${key}-${selected}`);
    detail.classList.remove("hidden");
    replace(detail, h("span", { class: "soft" }, line.gap ? "" : [clock(line.time), ...line.tags].join(" · "), "\n"), readable(line.text));
    rows.show(index);
  }

  function setFollowing(to: boolean): void {
    isFollowing = to;
    if (to) unseen = 0;
    redraw();
  }

  function redraw(): void {
    if (!drawing) drawing = requestAnimationFrame(redrawNow);
  }

  function redrawNow(): void {
    drawing = 0;
    rows.setCount(lines.shown.length, isFollowing);
    follow.setAttribute("aria-pressed", String(isFollowing));
    follow.textContent = isFollowing || !unseen ? "Follow" : `Follow (${compact(unseen)} new)`;
    const here = lines.shown.length;
    const parts = [`${compact(lines.heard)} lines`];
    if (lines.isFiltered) parts.push(`${compact(here)} listed`);
    if (lines.heard > lines.all.length + lines.dropped) parts.push(`the last ${compact(lines.all.length)} here`);
    if (lines.dropped) parts.push(`${compact(lines.dropped)} dropped`);
    count.textContent = parts.join(" · ");
    count.title = lines.dropped ? "They came too fast to be shown; Save has them" : "";
    drawTags();
  }

  let tagsDrawn = "";
  function drawTags(): void {
    const named = [...lines.tags].filter(([, times]) => times > 0).sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1));
    const offered = [...new Set([...lines.wanted, ...named.map(([tag]) => tag)])].filter((tag) => !["status", "info", "debug", "warning", "error"].includes(tag)).slice(0, TAGS_SHOWN);
    const now = offered.join("\n") + [...lines.wanted].join("\t");
    if (now === tagsDrawn) return;
    tagsDrawn = now;
    tags.parentElement?.classList.toggle("hidden", offered.length === 0);
    replace(tags, ...offered.flatMap((tag) => [h("button", { type: "button", "aria-pressed": String(lines.wanted.has(tag)), title: "List the lines with this tag", click: () => (lines.want(tag), setFollowing(isFollowing)) }, visible(tag)), " "]));
  }

  endings.listen(search, "input", () => (lines.seek(search.value), setFollowing(isFollowing)));
  endings.listen(level, "change", () => (lines.least(level.value), setFollowing(isFollowing)));
  let top = 0; // scrolling up stops following, scrolling down to the end goes on with it
  endings.listen(rows.element, "wheel", (event) => (event as WheelEvent).deltaY < 0 && isFollowing && setFollowing(false));
  endings.listen(rows.element, "scroll", () => {
    const { scrollTop, clientHeight, scrollHeight } = rows.element;
    const isAtEnd = scrollTop + clientHeight >= scrollHeight - HEIGHT * 1.5;
    if (isAtEnd !== isFollowing && isAtEnd === scrollTop > top && clientHeight) setFollowing(isAtEnd);
    top = scrollTop;
  });
  endings.listen(rows.element, "keydown", (event) => {
    const { key: pressed } = event as KeyboardEvent;
    const last = lines.shown.length - 1;
    const at = lines.shown.findIndex((line) => line.number === selected);
    const page = Math.max(1, Math.floor(rows.element.clientHeight / HEIGHT) - 1);
    const from = at < 0 ? last + 1 : at;
    const goals: Record<string, number> = { ArrowUp: from - 1, ArrowDown: from + 1, PageUp: from - page, PageDown: from + page, Home: 0, End: last };
    const goal = goals[pressed];
    if (goal === undefined || last < 0) return;
    event.preventDefault();
    if (pressed === "End") isFollowing = true;
    choose(Math.min(Math.max(goal, 0), last));
  });
  endings.add(() => cancelAnimationFrame(drawing));

  return {
    setState(given) {
      const before = state.phases[state.phases.length - 1]?.[0];
      const wasPlace = state.queue?.[0];
      state = given;
      title.textContent = visible(given.title || given.job || "No job yet");
      about.textContent = given.title && given.title !== given.job ? visible(given.job) : "";
      drawPhases();
      drawProgress();
      drawCancel();
      const phase = given.phases[given.phases.length - 1];
      if (phase && phase[0] !== before) say(`${given.title}: ${phase[0]}. ${phase[2]}`);
      else if (given.queue && given.queue[0] !== wasPlace) say(`Place ${given.queue[0]} in the queue`);
    },
    add(batch) {
      const heard = lines.heard;
      const gone = lines.add(batch);
      if (!isFollowing) {
        unseen += lines.heard - heard;
        if (gone < 0) rows.setCount(lines.shown.length, false);
        rows.shift(gone); // what is read stays where it is
      }
      redraw();
    },
    clear() {
      lines.clear();
      [selected, unseen, isFollowing] = [-1, 0, true];
      replace(wrong);
      detail.classList.add("hidden");
      redraw();
    },
    setGone(isGone) {
      replace(wrong, isGone && h("div", { class: "trouble", role: "alert" }, "The kernel does not answer: this is the log as far as it came.\nA restarted kernel shows a recorded job again: RemoteLog(Recording(file))."));
    },
    end: () => endings.run(),
  };
}

/** A time of day, with the date, as the reader's clock has it. */
function clock(seconds: number): string {
  const at = new Date(seconds * 1000);
  return Number.isNaN(at.getTime()) ? "" : at.toISOString();
}

/** A line as it was written: indented, but with control characters named. */
function readable(text: string): string {
  const indented = text.replaceAll("\t", "    ").trimEnd();
  const from = indented.search(/\S/);
  return from > 0 ? indented.slice(0, from) + visible(indented.slice(from)) : visible(indented);
}

function offset(seconds: number): string {
  return `${seconds < 0 ? "−" : "+"}${Math.abs(seconds).toFixed(3)}`;
}

export function duration(seconds: number): string {
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 120) return `${Math.floor(seconds)} s`;
  return seconds < 7200 ? `${Math.floor(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

const key = `log${Math.random().toString(36).slice(2, 8)}`;
