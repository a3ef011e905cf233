/** A heat map as SVG, dark on white as print wants it: a rectangle a cell, with its number for who points at it. */
import { css, inkOn, type Scale } from "./colours";
import { svg } from "./dom";
import { type Cells, cut, fitted, FONT, layoutOf, type Room, WORD_MIN } from "./heatmap_layout";
import { clean, INK, SOFT } from "./lines_picture";
import { compact, grouped } from "./table";

/** A file of so many cells has about a megabyte. */
export const SVG_CELLS_MAX = 5000;
const [LETTER, MARGIN, LEGEND, RAMP] = [6.7, 8, 26, 120];

export interface Words {
  label: string;
  /** What stands in a cell, in words. */
  told(index: number): string;
}

/** The picture; where there are too many cells for one, why there is none; null where there is nothing. */
export function heatmapPicture(cells: Cells, scale: Scale, { cell, width, rowsName }: Pick<Room, "cell" | "width"> & { rowsName?: string }, words: Words): SVGSVGElement | string | null {
  const count = cells.rows.length * cells.columns.length;
  if (!count) return null;
  if (count > SVG_CELLS_MAX) return `${grouped(count)} cells are too many for SVG: save PNG or CSV`;
  const measure = (label: string): number => LETTER * label.length;
  const at = layoutOf(cells, { width, measure, named: Boolean(rowsName), cell });
  const [wide, high] = [Math.max(at.width, RAMP + 200) + 2 * MARGIN, at.height + 2 * MARGIN + LEGEND];
  const title = clean(words.label);
  return svg(
    "svg",
    { viewBox: `0 0 ${wide} ${high}`, width: wide, height: high, role: "img", "aria-label": title, "font-family": "ui-monospace, SFMono-Regular, Menlo, Consolas, monospace", "font-size": FONT, fill: INK },
    svg("title", {}, title),
    svg("rect", { width: wide, height: high, fill: "#fff" }),
    svg("g", { transform: `translate(${MARGIN} ${MARGIN})` }, ...labels(cells, at, rowsName), ...drawn(cells, scale, at, words, measure), ...legend(cells, scale, at.height + MARGIN)),
  );
}

type Layout = ReturnType<typeof layoutOf>;

function labels({ rows, columns }: Cells, { left, top, wide, high, steep, skip }: Layout, rowsName?: string): SVGElement[] {
  const middle = top + (high * rows.length) / 2;
  const across = (column: number): number => left + column * wide + wide / 2;
  return [
    ...rows.flatMap((label, row) => (row % skip.rows ? [] : [svg("text", { x: left - 6, y: top + row * high + high / 2 + 4, "text-anchor": "end" }, clean(cut(label)))])),
    ...columns.flatMap((label, column) => {
      if (column % skip.columns) return [];
      const turn = steep ? `rotate(-45 ${across(column)} ${top - 6})` : null;
      return [svg("text", { x: across(column), y: top - 6, "text-anchor": steep ? "start" : "middle", transform: turn }, clean(cut(label)))];
    }),
    ...(rowsName ? [svg("text", { x: 10, y: middle, "text-anchor": "middle", transform: `rotate(-90 10 ${middle})` }, clean(rowsName))] : []),
  ];
}

function drawn({ rows, columns, values, text, corners }: Cells, scale: Scale, { left, top, wide, high }: Layout, { told }: Words, measure: (label: string) => number): SVGElement[] {
  const gap = Math.min(wide, high) > 6 ? 1 : 0;
  return rows.flatMap((_, row) =>
    columns.map((_, column) => {
      const index = row * columns.length + column;
      const colour = scale.colour(values[index] ?? Number.NaN);
      const [x, y] = [left + column * wide, top + row * high];
      const word = wide > WORD_MIN ? text?.[index] : undefined;
      return svg(
        "g",
        { class: "cell" },
        svg("title", {}, clean(told(index))),
        svg("rect", { x, y, width: wide - gap, height: high - gap, fill: css(colour), "shape-rendering": "crispEdges" }),
        corners?.has(index) ? svg("path", { class: "corner", d: `M${x + wide - 9} ${y}h8v8z`, fill: inkOn(colour) }) : null,
        word ? svg("text", { x: x + wide / 2, y: y + high / 2 + 4, "text-anchor": "middle", fill: inkOn(colour) }, clean(fitted(word, wide - 6, measure))) : null,
      );
    }),
  );
}

function legend({ quantity }: Cells, scale: Scale, y: number): SVGElement[] {
  const [low, high] = [compact(scale.low), compact(scale.high)];
  const start = LETTER * low.length + 8;
  const parts = Array.from({ length: 24 }, (_, part) => svg("rect", { x: start + (RAMP * part) / 24, y: y + 4, width: RAMP / 24, height: 8, fill: css(scale.colour(scale.low + ((scale.high - scale.low) * part) / 23)), "shape-rendering": "crispEdges" }));
  const end = start + RAMP + 8;
  return [
    svg("text", { x: 0, y: y + 12, fill: SOFT }, low), ...parts, svg("text", { x: end, y: y + 12, fill: SOFT }, high),
    ...(quantity ? [svg("text", { x: end + LETTER * high.length + 12, y: y + 12, fill: SOFT }, clean(quantity))] : []),
  ];
}
