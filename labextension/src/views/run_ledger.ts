/** What was run: a table to tick runs in, one opened, two compared, some taken away as a notebook. */
import { h, replace, svg, visible } from "../kit/dom";
import { exporting, save } from "../kit/export";
import { Endings } from "../kit/host";
import { Refused, latest, type Trouble } from "../kit/requests";
import { root, speaker } from "../kit/sheet";
import { compact, tableBehind } from "../kit/table";
import { trouble } from "../kit/trouble";

/** Number, time of day, model, prompt, edits, moved, likeliest token, seconds, what went wrong. */
export type Row = [number, string, string, string, number, number | null, string, number, string];

export interface About {
  code: string;
  prompt: string;
  edits: string[];
  seed: string;
  run_s: number;
  bare_s: number | null;
  at: string;
  failed: string;
  top: [string, number][];
  bare_top: [string, number][];
}

export interface Compared {
  /** " " for a line of both, "-" of the first, "+" of the second. */
  code: [string, string][];
  top: [string, number | null, number | null][];
  facts: [string, string, string][];
}

export interface Asks {
  about(number: number): Promise<About>;
  compare(first: number, second: number): Promise<Compared>;
  again(number: number, seeded: boolean): Promise<unknown>;
  export(numbers: number[]): Promise<string>;
  choose(numbers: number[]): void;
  /** One run is shown below the table, or two. */
  show(numbers: number[]): void;
}

export interface RunLedgerView {
  setRows(rows: Row[]): void;
  setChosen(numbers: number[]): void;
  setShown(numbers: number[]): void;
  setBusy(number: number): void;
  setTrouble(trouble: Trouble | null): void;
  end(): void;
}

const BLUE = "#3b78b8";
const ORANGE = "#d9822b";
const SHEET = `
.insitu-run_ledger .list{height:auto;max-height:300px}
.insitu-run_ledger .list table{width:100%}
.insitu-run_ledger .list thead th{position:sticky;top:0;background:var(--paper);z-index:1}
.insitu-run_ledger .list td,.insitu-run_ledger .list th{padding:2px 10px 2px 8px}
.insitu-run_ledger .list td.prompt{max-width:20rem;overflow:hidden;text-overflow:ellipsis}
.insitu-run_ledger .list tbody tr{cursor:default}.insitu-run_ledger .list tbody tr:hover{background:var(--tint)}
.insitu-run_ledger .list tbody tr[aria-selected=true]{background:var(--tint);box-shadow:inset 3px 0 var(--blue)}
.insitu-run_ledger input[type=checkbox]{min-height:0;vertical-align:middle}
.insitu-run_ledger pre{background:var(--tint);color:inherit;border-radius:4px;padding:6px 10px;margin:4px 0 8px;overflow:auto;max-height:280px;font:12px/1.5 var(--mono)}
.insitu-run_ledger pre div{white-space:pre}
.insitu-run_ledger pre .first{background:#3b78b833}.insitu-run_ledger pre .second{background:#d9822b33}
.insitu-run_ledger .sides{display:grid;grid-template-columns:minmax(0,3fr) minmax(0,2fr);gap:16px;margin-top:8px}
.insitu-run_ledger .failed{color:var(--bad);font-weight:600}
.insitu-run_ledger .one{color:var(--blue)}.insitu-run_ledger .other{color:var(--orange)}
.insitu-run_ledger label{display:inline-flex;gap:5px;align-items:center}
@media (max-width:700px){.insitu-run_ledger .sides{grid-template-columns:1fr}}
`;

