/** A pass held open: where it stands in the tree and the text, the value there, and ways to go on. */
import { h, replace, visible } from "../kit/dom";
import { exporting } from "../kit/export";
import { Heatmap } from "../kit/heatmap";
import { Endings } from "../kit/host";
import { Refused, type Trouble } from "../kit/requests";
import { root, speaker } from "../kit/sheet";
import { compact, tableBehind } from "../kit/table";
import { trouble } from "../kit/trouble";
import { sourceBrowser, type Listing } from "./source_browser";

export interface Standing {
  where: string;
  state: "ready" | "stands" | "finished" | "failed" | "closed";
  side: string;
  step: number;
  steps: boolean;
  path: string;
  operation: string;
  elsewhere: boolean;
  layer: number | null;
}

/** Path, name, class, depth, state, whether modules are below it, whether they are shown. */
export type Row = [string, string, string, number, string, boolean, boolean];

export interface Text extends Listing {
  /** The module whose forward it is or is called from, and the operations on the way. */
  module: string;
  within: string[];
  stands: string;
  line: number;
}

export interface Value {
  parts: string[];
  number: number;
  top: [string, number][];
  /** What a generation has made, as text. */
  text: string;
  tokens: string[];
  shape?: number[];
  kind?: string;
  device?: string;
  note?: string;
  leading?: number[];
  at?: number[];
  part?: number[];
  picture?: number[];
  numbers?: Record<string, number | null>;
}

export type Act = "operation" | "module" | "layer" | "to" | "edit" | "finish" | "leave" | "look" | "open";

export interface Asks {
  do(what: Act, given?: Record<string, unknown>): Promise<unknown>;
  into(trail: string[]): Promise<Listing>;
  select(chosen: { token?: number; layer?: number }): void;
}

/** The path of a layer's module, and its number. */
export type Block = [string, number];

export interface StepperView {
  setPlace(title: string, place: Standing, blocks?: Block[]): void;
  setRows(rows: Row[]): void;
  setText(text: Text | null): void;
  setValue(value: Value, picture: Float32Array): void;
  setBusy(what: string): void;
  setTrouble(trouble: Trouble | null): void;
  setCode(lines: string[]): void;
  /** Points at a layer and a token that were selected elsewhere: the pass stands where it stood. */
  follow(selected: { token?: number | null; layer?: number | null }): void;
  end(): void;
}

const SIGNS: Record<string, [string, string]> = {
  here: ["▶", "the pass stands here"],
  inside: ["▷", "the pass is inside"],
  ran: ["✓", "has run"],
  written: ["●", "has run, and was written"],
};
const SAID: Record<string, string> = {
  finished: "The pass has finished: what the model returned is below, and in stepper.result.",
  failed: "The pass failed in the model; the error is in the cell that moved it, or above.",
  closed: "The pass was closed: nothing more of it runs. Opening another pass of a model closes the earlier one.",
};
const BUTTONS: [Act, string, string][] = [
  ["operation", "Next operation", "Until the next operation in any forward has finished"],
  ["module", "Next module", "Until the next module has finished"],
  ["layer", "Next layer", "Until the next block has finished, or the whole model"],
  ["finish", "Finish", "Run to the end"],
  ["leave", "Close", "Close the pass where it stands"],
];
const SLOW_MS = 700;
const SHEET = `
.insitu-stepper .site{display:flex;flex-wrap:wrap;gap:4px 10px;align-items:baseline;margin:0 0 6px}
.insitu-stepper .site code{font-size:13.5px;font-weight:600;white-space:normal;overflow-wrap:anywhere}
.insitu-stepper .site .sign{color:var(--orange)}
.insitu-stepper .sides{display:grid;grid-template-columns:minmax(15rem,2fr) minmax(0,3fr);gap:14px}
.insitu-stepper .tree{max-height:430px;overflow:auto;border:1px solid var(--rule);border-radius:4px;padding:3px 0}
.insitu-stepper .row{display:flex;gap:7px;align-items:baseline;height:23px;line-height:23px;white-space:nowrap;padding-right:6px;cursor:default}
.insitu-stepper .row:hover{background:var(--tint)}
.insitu-stepper .row[aria-selected=true]{background:var(--tint);box-shadow:inset 3px 0 var(--blue)}
.insitu-stepper .row code{line-height:inherit}
.insitu-stepper .row.here code{font-weight:700}
.insitu-stepper .sign{width:13px;flex:none;text-align:center;color:var(--orange)}.insitu-stepper .sign.ran{color:var(--soft)}
.insitu-stepper .twist{width:13px;flex:none;text-align:center;color:var(--soft);cursor:pointer}
.insitu-stepper .places{display:flex;flex-wrap:wrap;gap:4px 14px;margin:4px 0}
.insitu-stepper .places label{display:flex;gap:6px;align-items:center}
.insitu-stepper form{display:flex;flex-wrap:wrap;gap:6px;align-items:center;margin:8px 0 0}
.insitu-stepper form input[type=text]{flex:1;min-width:5rem;font-family:var(--mono)}
.insitu-stepper form input[type=number]{width:4rem}
.insitu-stepper .top{display:flex;flex-wrap:wrap;gap:4px;margin:6px 0}
.insitu-stepper .top span{background:var(--tint);border-radius:3px;padding:0 6px}
.insitu-stepper .said code{white-space:pre-wrap}
.insitu-stepper pre{background:var(--tint);color:inherit;border-radius:4px;padding:6px 10px;margin:6px 0 0;overflow:auto;font:12px/1.5 var(--mono)}
.insitu-stepper details>summary{cursor:pointer}
.insitu-stepper .insitu-source_browser{padding:4px 0;max-width:none}
.insitu-stepper .insitu-source_browser .text{max-height:270px}
@media (max-width:700px){.insitu-stepper .sides{grid-template-columns:1fr}}
`;

