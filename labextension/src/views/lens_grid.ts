/** A result as a grid, a lens above all: layers from the last at the top, positions across, a measure to choose. */
import { h, replace, visible } from "../kit/dom";
import { exporting } from "../kit/export";
import { Heatmap } from "../kit/heatmap";
import { Endings } from "../kit/host";
import { told } from "../kit/places";
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
  /** Which row and column of all are the first here. */
  first?: [number, number];
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
  /** Shows a result; where another of the same size stood, its cell and the measure stay. */
  show(lens: Lens): void;
  setMeasure(number: number): void;
  /** Puts the cursor somewhere: nowhere for NaN, where it is on an axis for null. */
  mark(row: number | null, column: number | null): void;
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
  let last: { row: number; column: number } | null = null; // the cell that was picked, or marked

  const title = h("b");
  const note = h("span", { class: "soft" });
  const choice = h("select", { "aria-label": "What is shown" });
  const top = h("div", { class: "top" });
  // The last layer stands at the top, as in the literature: prediction grows upwards. Other rows stand as they come.
  const flip = (row: number): number => (lens.names[0] === "layer" ? lens.rows.length - 1 - row : row);
  const map = new Heatmap({ label: "Cells", cell: { min: 44, max: 92, height: 20 }, pick: (row, column) => picked(flip(row), column) }, endings);
  const named = (axis: 0 | 1): string => lens.names[axis] || (axis ? "column" : "row");
  const textOf = (row: number, column: number): string => lens.texts[row * lens.columns.length + column] ?? "";
  const behind = tableBehind("Numbers of the grid", () => [named(0), named(1), lens.measures[measure]?.quantity ?? "value", "text"], () => lens.rows.flatMap((row_, row) => lens.columns.map((column_, column) => [visible(row_), visible(column_), at(row, column), visible(textOf(row, column))])));
  view.append(h("div", { class: "bar" }, title, choice, note, h("span", { class: "grow" }), exporting({ name: "lens", canvas: () => map.canvas, svg: () => map.svg(), rows: everything })), map.element, top, behind);

  /** A row a cell: its place, every measure, its word. */
  function everything(): (string | number)[][] {
    const [above, across] = [told(named(0), lens.rows, lens.first?.[0]), told(named(1), lens.columns, lens.first?.[1])];
    const hasTexts = lens.texts.length > 0;
    return [
      [...above.names, ...across.names, ...lens.measures.map(({ quantity }) => quantity), ...(hasTexts ? ["text"] : [])],
      ...lens.rows.flatMap((_, row) => lens.columns.map((_, column) => [
        ...above.at(row), ...across.at(column), ...lens.values.map((values) => values[row * lens.columns.length + column] ?? Number.NaN), ...(hasTexts ? [textOf(row, column)] : []),
      ])),
    ];
  }

  const at = (row: number, column: number): number => lens.values[measure]?.[row * lens.columns.length + column] ?? Number.NaN;

  function draw(): void {
    const chosen = lens.measures[measure];
    const order = lens.rows.map((_, row) => flip(row));
    map.show({
      rows: order.map((row) => lens.rows[row] ?? ""),
      columns: lens.columns.map(visible),
      values: order.flatMap((row) => lens.columns.map((_, column) => at(row, column))),
      text: lens.texts.length ? order.flatMap((row) => lens.columns.map((_, column) => visible(lens.texts[row * lens.columns.length + column] ?? ""))) : undefined,
      rowsName: named(0),
      columnsName: named(1),
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
    last = { row, column };
    asks.select(row, column);
    tellTop(row, column);
    say(`${named(0)} ${lens.rows[row]}, ${visible(lens.columns[column] ?? "")}: ${compact(at(row, column))}`);
  }

  endings.listen(choice, "change", () => {
    asks.measure((measure = choice.selectedIndex));
    draw();
  });

  return {
    show(given) {
      const isAlike = given.rows.length === lens.rows.length && given.columns.length === lens.columns.length;
      lens = given;
      measure = Math.min(measure, Math.max(lens.measures.length - 1, 0));
      if (!isAlike) last = null;
      map.canvas.setAttribute("aria-label", `${named(0)} by ${named(1)}`);
      title.textContent = lens.title;
      note.textContent = lens.note;
      replace(choice, ...lens.measures.map(({ quantity }) => h("option", {}, quantity)));
      choice.selectedIndex = measure;
      choice.classList.toggle("hidden", lens.measures.length < 2);
      if (!last) replace(top);
      topOf = "";
      draw();
      if (last) tellTop(last.row, last.column);
    },
    setMeasure(number) {
      if (number === measure || number >= lens.measures.length) return;
      measure = choice.selectedIndex = number;
      draw();
    },
    mark(toRow, toColumn) {
      const [row, column] = [toRow ?? last?.row ?? Number.NaN, toColumn ?? last?.column ?? Number.NaN];
      const isHere = row >= 0 && column >= 0 && row < lens.rows.length && column < lens.columns.length;
      map.mark(isHere ? { row: flip(row), column } : null);
      if (!isHere) return;
      last = { row, column };
      tellTop(row, column);
    },
    end: () => endings.run(),
  };
}
