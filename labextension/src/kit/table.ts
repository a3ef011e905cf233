/** The table behind every picture: the same numbers for a screen reader, or for who wants them. */
import { h, replace } from "./dom";

export type Cell = string | number;

const ROWS_MAX = 500;

/** A folded table; its rows are asked for when it is opened, and its columns too where they differ. */
export function tableBehind(caption: string, columns: string[] | (() => string[]), rows: () => Cell[][], title = "As a table"): HTMLDetailsElement {
  const place = h("div", { class: "scroll" });
  const fold = h("details", { class: "behind" }, h("summary", { class: "soft" }, title), place);
  const fill = (): void => {
    if (!fold.open) return;
    const all = rows();
    replace(place, table(caption, typeof columns === "function" ? columns() : columns, all.slice(0, ROWS_MAX)), all.length > ROWS_MAX && h("p", { class: "soft" }, `… and ${all.length - ROWS_MAX} rows more: save them as CSV`));
  };
  fold.addEventListener("toggle", fill);
  return fold;
}

export function table(caption: string, columns: string[], rows: Cell[][]): HTMLTableElement {
  const cell = (value: Cell): HTMLElement => h("td", { class: typeof value === "number" && "number" }, typeof value === "number" ? compact(value) : value);
  return h(
    "table",
    {},
    h("caption", { class: "soft" }, caption),
    h("thead", {}, h("tr", {}, ...columns.map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, ...rows.map((row) => h("tr", {}, ...row.map(cell)))),
  );
}

/** A number in few characters: 4 digits that count. */
export function compact(value: number): string {
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return grouped(value);
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "NaN" : value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  return size >= 1e5 || size < 1e-3 ? value.toExponential(2) : Number(value.toPrecision(4)).toString();
}

/** A number with its thousands apart. By `toLocaleString` the first of a page takes 15 ms: it loads a locale. */
export function grouped(value: number): string {
  return String(value).replace(/\B(?<!\.\d*)(?=(\d{3})+(?!\d))/g, ",");
}

/** A count in three digits: 198k, 1.57M, 70.6B. */
export function short(count: number): string {
  const units = ["", "k", "M", "B", "T"];
  let [size, unit] = [count, 0];
  while (size >= 999.5 && unit < units.length - 1) (size /= 1000), unit++;
  return (unit ? Number(size.toPrecision(3)).toString() : String(count)) + units[unit];
}

/** A size in bytes, in words. */
export function bytes(size: number): string {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (size >= 999.5 && unit < units.length - 1) (size /= 1000), unit++;
  return `${unit ? Number(size.toPrecision(3)) : size} ${units[unit]}`;
}
