/** What each patch would do: an estimate of all cells, exact numbers of those that are brushed. */
import { h, replace, svg, visible } from "../kit/dom";
import { exporting } from "../kit/export";
import { Heatmap, type Place } from "../kit/heatmap";
import { Endings } from "../kit/host";
import { told } from "../kit/places";
import { root, speaker } from "../kit/sheet";
import { compact, tableBehind } from "../kit/table";
import { Refused, type Trouble } from "../kit/requests";
import { trouble as shownTrouble } from "../kit/trouble";

export interface Patches {
  title: string;
  note: string;
  names: string[];
  /** Which row and column of all are the first here. */
  first?: [number, number];
  rows: string[];
  columns: string[];
  quantity: string;
  estimated: Float32Array;
}

export interface State {
  done?: number;
  of?: number;
  /** Interrupted: how many layers were run, and of how many. */
  stopped?: [number, number];
  trouble?: Trouble;
}

export interface Asks {
  run(layers: number[], places: number[]): Promise<unknown>;
  select(layer: number, place: number): void;
  /** Puts a new cell below the one the view stands in; false where the page does not let it. */
  insert(code: string): boolean;
  copy(text: string): Promise<void>;
}

export interface PatchMapView {
  show(patches: Patches): void;
  setExact(exact: Float32Array): void;
  setState(state: State): void;
  setCode(code: string): void;
  /** Puts the cursor where the other views are; nowhere for what is no cell, as NaN. */
  mark(layer: number, place: number): void;
  end(): void;
}

const SHEET = `
.insitu-patch_map .sides{display:grid;grid-template-columns:minmax(0,1fr) 220px;gap:16px}
.insitu-patch_map pre{background:var(--tint);color:inherit;border-radius:4px;padding:6px 10px;margin:6px 0 0;overflow:auto;font:12px/1.5 var(--mono)}
.insitu-patch_map progress{width:120px}
@media (max-width:640px){.insitu-patch_map .sides{grid-template-columns:1fr}}
`;

export function patchMap(el: HTMLElement, asks: Asks): PatchMapView {
  const endings = new Endings();
  const view = root(el, "patch_map", SHEET);
  const say = speaker(view);
  let patches: Patches = { title: "", note: "", names: ["layer", "pos"], rows: [], columns: [], quantity: "", estimated: new Float32Array() };
  let exact: Float32Array = new Float32Array();
  let brushed: Place[] = [];
  let isRunning = false;

  const title = h("b");
  const run = h("button", { type: "button", disabled: true }, "Run the brushed patches");
  const news = h("span", { class: "soft", "aria-live": "polite" });
  const note = h("span", { class: "soft" });
  const wrong = h("div");
  const hint = h("p", { class: "soft", style: "margin:0 0 4px" }, "Every cell is an estimate (a corner marks an exact one). Drag over cells, or hold shift and use the arrow keys, then run exactly those.");
  const chart = h("div");
  const taken = h("div", { class: "hidden" }, exporting({ name: "agreement", svg: () => chart.querySelector("svg"), rows: () => everything((at) => Number.isFinite(exact[at]) && Number.isFinite(patches.estimated[at])) }));
  const code = h("pre", { class: "hidden", "aria-label": "The program of the last run" });
  const taken_ = h("span", { class: "soft" });
  const tell = (words: string): void => {
    taken_.textContent = words;
    say(words);
  };
  const copied = (words: string): void => void asks.copy(code.textContent ?? "").then(() => tell(words), () => tell("It could not be copied either; the lines below are what to write."));
  const insert = h("button", { type: "button", title: "Put this program into a new cell below", click: () => (asks.insert(code.textContent ?? "") ? tell("It stands in the cell below.") : copied("This page does not let a view insert cells; the program was copied: paste it.")) }, "Insert below");
  const copy = h("button", { type: "button", title: "Copy this program", click: () => copied("The program was copied.") }, "Copy the code");
  const acts = h("div", { class: "bar hidden" }, insert, copy, taken_);
  // The last layer stands at the top, as in every view of layers.
  const flip = (row: number): number => patches.rows.length - 1 - row;
  const index = (row: number, column: number): number => row * patches.columns.length + column;
  const map = new Heatmap(
    {
      label: "Layers by places", cell: { min: 16, max: 60, height: 22 },
      brush(cells) {
        brushed = cells.map(({ row, column }) => ({ row: flip(row), column }));
        run.disabled = isRunning || !brushed.length;
        run.textContent = brushed.length === 1 ? "Run this patch" : `Run these ${brushed.length} patches`;
      },
      pick: (row, column) => asks.select(flip(row), column),
      words: (row, column) => {
        const ran = exact[index(flip(row), column)] ?? Number.NaN;
        return Number.isNaN(ran) ? "estimated" : `exact; the estimate was ${compact(patches.estimated[index(flip(row), column)] ?? Number.NaN)}`;
      },
    },
    endings,
  );
  const behind = tableBehind("Patches", () => [named(0), named(1), "estimate", "exact"], () => patches.rows.flatMap((layer, row) => patches.columns.map((place, column) => [visible(layer), visible(place), patches.estimated[index(row, column)] ?? Number.NaN, ran(row, column)])));
  const named = (axis: 0 | 1): string => patches.names[axis] ?? "";
  const ran = (row: number, column: number): number | string => (Number.isNaN(exact[index(row, column)] ?? Number.NaN) ? "" : (exact[index(row, column)] as number));

  /** A row a cell: its place, the estimate, and the exact number where it was run. */
  function everything(isWanted = (_: number): boolean => true): (string | number)[][] {
    const [above, across] = [told(named(0), patches.rows, patches.first?.[0]), told(named(1), patches.columns, patches.first?.[1])];
    const cells = patches.rows.flatMap((_, row) => patches.columns.map((_, column) => [row, column] as const));
    return [
      [...above.names, ...across.names, "estimate", "exact"],
      ...cells.filter(([row, column]) => isWanted(index(row, column))).map(([row, column]) => [...above.at(row), ...across.at(column), patches.estimated[index(row, column)] ?? Number.NaN, ran(row, column)]),
    ];
  }

  view.append(
    h("div", { class: "bar" }, title, note, run, news, h("span", { class: "grow" }), exporting({ name: "patches", canvas: () => map.canvas, svg: () => map.svg(), rows: () => everything() })),
    wrong, hint, h("div", { class: "sides" }, map.element, h("div", {}, chart, taken)), acts, code, behind,
  );

  function draw(): void {
    const order = patches.rows.map((_, row) => flip(row));
    const isExact = (at: number): boolean => !Number.isNaN(exact[at] ?? Number.NaN);
    const values = order.flatMap((row) => patches.columns.map((_, column) => (isExact(index(row, column)) ? exact : patches.estimated)[index(row, column)] ?? Number.NaN));
    const chosen = map.chosen;
    map.show({
      rows: order.map((row) => patches.rows[row] ?? ""),
      columns: patches.columns.map(visible),
      values,
      limits: limits(values),
      corners: new Set(order.flatMap((row, shown) => patches.columns.flatMap((_, column) => (isExact(index(row, column)) ? [shown * patches.columns.length + column] : [])))),
      quantity: patches.quantity,
      rowsName: named(0),
      columnsName: named(1),
    });
    map.brushCells(chosen);
    replace(chart, against(patches.estimated, exact));
    taken.classList.toggle("hidden", !chart.querySelector("svg"));
  }

  endings.listen(run, "click", () => {
    const layers = [...new Set(brushed.map(({ row }) => row))].sort((a, b) => a - b);
    const places = [...new Set(brushed.map(({ column }) => column))].sort((a, b) => a - b);
    news.textContent = "waiting for the kernel …";
    asks.run(layers, places).catch((error: unknown) => (replace(news), replace(wrong, shownTrouble(error))));
  });

  return {
    show(given) {
      patches = given;
      title.textContent = patches.title;
      note.textContent = patches.note;
      draw();
    },
    setExact(given) {
      exact = given;
      draw();
    },
    setState({ done, of, stopped, trouble }) {
      const ran = isRunning;
      isRunning = of !== undefined;
      run.disabled = isRunning || !brushed.length;
      replace(news, of !== undefined ? h("progress", { max: of, value: done ?? 0 }) : null, of !== undefined ? ` ${done} of ${of} layers` : null, stopped ? `stopped after ${stopped[0]} of ${stopped[1]} layers: what was run is kept` : null);
      replace(wrong, trouble ? shownTrouble(new Refused(trouble)) : null);
      if (ran && !isRunning && !trouble) say(stopped ? "the run was stopped" : "the patches have run");
    },
    setCode(text) {
      code.textContent = text;
      taken_.textContent = "";
      for (const element of [code, acts]) element.classList.toggle("hidden", !text);
    },
    mark(layer, place) {
      const isHere = layer >= 0 && place >= 0 && layer < patches.rows.length && place < patches.columns.length;
      map.mark(isHere ? { row: flip(layer), column: place } : null);
    },
    end: () => endings.run(),
  };
}