export function runLedger(el: HTMLElement, asks: Asks): RunLedgerView {
  const endings = new Endings();
  const view = root(el, "run_ledger", SHEET);
  const say = speaker(view);
  let rows: Row[] = [];
  let ticked: number[] = [];
  let open: number | null = null;
  let below_: number[] = []; // the run below, or the two
  let busy = 0;

  const count = h("b");
  const compare = h("button", { type: "button", title: "Tick two runs", click: () => void compared(...([...ticked].sort((a, b) => a - b) as [number, number])) }, "Compare");
  const again = h("button", { type: "button", title: "Run the cell again, as it was written", click: () => rerun() }, "Run again");
  const seeded = h("input", { type: "checkbox" });
  const take = h("button", { type: "button", title: "The ticked runs as a notebook", click: () => void exported() }, "Save as notebook");
  const news = h("span", { class: "soft", "aria-live": "polite" });
  const wrong = h("div");
  const list = h("div", { class: "scroll list" });
  const below = h("div", { "aria-live": "polite" });
  view.append(h("div", { class: "bar" }, count, compare, again, h("label", { class: "soft", title: "Give torch the seed of that run first" }, seeded, "with its seed"), take, news, h("span", { class: "grow" }), exporting({ name: "runs", rows: table })), wrong, list, below);

  function table(): (string | number)[][] {
    return [["run", "time", "model", "prompt", "edits", "moved_tv", "next_token", "seconds", "failed"], ...rows.map((row) => row.map((it) => it ?? ""))];
  }

  function enable(): void {
    compare.disabled = ticked.length !== 2;
    take.disabled = !ticked.length;
    again.disabled = busy !== 0 || (open === null && ticked.length !== 1);
    news.textContent = busy ? `running ${busy} again …` : ticked.length ? `${ticked.length} ticked` : "";
  }

  function draw(): void {
    count.textContent = rows.length === 1 ? "1 run" : `${compact(rows.length)} runs`;
    if (!rows.length) {
      replace(list, h("p", { class: "soft", style: "margin:6px 10px" }, "No runs yet: each %%trace cell that runs is noted here."));
      replace(below);
      enable();
      return;
    }
    const names = ["", "run", "time", "model", "prompt", "edits", "moved", "next token", "seconds"];
    const focused = document.activeElement instanceof HTMLElement && list.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
    replace(
      list,
      h(
        "table", { "aria-label": "Runs, the latest first" },
        h("thead", {}, h("tr", {}, ...names.map((name, at) => h("th", { scope: "col", class: at === 1 || (at > 4 && at !== 7) ? "number" : "" }, name)))),
        h("tbody", {}, ...rows.map(drawRow)),
      ),
    );
    if (focused) list.querySelector<HTMLElement>(`[data-key="${focused}"]`)?.focus();
    enable();
  }

  function drawRow([number, time, model, prompt, edits, moved, token, seconds, wrong]: Row): HTMLElement {
    const tick = h("input", { type: "checkbox", checked: ticked.includes(number), "data-key": `tick${number}`, "aria-label": `Tick run ${number}`, change: () => toggle(number) });
    return h(
      "tr", { tabindex: "0", "data-key": `row${number}`, "aria-selected": String(number === open), click: (event: MouseEvent) => event.target !== tick && void about(number), keydown: (event: KeyboardEvent) => keyed(event, number) },
      h("td", {}, tick),
      h("td", { class: "number" }, number),
      h("td", { class: "soft" }, time),
      h("td", {}, visible(model)),
      h("td", { class: "prompt", title: prompt }, h("code", {}, visible(prompt))),
      h("td", { class: "number" }, edits || ""),
      h("td", { class: "number", title: "Total variation from the bare model" }, moved === null ? "" : moved.toFixed(2)),
      h("td", {}, wrong ? h("span", { class: "failed", title: wrong }, "failed") : h("code", {}, visible(token))),
      h("td", { class: "number" }, compact(Number(seconds.toPrecision(3)))),
    );
  }

  function keyed(event: KeyboardEvent, number: number): void {
    if (event.target !== event.currentTarget) return;
    const at = rows.findIndex(([it]) => it === number);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: rows.length - 1 }[event.key];
    if (event.key === " ") toggle(number);
    else if (event.key === "Enter") void about(number);
    else if (to === undefined) return;
    else list.querySelector<HTMLElement>(`[data-key="row${rows[Math.max(0, Math.min(to, rows.length - 1))]?.[0]}"]`)?.focus();
    event.preventDefault();
  }

  function toggle(number: number): void {
    ticked = ticked.includes(number) ? ticked.filter((it) => it !== number) : [...ticked, number];
    asks.choose(ticked);
    draw();
    say(`run ${number} ${ticked.includes(number) ? "ticked" : "not ticked"}`);
  }

  // One, two, many --------------------------------------------------------------------------------

  const newest = latest();
  const failed = (error: unknown): void => replace(wrong, trouble(error));

  async function about(number: number): Promise<void> {
    [open, below_] = [number, [number]];
    asks.show(below_);
    draw();
    try {
      const told = await newest(asks.about(number));
      replace(wrong);
      const copy = h("button", { type: "button", click: () => void navigator.clipboard?.writeText(told.code) }, "Copy");
      const facts = [told.at, `seed ${told.seed}`, `${seconds(told.run_s)} for the run${told.bare_s === null ? "" : `, ${seconds(told.bare_s)} bare`}`];
      const top = told.top.map(([token, chance]) => [token, lookUp(told.bare_top, token), chance] as [string, number | null, number | null]);
      replace(
        below,
        h("div", { class: "bar", style: "margin:8px 0 0" }, h("b", {}, `Run ${number}`), h("span", { class: "soft" }, facts.join(" · ")), copy),
        told.failed ? h("div", { class: "trouble" }, `It failed: ${told.failed}`) : null,
        h("div", { class: "sides" },
          h("div", {}, h("pre", { "aria-label": "Code" }, told.code), ...told.edits.map((edit) => h("div", { class: "mono" }, visible(edit)))),
          likeliest(top, "without the block", "with it")),
      );
    } catch (error) {
      failed(error);
    }
  }

  async function compared(first: number, second: number): Promise<void> {
    asks.show((below_ = [first, second]));
    try {
      const told = await newest(asks.compare(first, second));
      replace(wrong);
      const signs: Record<string, string> = { "-": "first", "+": "second" };
      const same = told.code.every(([sign]) => sign === " ");
      replace(
        below,
        h("div", { class: "bar", style: "margin:8px 0 0" }, h("b", { class: "one" }, `Run ${first}`), h("span", { class: "soft" }, "and"), h("b", { class: "other" }, `run ${second}`), same ? h("span", { class: "soft" }, "the same code") : null),
        h("div", { class: "sides" },
          h("div", {},
            h("pre", { "aria-label": "Lines of both runs; − the first, + the second" }, ...told.code.map(([sign, line]) => h("div", { class: signs[sign] ?? "" }, `${sign === "-" ? "−" : sign} ${line}`))),
            told.facts.length ? h("table", {}, h("caption", { class: "soft" }, "what else differs"), h("tbody", {}, ...told.facts.map(([name, one, other]) => h("tr", {}, h("th", { scope: "row" }, name.replace("_", " ")), h("td", { class: "one" }, visible(one)), h("td", { class: "other" }, visible(other)))))) : null),
          likeliest(told.top, `run ${first}`, `run ${second}`)),
      );
      say(`runs ${first} and ${second} compared`);
    } catch (error) {
      failed(error);
    }
  }

  function rerun(): void {
    const number = ticked.length === 1 ? ticked[0] : open;
    if (number === null || number === undefined) return;
    news.textContent = "waiting for the kernel …";
    asks.again(number, seeded.checked).catch(failed);
  }

  async function exported(): Promise<void> {
    try {
      save(new Blob([await asks.export([...ticked])], { type: "application/x-ipynb+json" }), "runs.ipynb");
      say("the notebook is saved");
    } catch (error) {
      failed(error);
    }
  }

  return {
    setRows(given) {
      rows = given;
      if (open !== null && !rows.some(([number]) => number === open)) open = null;
      draw();
    },
    setChosen(numbers) {
      ticked = numbers;
      draw();
    },
    setShown(numbers) {
      if (numbers.join() === below_.join()) return;
      const [first, second] = numbers.filter((number) => rows.some(([it]) => it === number));
      if (second !== undefined) void compared(first as number, second);
      else if (first !== undefined) void about(first);
    },
    setBusy(number) {
      busy = number;
      enable();
    },
    setTrouble: (given) => replace(wrong, given?.what ? trouble(new Refused(given)) : null),
    end: () => endings.run(),
  };
}

