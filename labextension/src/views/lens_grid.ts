/** A lens as a grid: layers from the last at the top, positions across, a measure to choose. */
import { h, replace, visible } from "../kit/dom";
import { exporting } from "../kit/export";
import { Heatmap } from "../kit/heatmap";
import { Endings } from "../kit/host";
import { latest } from "../kit/requests";
import { root, speaker } from "../kit/sheet";
import { compact, tableBehind } from "../kit/table";

export interface Measure {
  name: string;
  quantity: string;
  unit: string;
  limits: [number, number] | null;
}

export interface Lens {
  title: string;
  note: string;
  names: string[];
  rows: string[];
  columns: string[];
  texts: string[];
  measures: Measure[];
  values: Float32Array[];
}

export type Top = [string, number][];

export interface Asks {
  select(row: number, column: number): void;
  top(row: number, column: number): Promise<Top>;
  measure(number: number): void;
}

export interface LensGridView {
  show(lens: Lens): void;
  setMeasure(number: number): void;
  /** Puts the cursor somewhere; nowhere for what is no cell, as NaN. */
  mark(row: number, column: number): void;
  end(): void;
}

const SHEET = `
.insitu-lens_grid .top{display:flex;flex-wrap:wrap;gap:4px 14px;min-height:1.8em;margin-top:2px}
.insitu-lens_grid .top code{background:var(--tint);border-radius:3px;padding:1px 4px}
`;

export function lensGrid(el: HTMLElement, asks: Asks): LensGridView {
  const endings = new Endings();
  const view = root(el, "lens_grid", SHEET);
  const say = speaker(view);
  let lens: Lens = { title: "", note: "", names: [], rows: [], columns: [], texts: [], measures: [], values: [] };
  let measure = 0;

  const title = h("b");
  const note = h("span", { class: "soft" });
  const choice = h("select", { "aria-label": "What is shown" });
  const top = h("div", { class: "top" });
  // The last layer stands at the top, as in the literature: prediction grows upwards.
  const flip = (row: number): number => lens.rows.length - 1 - row;
  const map = new Heatmap(
    { label: "Layers by positions", rowsName: "layer", columnsName: "pos", cell: { min: 44, max: 92, height: 20 }, pick: (row, column) => picked(flip(row), column) },
    endings,
  );
  const behind = tableBehind("Numbers of the grid", ["layer", "pos", "value", "token"], () => lens.rows.flatMap((layer, row) => lens.columns.map((pos, column) => [layer, visible(pos), at(row, column), visible(lens.texts[row * lens.columns.length + column] ?? "")])));
  view.append(h("div", { class: "bar" }, title, choice, note, h("span", { class: "grow" }), exporting({ name: "lens", canvas: () => map.canvas, rows: () => [["", ...lens.columns], ...map.rows()] })), map.element, top, behind);

  const at = (row: number, column: number): number => lens.values[measure]?.[row * lens.columns.length + column] ?? Number.NaN;

  function draw(): void {
    const chosen = lens.measures[measure];
    const order = lens.rows.map((_, row) => flip(row));
    map.show({
      rows: order.map((row) => lens.rows[row] ?? ""),
      columns: lens.columns.map(visible),
      values: order.flatMap((row) => lens.columns.map((_, column) => at(row, column))),
      text: lens.texts.length ? order.flatMap((row) => lens.columns.map((_, column) => visible(lens.texts[row * lens.columns.length + column] ?? ""))) : undefined,
      limits: chosen?.limits ?? undefined,
      quantity: chosen ? [chosen.quantity, chosen.unit && `(${chosen.unit})`].filter(Boolean).join(" ") : undefined,
    });
    behind.open = false;
  }

  const newest = latest();
  let topOf = "";
  /** What else was likely in a cell. */
  function tellTop(row: number, column: number): void {
    if (topOf === `${row} ${column}`) return;
    topOf = `${row} ${column}`;
    newest(asks.top(row, column)).then(
      (likely) => replace(top, ...likely.map(([token, chance]) => h("span", {}, h("code", {}, visible(token)), " ", h("span", { class: "soft" }, compact(chance))))),
      () => replace(top),
    );
  }

  function picked(row: number, column: number): void {
    asks.select(row, column);
    tellTop(row, column);
    say(`layer ${lens.rows[row]}, ${visible(lens.columns[column] ?? "")}: ${compact(at(row, column))}`);
  }

  endings.listen(choice, "change", () => {
    asks.measure((measure = choice.selectedIndex));
    draw();
  });

  return {
    show(given) {
      lens = given;
      measure = 0;
      title.textContent = lens.title;
      note.textContent = lens.note;
      replace(choice, ...lens.measures.map(({ quantity }) => h("option", {}, quantity)));
      choice.classList.toggle("hidden", lens.measures.length < 2);
      replace(top);
      topOf = "";
      draw();
    },
    setMeasure(number) {
      if (number === measure || number >= lens.measures.length) return;
      measure = choice.selectedIndex = number;
      draw();
    },
    mark(row, column) {
      const isHere = row >= 0 && column >= 0 && row < lens.rows.length && column < lens.columns.length;
      map.mark(isHere ? { row: flip(row), column } : null);
      if (isHere) tellTop(row, column);
    },
    end: () => endings.run(),
  };
}