function limits(values: number[]): [number, number] {
  const most = values.reduce((most, value) => (Number.isFinite(value) ? Math.max(most, Math.abs(value)) : most), 1e-9);
  return [-most, most];
}

/** Each patch that was run, its estimate across and its exact number up: on the line they agree. */
function against(estimated: Float32Array, exact: Float32Array): Element {
  const points = [...exact].flatMap((y, index) => (!Number.isFinite(y) || !Number.isFinite(estimated[index]) ? [] : [[estimated[index] ?? 0, y] as const]));
  if (!points.length) return h("p", { class: "soft" }, "Estimate against exact: run some patches to see.");
  const all = points.flat();
  const [low, high] = [Math.min(...all, 0), Math.max(...all, 0)];
  const at = (value: number): number => 10 + (180 * (value - low)) / (high - low || 1);
  const label = { "font-size": 11, fill: "currentColor" };
  return svg(
    "svg",
    { viewBox: "0 0 200 225", width: 200, height: 225, style: "width:100%;height:auto", role: "img", "aria-label": `Estimate against exact, ${points.length} patches` },
    svg("rect", { x: 10, y: 10, width: 180, height: 180, fill: "none", stroke: "currentColor", "stroke-opacity": 0.25 }),
    svg("line", { x1: 10, y1: 190, x2: 190, y2: 10, stroke: "currentColor", "stroke-opacity": 0.4, "stroke-dasharray": "3 3" }),
    ...points.map(([x, y]) => svg("circle", { cx: at(x), cy: 200 - at(y), r: 3.5, fill: "#d9822b", "fill-opacity": 0.8 }, svg("title", {}, `estimate ${compact(x)}, exact ${compact(y)}`))),
    svg("text", { x: 10, y: 205, ...label }, compact(low)),
    svg("text", { x: 190, y: 205, "text-anchor": "end", ...label }, compact(high)),
    svg("text", { x: 100, y: 220, "text-anchor": "middle", ...label }, "estimate →, exact ↑"),
  );
}
