/** A model's modules as a tree: search, sizes, shapes, and what the last run did where. */
import { h, replace } from "../kit/dom";
import { exporting } from "../kit/export";
import { Endings, own } from "../kit/host";
import { type Line, linesPicture, ORANGE, SOFT } from "../kit/lines_picture";
import { Rows } from "../kit/rows";
import { root, speaker } from "../kit/sheet";
import { compact, short } from "../kit/table";
import { trouble } from "../kit/trouble";
import { type Reach, REACH_SHEET, ReachOf } from "./module_reach";

type Column = ArrayLike<number>;

/** A row a module, in the order of `named_modules`; kinds and outputs are numbers of a list. */
export interface Nodes {
  name: string[];
  parent: Column;
  kind: Column;
  size: Column;
  output: Column;
  kinds: string[];
  outputs: string[];
  /** The rows that are layers, with their numbers. */
  layers?: [number, number][];
}

/** The same as Python sends it: names by line; parents, kinds and outputs as int32, sizes as float64. */
export interface SentNodes {
  names: string;
  numbers: DataView;
  sizes: DataView;
  kinds: string[];
  outputs: string[];
  layers: number[][];
}

export function nodesOf({ names, numbers, sizes, kinds, outputs, layers }: SentNodes): Nodes {
  const name = names.split("\n");
  const all = new Int32Array(own(numbers));
  const column = (at: number): Int32Array => all.subarray(at * name.length, (at + 1) * name.length);
  return { name, parent: column(0), kind: column(1), output: column(2), size: new Float64Array(own(sizes)), kinds, outputs, layers: layers as [number, number][] };
}

export type Mark = "ran" | "read" | "written" | "paused";
/** The rows of each mark, as firsts and lasts of stretches: `[0, 3, 7, 7]` is 0 to 3, and 7. */
export type Marks = Partial<Record<Mark, number[]>>;

export interface About {
  class: string;
  extra: string;
  parameters: Record<string, number[]>;
  devices: string[];
  source: string;
  paused: string;
}

export interface Asks {
  /** With the layer that it is, or is in, where the user chose it. */
  select(path: string, layer: number | null): void;
  about(row: number): Promise<About>;
  /** Whether what a block can reach is to be shown. */
  overlay(isOn: boolean): void;
}

export interface ModuleTreeView {
  /** New modules, or what has been learned of them, with their marks. */
  setNodes(title: string, nodes: Nodes, marks?: Marks): void;
  setMarks(marks: Marks): void;
  /** Shows what a block can reach at each module; nothing of it when it is given nothing. */
  setReach(reach: Reach): void;
  /** Goes to the module of a path; `""` is the root, and where nothing was chosen yet nothing is. */
  setSelected(path: string): void;
  /** Marks the module of the layer that is selected, wherever it was. */
  setLayer(layer: number | null): void;
  end(): void;
}

const [HEIGHT, HIGH] = [24, 360];
/** The strongest sign of a row is shown, and all of them are told. */
const SIGNS: [Mark, string, string][] = [
  ["ran", "○", "ran"],
  ["read", "◐", "read"],
  ["written", "●", "written"],
  ["paused", "▶", "the pass stands here"],
];
const SHEET = `
.insitu-module_tree .sides{display:grid;grid-template-columns:minmax(0,1fr) minmax(14rem,20rem);gap:10px}
.insitu-module_tree .row{display:flex;gap:8px;align-items:baseline;line-height:${HEIGHT}px;white-space:nowrap;padding-right:8px;cursor:default}
.insitu-module_tree .row code,.insitu-module_tree .row .mono{line-height:inherit}
.insitu-module_tree .row:hover{background:var(--tint)}
.insitu-module_tree .row[aria-selected=true]{background:var(--tint);box-shadow:inset 3px 0 var(--blue)}
.insitu-module_tree .row.layer{box-shadow:inset 3px 0 var(--orange)}
.insitu-module_tree .row.layer[aria-selected=true]{box-shadow:inset 3px 0 var(--blue),inset 6px 0 var(--orange)}
.insitu-module_tree .row .here{border:1px solid var(--orange);border-radius:3px;padding:0 5px;font-size:11px;line-height:16px;flex:none}
.insitu-module_tree .twist{width:14px;text-align:center;color:var(--soft);cursor:pointer;flex:none}
.insitu-module_tree .mark{color:var(--orange);flex:none;width:14px;text-align:center}
.insitu-module_tree .mark.ran{color:var(--soft)}.insitu-module_tree .mark.within{opacity:.45}
.insitu-module_tree .row .out{overflow:hidden;text-overflow:ellipsis;min-width:0}
.insitu-module_tree .size{margin-left:auto;flex:none}
.insitu-module_tree mark{background:#d9822b55;color:inherit}
.insitu-module_tree .about{overflow-wrap:anywhere;font-size:12.5px}
.insitu-module_tree .about .entry{margin:0 0 5px}.insitu-module_tree .about .entry .soft{font-size:11.5px}
@media (max-width:640px){.insitu-module_tree .sides{grid-template-columns:1fr}}
${REACH_SHEET}`;

