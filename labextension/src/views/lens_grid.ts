/** A lens as a grid: layers from the last at the top, positions across, a measure to choose. */
import { h, replace, visible } from "../kit/dom";
import { exporting } from "../kit/export";
import { Heatmap } from "../kit/heatmap";
import { Endings } from "../kit/host";
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
}

export interface LensGridView {
  show(lens: Lens): void;
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
  let lens: Lens = { title: "", names: [], rows: [], columns: [], texts: [], measures: [], values: [] };
  let measure = 0;

  const title = h("b");
  const choice = h("select", { "aria-label": "What is shown" });
  const top = h("div", { class: "top" });
  // The last layer stands at the top, as in the literature: prediction grows upwards.
  const flip = (row: number): number => lens.rows.length - 1 - row;
  const map = new Heatmap(
    { label: "Layers by positions", rowsName: "layer", columnsName: "pos", cell: { min: 44, max: 92, height: 20 }, pick: (row, column) => void picked(flip(row), column) },
    endings,
  );
  const behind = tableBehind("Numbers of the grid", ["layer", "pos", "value", "token"], () => lens.rows.flatMap((layer, row) => lens.columns.map((pos, column) => [layer, visible(pos), at(row, column), visible(lens.texts[row * lens.columns.length + column] ?? "")])));
  view.append(h("div", { class: "bar" }, title, choice, h("span", { class: "grow" }), exporting({ name: "lens", canvas: () => map.canvas, rows: () => [["", ...lens.columns], ...map.rows()] })), map.element, top, behind);

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

  async function picked(row: number, column: number): Promise<void> {
    asks.select(row, column);
    const likely = await asks.top(row, column).catch((): Top => []);
    replace(top, ...likely.map(([token, chance]) => h("span", {}, h("code", {}, visible(token)), " ", h("span", { class: "soft" }, compact(chance)))));
    say(`layer ${lens.rows[row]}, ${visible(lens.columns[column] ?? "")}: ${compact(at(row, column))}`);
  }

  endings.listen(choice, "change", () => {
    measure = choice.selectedIndex;
    draw();
  });

  return {
    show(given) {
      lens = given;
      measure = 0;
      title.textContent = lens.title;
      replace(choice, ...lens.measures.map(({ quantity }) => h("option", {}, quantity)));
      choice.classList.toggle("hidden", lens.measures.length < 2);
      replace(top);
      draw();
    },
    mark(row, column) {
      map.mark(row === null || column === null || row >= lens.rows.length || column >= lens.columns.length ? null : { row: flip(row), column });
    },
    end: () => endings.run(),
  };
}