export function stepper(el: HTMLElement, asks: Asks): StepperView {
  const endings = new Endings();
  const view = root(el, "stepper", SHEET);
  const say = speaker(view);
  let place: Standing = { where: "", state: "ready", side: "", step: 0, steps: false, path: "", operation: "", elsewhere: false, layer: null };
  let value: Value = { parts: [], number: 0, top: [], text: "", tokens: [] };
  let rows: Row[] = [];
  let text: Text | null = null;
  let chosen: string | null = null;
  let operation = "";
  let busy = "";
  let blocks: Block[] = [];
  let followed: number | null = null;
  let led: string | null = null; // what is chosen as a layer was selected elsewhere

  const key = `stepper${Math.random().toString(36).slice(2, 8)}`;
  const title = h("b");
  const buttons = BUTTONS.map(([act, name, hint]) => h("button", { type: "button", title: hint, click: () => ask(act) }, name));
  const news = h("span", { class: "soft", "aria-live": "polite" });
  const at = h("div", { class: "site" });
  const wrong = h("div");
  const tree = h("div", { class: "tree", role: "tree", tabindex: "0", "aria-label": "Modules about where the pass stands" });
  const runTo = h("div", { class: "bar", style: "margin:6px 0 0;min-height:30px" });
  const heading = h("div", { class: "bar", style: "margin:0" });
  const told = h("div", { class: "soft" });
  const top = h("div", { class: "top" });
  const said = h("div", { class: "said" });
  const places = h("div", { class: "places" });
  const map = new Heatmap({ label: "The value where the pass stands", rowsName: "row", columnsName: "column", cell: { min: 1, max: 24, height: 18 }, pick: (row) => value.tokens.length && !shrunk() && asks.select({ token: row }) }, endings);
  const behind = tableBehind("The value where the pass stands", ["row", ...["mean", "smallest", "largest"]], summary);
  const editing = h("form", { "aria-label": "Edit the value" });
  const textPlace = h("div");
  const textFold = h("details", { open: true, style: "margin-top:8px" }, h("summary", { class: "soft" }, "The text it runs"), textPlace);
  const code = h("pre");
  const copy = h("button", { type: "button", click: () => void navigator.clipboard?.writeText(code.textContent ?? "") }, "Copy");
  const codeFold = h("details", { class: "hidden", style: "margin-top:8px" }, h("summary", { class: "soft" }, "What was done, as code"), code, h("div", { class: "bar", style: "margin-top:4px" }, copy));
  const valuePane = h("div", {}, heading, told, top, said, places, map.element, behind, editing);
  view.append(h("div", { class: "bar" }, title, ...buttons, news), at, wrong, h("div", { class: "sides" }, h("div", {}, tree, runTo), valuePane), textFold, codeFold);
  const browser = sourceBrowser(textPlace, { select: chooseOperation, into: asks.into });
  endings.add(() => browser.end());

  // Asking ----------------------------------------------------------------------------------------

  const isOver = (): boolean => place.state === "finished" || place.state === "failed" || place.state === "closed";

  let slow = 0;
  function ask(what: Act, given: Record<string, unknown> = {}): void {
    clearTimeout(slow);
    slow = window.setTimeout(() => busy || (news.textContent = "waiting for the kernel …"), SLOW_MS);
    asks.do(what, given).then(() => (clearTimeout(slow), busy || (news.textContent = "")), (error: unknown) => (clearTimeout(slow), replace(news), replace(wrong, trouble(error))));
  }

  function enable(): void {
    const stop = isOver() || busy !== "" || place.elsewhere;
    for (const button of buttons) button.disabled = stop;
    const fixed = stop || place.state !== "stands" || !value.parts.length;
    for (const control of editing.querySelectorAll<HTMLInputElement | HTMLButtonElement>("input,button")) control.disabled = fixed;
    for (const button of runTo.querySelectorAll("button")) button.disabled = stop;
  }

  // Where it stands -------------------------------------------------------------------------------

  function drawPlace(): void {
    const said = SAID[place.state] ?? (place.elsewhere ? "The pass belongs to another thread, and only that one can go on with it." : "");
    const step = place.steps && place.state === "stands" ? h("span", { class: "soft" }, `step ${place.step}`) : null;
    const site = place.where.replace(/ \(step \d+\)$/, "");
    if (said && !(place.elsewhere && !isOver())) replace(at, h("span", {}, said));
    else if (place.state === "ready") replace(at, h("span", { class: "sign", "aria-hidden": "true" }, "▶"), h("span", {}, "Before the first module: go on, or run to one."));
    else replace(at, h("span", { class: "sign", "aria-hidden": "true" }, "▶"), h("code", {}, site), step, said ? h("span", { class: "soft" }, said) : null);
    say(isOver() || place.state === "ready" ? (at.textContent ?? "") : `stands at ${place.where}`);
    enable();
  }

  function drawRows(): void {
    const active = rows.findIndex(([path, , , , state]) => path === chosen && state !== "gap");
    tree.setAttribute("aria-activedescendant", active >= 0 ? `${key}-${active}` : "");
    replace(tree, ...rows.map(([path, name, kind, depth, state, below, open], index) => {
      const pad = `padding-left:${6 + 14 * depth}px`;
      if (state === "gap") return h("div", { class: "row soft", role: "treeitem", style: `${pad};cursor:pointer`, title: "Show all", click: () => ask("open", { path }) }, h("span", { class: "twist" }), name);
      const [sign, words] = SIGNS[state] ?? ["", ""];
      return h(
        "div",
        { class: `row ${state}`, role: "treeitem", id: `${key}-${index}`, "aria-level": depth + 1, "aria-selected": String(path === chosen), "aria-expanded": below ? String(open) : null, style: pad, click: () => pick(path), dblclick: () => go("output") },
        h("span", { class: "twist", "aria-hidden": "true", click: (event: MouseEvent) => (event.stopPropagation(), below && ask("open", { path })) }, below ? (open ? "▾" : "▸") : ""),
        h("span", { class: `sign ${state}`, role: "img", "aria-label": words || null, title: words }, sign),
        h("code", {}, visible(name)),
        h("span", { class: "soft" }, visible(kind)),
      );
    }));
    const here = tree.querySelector<HTMLElement>(".row.here");
    if (here && (here.offsetTop - tree.offsetTop < tree.scrollTop || here.offsetTop - tree.offsetTop > tree.scrollTop + tree.clientHeight - 30)) tree.scrollTop = here.offsetTop - tree.offsetTop - tree.clientHeight / 2;
  }

  /** A module that the user chooses selects its layer in every view. */
  function pick(path: string): void {
    choose(path);
    const [, layer] = blocks.find(([block]) => path === block || path.startsWith(`${block}.`)) ?? [];
    if (layer !== undefined) asks.select({ layer: (followed = layer) });
  }

  function choose(path: string | null): void {
    [chosen, operation] = [path, ""];
    drawRows();
    drawTarget();
    if (path !== null) say(path || "model");
  }

  function chooseOperation(name: string): void {
    operation = name;
    drawTarget();
  }

  function go(side: string): void {
    if (operation && text) ask("to", { path: text.module, side, operation: [...text.within, operation].join(".source.") });
    else if (chosen !== null) ask("to", { path: chosen, side });
  }

  function drawTarget(): void {
    const name = operation ? `${text?.path}.${operation}` : chosen === "" ? "model" : chosen;
    if (name === null) replace(runTo, h("span", { class: "soft" }, "Click a module, or an operation in the text, to run to it."));
    else
      replace(
        runTo,
        h("span", { class: "soft" }, "Run to"),
        h("code", { style: "white-space:normal;overflow-wrap:anywhere" }, visible(name)),
        h("button", { type: "button", title: "What it is called with", click: () => go("input") }, "its input"),
        h("button", { type: "button", title: "What it returns", click: () => go("output") }, "its output"),
      );
    enable();
  }

  endings.listen(tree, "keydown", (event) => {
    const modules = rows.filter(([, , , , state]) => state !== "gap");
    const index = modules.findIndex(([path]) => path === chosen);
    const [path = "", , , , , below = false, open = false] = modules[index] ?? [];
    const parent = path.includes(".") ? path.slice(0, path.lastIndexOf(".")) : "";
    const to = (next: number): void => pick(modules[Math.max(0, Math.min(next, modules.length - 1))]?.[0] ?? "");
    const steps: Record<string, () => void> = {
      ArrowDown: () => to(index + 1),
      ArrowUp: () => to(index - 1),
      Home: () => to(0),
      End: () => to(modules.length - 1),
      ArrowRight: () => (below && !open ? ask("open", { path }) : to(index + 1)),
      ArrowLeft: () => (below && open && path ? ask("open", { path }) : pick(parent)),
      Enter: () => go((event as KeyboardEvent).shiftKey ? "input" : "output"),
    };
    const step = steps[(event as KeyboardEvent).key];
    if (!step || !modules.length) return;
    event.preventDefault();
    step();
  });

  // The value there -------------------------------------------------------------------------------

  const shrunk = (): boolean => value.part?.[0] !== value.picture?.[0];
  let numbers: Float32Array = new Float32Array();

  function drawValue(): void {
    const has = value.parts.length > 0;
    for (const element of [told, top, said, places, map.element, behind]) element.classList.toggle("hidden", !has);
    const part = h("select", { "aria-label": "Which tensor", change: (event: Event) => ask("look", { part: Number((event.target as HTMLSelectElement).value) }) }, ...value.parts.map((name, index) => h("option", { value: index, selected: index === value.number }, visible(name || "tensor"))));
    if (!has) {
      replace(heading, h("span", { class: "soft" }, place.state === "ready" ? "There is no value before the first module." : place.state === "stands" ? "There is no tensor here." : ""));
      return;
    }
    const device = value.device === "cpu" ? "" : ` on ${value.device}`;
    replace(heading, value.parts.length > 1 || value.parts[0] ? part : null, h("code", {}, `${value.kind}${device}`), h("span", { class: "soft" }, value.note ?? ""), h("span", { class: "grow" }), exporting({ name: "value", canvas: () => map.canvas, svg: () => map.svg(), rows: () => map.rows() }));
    const counted = (["mean", "std", "min", "max"] as const).map((name) => [name, value.numbers?.[name]] as const).filter(([, it]) => it !== null && it !== undefined).map(([name, it]) => `${name} ${compact(it as number)}`);
    const bad = [value.numbers?.nan ? `${compact(value.numbers.nan)} NaN` : "", value.numbers?.inf ? `${compact(value.numbers.inf)} infinite` : ""].filter(Boolean).join(", ");
    replace(told, counted.join(" · ") || "no finite number", bad ? h("b", { style: "color:var(--orange)" }, ` · ${bad}`) : null);
    replace(top, ...(value.top.length ? [h("i", { class: "soft", style: "font-style:normal" }, "next token")] : []), ...value.top.map(([token, chance]) => h("span", { title: `${(chance * 100).toFixed(2)}%` }, h("code", {}, visible(token)), ` ${chance < 0.0005 ? "< 0.1" : (chance * 100).toFixed(1)}%`)));
    replace(said, value.text ? h("code", {}, visible(value.text)) : null);
    const leading = value.leading ?? [];
    const focused = [...places.querySelectorAll("input")].indexOf(document.activeElement as HTMLInputElement);
    replace(places, ...leading.map((size, dimension) => {
      const chosenPlace = value.at?.[dimension] ?? 0;
      const input = h("input", { type: "range", min: 0, max: Math.max(size - 1, 0), value: chosenPlace, "aria-label": `Place on dimension ${dimension}`, input: () => ask("look", { part: value.number, at: leading.map((_, other) => (other === dimension ? Number(input.value) : (value.at?.[other] ?? 0))) }) });
      return size > 1 && h("label", { class: "soft" }, `dim ${dimension}`, input, `${chosenPlace} of ${size}`);
    }));
    places.querySelectorAll("input")[focused]?.focus();
    const [high = 0, wide = 0] = value.picture ?? [];
    const [whole = 0, across = 0] = value.part ?? [];
    const label = (total: number, count: number) => (_: unknown, index: number) => String(Math.floor((index * total) / (count || 1)));
    const names = value.tokens.length && !shrunk() ? value.tokens.map((token, index) => `${index} ${visible(token)}`) : Array.from({ length: high }, label(whole, high));
    map.show({ rows: names, columns: Array.from({ length: wide }, label(across, wide)), values: numbers });
    enable();
  }

  function summary(): (string | number)[][] {
    return map.rows().map(([name, ...cells]) => {
      const finite = cells.filter((it): it is number => typeof it === "number" && Number.isFinite(it));
      const mean = finite.length ? finite.reduce((sum, it) => sum + it, 0) / finite.length : Number.NaN;
      return [name ?? "", mean, finite.length ? Math.min(...finite) : Number.NaN, finite.length ? Math.max(...finite) : Number.NaN];
    });
  }

  const factor = h("input", { type: "number", step: "any", value: "2", "aria-label": "Factor" });
  const noise = h("input", { type: "number", step: "any", min: 0, value: "0.1", "aria-label": "Size of the noise" });
  const words = h("input", { type: "text", placeholder: "value * 2", "aria-label": "A Python expression of value", autocomplete: "off", spellcheck: "false" });
  const write = (edit: string): void => ask("edit", { text: edit, part: value.number });
  editing.append(
    h("button", { type: "button", title: "Multiply the value", click: () => write(`value * ${Number(factor.value) || 0}`) }, "Scale by"), factor,
    h("button", { type: "button", title: "Write zeros", click: () => write("torch.zeros_like(value)") }, "Zero"),
    h("button", { type: "button", title: "Add normal noise", click: () => write(`value + ${Number(noise.value) || 0} * torch.randn_like(value)`) }, "Add noise"), noise,
    words, h("button", { type: "submit", title: "Write what the expression gives" }, "Write"),
  );
  endings.listen(editing, "submit", (event) => {
    event.preventDefault();
    if (words.value.trim()) write(words.value.trim());
  });
  // JupyterLab takes some keys for its cells: what is typed here stays here.
  endings.listen(editing, "keydown", (event) => event.stopPropagation());
  drawTarget();

  return {
    setPlace(named, given, layers = []) {
      [place, blocks] = [given, layers];
      title.textContent = named;
      drawPlace();
    },
    setRows(given) {
      rows = given;
      drawRows();
    },
    setText(given) {
      const same = given !== null && text?.path === given.path && text.function === given.function;
      text = given;
      textFold.classList.toggle("hidden", !given);
      if (!given) return;
      if (!same) {
        operation = "";
        browser.show(given.path, given);
        drawTarget();
      }
      browser.stand(given.stands || null, given.line);
    },
    setValue(given, picture) {
      [value, numbers] = [given, picture];
      drawValue();
    },
    setBusy(what) {
      busy = what;
      clearTimeout(slow);
      if (what) slow = window.setTimeout(() => (news.textContent = "waiting for the kernel …"), SLOW_MS);
      else news.textContent = "";
      enable();
    },
    setTrouble: (given) => replace(wrong, given?.what ? trouble(new Refused(given)) : null),
    setCode(lines) {
      code.textContent = lines.join("\n");
      codeFold.classList.toggle("hidden", !lines.length);
    },
    follow({ token, layer }) {
      const isByToken = value.tokens.length > 0 && !shrunk();
      if (isByToken && typeof token === "number") map.mark(token < value.tokens.length ? { row: token, column: 0 } : null);
      if (typeof layer !== "number" || layer === followed) return;
      followed = layer;
      const [block] = layer === place.layer ? [] : (blocks.find(([, number]) => number === layer) ?? []);
      const wasFollowed = led !== null && chosen === led;
      led = block ?? null;
      if (block !== undefined) choose(block);
      else if (wasFollowed) choose(null); // the pass stands in that layer
    },
    end: () => (clearTimeout(slow), endings.run()),
  };
}