export function moduleTree(el: HTMLElement, asks: Asks): ModuleTreeView {
  const endings = new Endings();
  const view = root(el, "module_tree", SHEET);
  const say = speaker(view);
  let nodes: Nodes = { name: [], parent: [], kind: [], size: [], output: [], kinds: [], outputs: [] };
  let marks = new Uint8Array();
  let within = new Uint8Array(); // what is marked anywhere below
  let ends: Column = []; // the row after the last one below each
  let depth: Column = [];
  let opened = new Set<number>();
  let found: Set<number> | null = null;
  let shown: number[] = [];
  let selected = -1;
  let isMarked = false;
  let standing = -1;
  let [layer, layerRow] = [null as number | null, -1];
  let reached: Reach = {};

  const title = h("b");
  const search = h("input", { type: "search", placeholder: "Search modules", "aria-label": "Search modules by path or class" });
  const count = h("span", { class: "soft" });
  const legend = h("span", { class: "soft hidden", style: "white-space:nowrap" }, ...SIGNS.slice(0, 3).flatMap(([name, sign, words]) => [h("span", { class: `mark ${name}`, "aria-hidden": "true" }, sign), ` ${words}  `]));
  const place = h("button", { type: "button", class: "hidden", title: "Show where the pass stands", click: () => reveal(standing) });
  const reach = new ReachOf(asks.overlay, sought);
  const about = h("div", { class: "about", "aria-live": "polite" });
  const rows = new Rows(HEIGHT, draw, endings, { role: "tree", tabindex: "0", "aria-label": "Modules" });
  rows.setHeight(HIGH);
  view.append(h("div", { class: "bar" }, title, search, count, legend, place, h("span", { class: "grow" }), reach.button, exporting({ name: "modules", svg: picture, rows: table })), reach.element, h("div", { class: "sides" }, rows.element, about));

  const path = (row: number): string => {
    const parts: string[] = [];
    for (let at = row; at > 0; at = nodes.parent[at] ?? -1) parts.unshift(nodes.name[at] ?? "");
    const base = nodes.name[0] ?? "";
    return (base ? [base, ...parts] : parts).join(".");
  };
  const isParent = (row: number): boolean => (ends[row] ?? 0) > row + 1;
  const childrenOf = (row: number): number[] => {
    const found: number[] = [];
    for (let child = row + 1; child < (ends[row] ?? 0); child = ends[child] ?? Infinity) found.push(child);
    return found;
  };
  const kind = (row: number): string => nodes.kinds[nodes.kind[row] ?? 0] ?? "";

  function list(): void {
    shown = [];
    const walk = (row: number): void => {
      if (found && !found.has(row)) return;
      shown.push(row);
      if (found || opened.has(row)) for (const child of childrenOf(row)) walk(child);
    };
    if (nodes.name.length) walk(0);
    rows.setCount(shown.length);
  }

  function seek(): void {
    const words = search.value.trim().toLowerCase();
    found = null;
    let hits = 0;
    if (words) {
      found = new Set();
      for (let row = 0; row < nodes.name.length; row++)
        if (path(row).toLowerCase().includes(words) || kind(row).toLowerCase().includes(words) || reach.of(row).some(({ label }) => label === words)) {
          hits++;
          for (let at = row; at >= 0 && !found.has(at); at = nodes.parent[at] ?? -1) found.add(at);
        }
    }
    count.textContent = words ? `${compact(hits)} found` : `${compact(nodes.name.length)} modules`;
    list();
  }

  function marked(name: string): (Node | string)[] {
    const words = search.value.trim();
    const at = words ? name.toLowerCase().indexOf(words.toLowerCase()) : -1;
    return at < 0 ? [name] : [name.slice(0, at), h("mark", {}, name.slice(at, at + words.length)), name.slice(at + words.length)];
  }

  function draw(index: number): HTMLElement {
    const row = shown[index] as number;
    const below = isParent(row);
    const isOpen = found !== null || opened.has(row);
    const isFolded = below && !isOpen;
    const output = nodes.outputs[nodes.output[row] ?? 0];
    return h(
      "div",
      {
        class: row === layerRow ? "row layer" : "row", role: "treeitem", id: `${key}-${row}`, "aria-level": (depth[row] ?? 0) + 1, "aria-selected": String(row === selected),
        "aria-expanded": below ? String(isOpen) : null, style: `padding-left:${6 + 16 * (depth[row] ?? 0)}px`, click: () => choose(row), dblclick: () => toggle(row),
      },
      h("span", { class: "twist", "aria-hidden": "true", click: (event: MouseEvent) => (event.stopPropagation(), toggle(row)) }, below ? (isOpen ? "▾" : "▸") : ""),
      signOf(marks[row] ?? 0, isFolded ? (within[row] ?? 0) : 0),
      h("code", {}, ...(row === 0 ? [nodes.name[0] || "model"] : marked(nodes.name[row] ?? ""))),
      h("span", { class: "soft" }, ...marked(kind(row))),
      row === layerRow ? h("span", { class: "here" }, "selected layer") : null,
      ...reach.chips(row),
      output ? h("span", { class: "soft mono out", title: output }, `→ ${output}`) : null,
      h("span", { class: "soft size", title: "parameters" }, nodes.size[row] ? short(nodes.size[row] ?? 0) : ""),
    );
  }

  /** The sign of a row; a folded one hints at what is marked inside. */
  function signOf(own: number, inside: number): HTMLElement | null {
    if (!isMarked) return null;
    const isWithin = inside > own;
    const [name, sign, done] = strongest(own, inside);
    const words = (isWithin ? "inside: " : "") + done.map(([, , said]) => said).join(", ");
    return h("span", { class: `mark ${name}${isWithin ? " within" : ""}`, title: words, role: words && "img", "aria-label": words }, sign);
  }

  /** What is unfolded, or found, as it is drawn; not only what is scrolled into sight. */
  function picture(): SVGSVGElement | null {
    const line = (row: number): Line => {
      const isFolded = isParent(row) && found === null && !opened.has(row);
      const output = nodes.outputs[nodes.output[row] ?? 0];
      const twist = isParent(row) ? (isFolded ? "▸ " : "▾ ") : "  ";
      const [, sign] = strongest(marks[row] ?? 0, isFolded ? (within[row] ?? 0) : 0);
      return {
        parts: [
          { text: "  ".repeat(depth[row] ?? 0) + twist, colour: SOFT },
          { text: isMarked ? `${sign || " "} ` : "", colour: ORANGE },
          { text: row === 0 ? nodes.name[0] || "model" : (nodes.name[row] ?? "") },
          { text: `  ${kind(row)}${output ? `  → ${output}` : ""}`, colour: SOFT },
          { text: reach.of(row).map(({ label }) => `  [${label}]`).join(""), colour: ORANGE },
        ],
        end: nodes.size[row] ? short(nodes.size[row] ?? 0) : "",
        isTinted: row === selected,
      };
    };
    return shown.length ? linesPicture(`Modules of ${title.textContent}`, shown.map(line)) : null;
  }

  /** All modules, folded or not. */
  function table(): (string | number)[][] {
    const words = (row: number): string => SIGNS.filter((_, bit) => (marks[row] ?? 0) & (1 << bit)).map(([name]) => name).join(" ");
    const head = ["path", "class", "parameters", "output", "marks", ...(reach.isOn ? ["reach"] : [])];
    const limits = (row: number): string[] => (reach.isOn ? [reach.of(row).map(({ label }) => label).join("; ")] : []);
    return [head, ...nodes.name.map((_, row) => [path(row), kind(row), nodes.size[row] ?? 0, nodes.outputs[nodes.output[row] ?? 0] ?? "", words(row), ...limits(row)])];
  }

  function sought(words: string): void {
    search.value = search.value === words ? "" : words;
    seek();
    rows.show(0);
    say(`${words}: ${count.textContent}`);
  }

  function toggle(row: number, to = !opened.has(row)): void {
    if (to) opened.add(row);
    else opened.delete(row);
    list();
  }

  function reveal(row: number, isOwn = true): void {
    search.value = "";
    unfold(row);
    seek();
    choose(row, isOwn);
  }

  function unfold(row: number): void {
    for (let at = nodes.parent[row] ?? -1; at >= 0; at = nodes.parent[at] ?? -1) opened.add(at);
  }

  /** The layer that a row is, or is in. */
  function layerOf(row: number): number | null {
    for (let at = row; at >= 0; at = nodes.parent[at] ?? -1) {
      const found = nodes.layers?.find(([block]) => block === at);
      if (found) return found[1];
    }
    return null;
  }

  function markLayer(to: number | null): void {
    layer = to;
    const had = layerRow;
    layerRow = nodes.layers?.find(([, number]) => number === layer)?.[0] ?? -1;
    if (layerRow === had) return;
    if (layerRow < 0 || found !== null || layerOf(selected) === layer) return rows.refresh(); // where the user is already
    unfold(layerRow);
    list();
    rows.show(shown.indexOf(layerRow));
  }

  let asked = 0;
  function choose(row: number, isOwn = true): void {
    selected = row;
    const index = shown.indexOf(row);
    if (index >= 0) rows.show(index);
    rows.element.setAttribute("aria-activedescendant", `${key}-${row}`);
    asks.select(path(row), isOwn ? layerOf(row) : null);
    const mine = ++asked;
    asks.about(row).then(
      (told) => mine === asked && tell(row, told),
      (error: unknown) => mine === asked && tell(row, error),
    );
  }

  function tell(row: number, told: unknown): void {
    const where = path(row);
    const copy = h("button", { type: "button", title: "Copy the path", click: () => void navigator.clipboard?.writeText(where) }, "Copy");
    replace(
      about,
      h("div", { class: "bar" }, h("b", { class: "mono" }, where || "model"), where ? copy : null),
      told instanceof Error ? trouble(told) : described(row, told as About),
    );
    say(`${where || "model"}, ${kind(row)}`);
  }

  function described(row: number, told: About): HTMLElement {
    const entry = (name: string, value: string | undefined): (HTMLElement | null)[] => (value ? [h("div", { class: "entry" }, h("div", { class: "soft" }, name), h("span", { class: "mono", style: "white-space:pre-wrap" }, value))] : []);
    return h(
      "div",
      { class: "told" },
      ...entry("class", told.class),
      ...entry("made with", told.extra),
      ...entry("output", nodes.outputs[nodes.output[row] ?? 0]),
      ...entry("parameters", Object.entries(told.parameters).map(([name, shape]) => `${name}  [${shape.join(", ")}]`).join("\n")),
      ...entry("device", told.devices.join(", ")),
      ...entry("forward", told.source),
      ...reach.of(row).flatMap(({ label, words }) => entry(label, words)),
      ...entry("a pass stands at", told.paused),
    );
  }

  /** Take marks over; false where there are none, and were none. */
  function mark(given: Marks): boolean {
    const wereMarked = isMarked;
    isMarked = SIGNS.some(([name]) => (given[name] ?? []).length);
    if (!isMarked && !wereMarked) return false;
    marks = new Uint8Array(nodes.name.length);
    within = new Uint8Array(nodes.name.length);
    SIGNS.forEach(([name], bit) => {
      const stretches = given[name] ?? [];
      for (let at = 0; at + 1 < stretches.length; at += 2)
        for (let row = stretches[at] as number; row <= (stretches[at + 1] as number) && row < marks.length; row++) marks[row] = (marks[row] as number) | (1 << bit);
    });
    for (let row = marks.length - 1; row > 0; row--) {
      const parent = nodes.parent[row] as number;
      within[parent] = (within[parent] as number) | (within[row] as number) | (marks[row] as number);
    }
    legend.classList.toggle("hidden", !isMarked);
    standing = given.paused?.[0] ?? -1;
    place.classList.toggle("hidden", standing < 0);
    replace(place, "▶ ", h("code", {}, path(standing) || "model"));
    return true;
  }

  endings.listen(search, "input", () => (seek(), rows.show(0)));
  endings.listen(rows.element, "keydown", (event) => {
    const { key: pressed } = event as KeyboardEvent;
    const at = shown.indexOf(selected);
    const isOpen = opened.has(selected);
    const steps: Record<string, () => void> = {
      ArrowDown: () => choose(shown[Math.min(at + 1, shown.length - 1)] ?? 0),
      ArrowUp: () => choose(shown[Math.max(at - 1, 0)] ?? 0),
      ArrowRight: () => (isParent(selected) && !isOpen ? toggle(selected, true) : choose(isParent(selected) ? selected + 1 : selected)),
      ArrowLeft: () => (isParent(selected) && isOpen ? toggle(selected, false) : choose(Math.max(nodes.parent[selected] ?? 0, 0))),
      Home: () => choose(shown[0] ?? 0),
      End: () => choose(shown[shown.length - 1] ?? 0),
      Enter: () => toggle(selected),
    };
    if (!steps[pressed] || !shown.length) return;
    event.preventDefault();
    steps[pressed]?.();
  });

  return {
    setNodes(named, told, done = {}) {
      const isSame = told.name.length === nodes.name.length && told.name.every((name, row) => name === nodes.name[row] && told.parent[row] === nodes.parent[row]);
      nodes = told;
      mark(done);
      reach.take(reached, nodes.name.length);
      if (isSame && nodes.name.length) return rows.refresh(); // shapes have been learned since
      title.textContent = named;
      [depth, ends] = shapeOf(nodes.parent);
      opened = new Set();
      for (let row = 0; row >= 0 && isParent(row); row = childrenOf(row).find(isParent) ?? -1) opened.add(row);
      selected = -1;
      replace(about, h("p", { class: "soft" }, "Click a module, or walk with the arrow keys."));
      layerRow = nodes.layers?.find(([, number]) => number === layer)?.[0] ?? -1;
      seek();
    },
    setMarks(given) {
      if (mark(given)) rows.refresh();
    },
    setReach(told) {
      const isLaid = told.kinds !== undefined;
      if (isLaid !== reach.isOn) say(isLaid ? "what can be reached is shown" : "the modules alone are shown");
      else if (!isLaid) return;
      reached = told;
      reach.take(reached, nodes.name.length);
      seek();
    },
    setSelected(wanted) {
      if (wanted === (selected < 0 ? "" : path(selected))) return;
      const row = nodes.name.findIndex((name, row) => wanted.endsWith(name) && path(row) === wanted);
      if (row >= 0) reveal(row, false);
    },
    setLayer: markLayer,
    end: () => endings.run(),
  };
}

/** How deep each row is, and the row after the last one below it: rows come before those inside them. */
function shapeOf(parent: Column): [depth: Uint16Array, ends: Uint32Array] {
  const [depth, ends] = [new Uint16Array(parent.length), new Uint32Array(parent.length)];
  for (let row = 1; row < parent.length; row++) depth[row] = (depth[parent[row] as number] ?? 0) + 1;
  for (let row = parent.length - 1; row >= 0; row--) {
    ends[row] = Math.max(ends[row] as number, row + 1);
    const above = parent[row] as number;
    if (above >= 0) ends[above] = Math.max(ends[above] as number, ends[row] as number);
  }
  return [depth, ends];
}

/** The name and the sign that stand for what was done at a row or inside it, and all that was. */
function strongest(own: number, inside: number): [string, string, typeof SIGNS] {
  const done = SIGNS.filter((_, bit) => Math.max(own, inside) & (1 << bit));
  const [name, sign] = done[done.length - 1] ?? ["", ""];
  return [name, sign, done];
}

const key = `tree${Math.random().toString(36).slice(2, 8)}`;