const lookUp = (top: [string, number][], token: string): number | null => top.find(([it]) => it === token)?.[1] ?? null;

function seconds(value: number): string {
  return value < 1 ? `${compact(Number((value * 1000).toPrecision(3)))} ms` : `${compact(Number(value.toPrecision(3)))} s`;
}

/** The likeliest tokens twice: a line from the one probability to the other. */
function likeliest(top: [string, number | null, number | null][], one: string, other: string): HTMLElement {
  if (!top.length) return h("p", { class: "soft" }, "No next-token probabilities were noted.");
  const [left, wide, high] = [110, 230, 22];
  const x = (chance: number): number => left + wide * chance;
  const shown = top.slice(0, 10);
  const words = { "font-size": 11.5, fill: "currentColor" };
  const percent = (chance: number | null): string => (chance === null ? "not among the likeliest" : `${(chance * 100).toFixed(1)}%`);
  const picture = svg(
    "svg",
    { viewBox: `0 0 ${left + wide + 20} ${high * shown.length + 20}`, width: "100%", role: "img", "aria-label": `Likeliest next tokens, ${one} and ${other}`, style: "max-width:420px" },
    ...[0, 0.5, 1].map((share) => svg("line", { x1: x(share), x2: x(share), y1: 0, y2: high * shown.length, stroke: "currentColor", "stroke-opacity": 0.15 })),
    ...[0, 0.5, 1].map((share) => svg("text", { ...words, x: x(share), y: high * shown.length + 14, "text-anchor": "middle" }, `${share * 100}%`)),
    ...shown.flatMap(([token, first, second], row) => {
      const y = high * row + high / 2;
      const label = visible(token);
      return [
        svg("text", { ...words, x: left - 8, y: y + 4, "text-anchor": "end", "font-family": "monospace" }, label.length > 14 ? `${label.slice(0, 13)}…` : label),
        first === null || second === null ? null : svg("line", { x1: x(first), x2: x(second), y1: y, y2: y, stroke: "currentColor", "stroke-opacity": 0.35, "stroke-width": 2 }),
        first === null ? null : svg("circle", { cx: x(first), cy: y, r: 4.5, fill: BLUE }, svg("title", {}, `${label}, ${one}: ${percent(first)}`)),
        second === null ? null : svg("rect", { x: x(second) - 4, y: y - 4, width: 8, height: 8, fill: ORANGE }, svg("title", {}, `${label}, ${other}: ${percent(second)}`)),
      ];
    }),
  );
  const rows = (): (string | number)[][] => top.map(([token, first, second]) => [token, first ?? Number.NaN, second ?? Number.NaN]);
  return h(
    "div", {},
    h("div", { class: "bar", style: "margin:0" }, h("span", { class: "soft" }, "next token"), h("span", { class: "one" }, `● ${one}`), h("span", { class: "other" }, `■ ${other}`), h("span", { class: "grow" }), exporting({ name: "next-tokens", svg: () => picture, rows: () => [["token", one, other], ...rows()] })),
    picture,
    tableBehind("Likeliest next tokens", ["token", one, other], rows),
  );
}
