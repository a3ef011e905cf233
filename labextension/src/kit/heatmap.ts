/**
 * A heat map on a canvas: labelled rows and columns, a cursor for keys and mouse, a brush, a legend.
 *
 *     const map = new Heatmap({ label: "Layers by positions", pick: (row, column) => … }, endings);
 *     view.append(map.element);
 *     map.show({ rows, columns, values, text });
 */
import { css, inkOn, scale, type Scale } from "./colours";
import { h, replace } from "./dom";
import type { Endings } from "./host";
import { compact } from "./table";

export interface Cells {
  rows: string[];
  columns: string[];
  /** Row after row. */
  values: ArrayLike<number>;
  /** What is written in a cell where there is room, row after row. */
  text?: string[];
  limits?: [number, number];
  quantity?: string;
  /** What a column is, where that is known only now. */
  columnsName?: string;
  /** Cells with a corner of their own, by number: those that differ in kind. */
  corners?: Set<number>;
}

export interface Place {
  row: number;
  column: number;
}

export interface Wishes {
  label: string;
  rowsName?: string;
  columnsName?: string;
  pick?: (row: number, column: number) => void;
  hover?: (at: Place | null) => void;
  /** Told the cells of a rectangle drawn with the mouse, or with shift and the arrow keys. */
  brush?: (cells: Place[]) => void;
  /** More words for the line under the map. */
  words?: (row: number, column: number) => string;
  cell?: { min: number; max: number; height: number };
  width?: number;
}

const FONT = 11;
/** A browser draws no wider or higher canvas than 32,767 dots. */
const CANVAS_MAX = 32_000;
const LABEL_MAX = 18;

export class Heatmap {
  readonly element: HTMLElement;
  readonly canvas: HTMLCanvasElement;
  private cells: Cells = { rows: [], columns: [], values: [] };
  private scale: Scale = scale([]);
  private size = { left: 0, top: 0, wide: 10, high: 10 };
  private width = 640;
  /** Where the cursor is: under the mouse, or else at home, which is where something was picked. */
  private at: Place | null = null;
  private home: Place | null = null;
  private corner: Place | null = null;
  private brushed = new Set<number>();
  private readonly line = h("div", { class: "soft", "aria-live": "polite", style: "min-height:1.6em;white-space:pre-wrap" });
  private readonly legend = h("div", { class: "soft", style: "display:flex;gap:6px;align-items:center;font-size:11.5px" });

  constructor(
    private readonly wishes: Wishes,
    endings: Endings,
  ) {
    this.canvas = h("canvas", { tabindex: "0", role: "img", "aria-roledescription": "heat map", "aria-label": wishes.label, style: "display:block;touch-action:none;outline-offset:-2px" });
    this.element = h("div", {}, h("div", { style: "overflow:auto;max-height:560px" }, this.canvas), this.legend, this.line);
    endings.listen(this.canvas, "pointermove", (event) => this.moved(event as PointerEvent));
    endings.listen(this.canvas, "pointerleave", () => this.point(this.home));
    endings.listen(this.canvas, "pointerdown", (event) => this.pressed(event as PointerEvent));
    endings.listen(this.canvas, "pointerup", () => this.released());
    endings.listen(this.canvas, "keydown", (event) => this.keyed(event as KeyboardEvent));
    const sized = new ResizeObserver(() => this.draw());
    sized.observe(this.element);
    const themed = new MutationObserver(() => this.draw());
    themed.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "class"] });
    endings.add(() => (sized.disconnect(), themed.disconnect()));
  }

  show(cells: Cells): void {
    this.cells = cells;
    this.scale = scale(cells.values, cells.limits);
    this.brushed.clear();
    const isThere = (at: Place | null): boolean => at !== null && at.row < cells.rows.length && at.column < cells.columns.length;
    if (!isThere(this.home)) this.home = null;
    if (!isThere(this.at)) this.at = this.home;
    this.draw();
    const ramp = Array.from({ length: 9 }, (_, i) => css(this.scale.colour(this.scale.low + ((this.scale.high - this.scale.low) * i) / 8)));
    replace(
      this.legend,
      h("span", {}, cells.values.length ? compact(this.scale.low) : "nothing to show"),
      cells.values.length ? h("span", { style: `display:inline-block;width:120px;height:8px;border-radius:2px;background:linear-gradient(90deg,${ramp.join(",")})` }) : null,
      cells.values.length ? h("span", {}, compact(this.scale.high)) : null,
      cells.quantity ? h("span", {}, cells.quantity) : null,
    );
  }

  /** Put the cursor somewhere without telling anyone. */
  mark(at: Place | null): void {
    this.home = at;
    this.stand(at);
  }

  private stand(at: Place | null): void {
    this.at = at;
    this.tell();
    this.draw();
  }

  /** The cells that are brushed. */
  get chosen(): Place[] {
    const wide = this.cells.columns.length || 1;
    return [...this.brushed].sort((a, b) => a - b).map((index) => ({ row: Math.floor(index / wide), column: index % wide }));
  }

  /** Brush cells without telling anyone. */
  brushCells(cells: Place[]): void {
    this.brushed = new Set(cells.map(({ row, column }) => row * this.cells.columns.length + column));
    this.draw();
  }

  rows(): (string | number)[][] {
    const { rows, columns, values } = this.cells;
    return rows.map((name, row) => [name, ...columns.map((_, column) => values[row * columns.length + column] ?? Number.NaN)]);
  }

  // Drawing ---------------------------------------------------------------------------------------

  private draw(): void {
    const { rows, columns, values, text } = this.cells;
    const context = this.canvas.getContext("2d");
    if (!context) return;
    const look = getComputedStyle(this.element);
    const [ink, soft] = [look.color || "#222", look.getPropertyValue("--soft") || "#666"];
    const small = `${FONT}px ${look.getPropertyValue("--mono") || "monospace"}`;
    context.font = small;
    const wide = (labels: string[]): number => Math.max(0, ...labels.slice(0, 400).map((label) => context.measureText(cut(label)).width));
    const left = Math.ceil(wide(rows)) + 10 + (this.wishes.rowsName ? 14 : 0);
    // While JupyterLab changes its theme nothing has a width: the last one holds.
    this.width = this.element.clientWidth || this.width;
    const room = (this.wishes.width ?? this.width) - left - 4;
    const limits = this.wishes.cell ?? { min: text ? 44 : 3, max: text ? 90 : 30, height: 18 };
    const fits = Math.max(1, Math.floor((CANVAS_MAX - left) / (columns.length || 1)));
    const each = Math.min(fits, Math.max(limits.min, Math.min(limits.max, Math.floor((room || 600) / (columns.length || 1)))));
    const high = text ? Math.max(limits.height, 18) : Math.max(Math.min(limits.min, limits.height), Math.min(limits.height, Math.floor(480 / (rows.length || 1))));
    const steep = wide(columns) > each - 4;
    const top = columns.length ? (steep ? Math.ceil(wide(columns) * 0.72) + 12 : FONT + 8) : 0;
    this.size = { left, top, wide: each, high };
    const [width, height] = [left + each * columns.length + (steep ? Math.ceil(wide(columns) * 0.7) : 2), top + high * rows.length + 2];
    const dots = Math.min(window.devicePixelRatio || 1, CANVAS_MAX / width, CANVAS_MAX / height);
    Object.assign(this.canvas, { width: Math.ceil(width * dots), height: Math.ceil(height * dots) });
    Object.assign(this.canvas.style, { width: `${width}px`, height: `${height}px` });
    context.scale(dots, dots);
    context.font = small;
    context.textBaseline = "middle";
    this.drawLabels(context, ink, steep);
    const edge = (at: number): number => Math.round(at * dots) / dots; // between two dots there would be seams
    for (let row = 0; row < rows.length; row++)
      for (let column = 0; column < columns.length; column++) {
        const index = row * columns.length + column;
        const colour = this.scale.colour(values[index] ?? Number.NaN);
        const [x, y] = [edge(left + column * each), edge(top + row * high)];
        context.fillStyle = css(colour);
        context.fillRect(x, y, edge(left + (column + 1) * each) - x - (each > 6 ? 1 : 0), edge(top + (row + 1) * high) - y - (high > 6 ? 1 : 0));
        if (this.cells.corners?.has(index)) {
          context.fillStyle = inkOn(colour);
          context.beginPath();
          context.moveTo(x + each - 9, y);
          context.lineTo(x + each - 1, y);
          context.lineTo(x + each - 1, y + 8);
          context.fill();
        }
        const words = text?.[index];
        if (words && each > 24) {
          context.fillStyle = inkOn(colour);
          context.textAlign = "center";
          context.fillText(fitted(context, words, each - 6), x + each / 2, y + high / 2, each - 2);
        }
      }
    this.drawMarks(context, soft);
  }

  private drawLabels(context: CanvasRenderingContext2D, ink: string, steep: boolean): void {
    const { left, top, wide, high } = this.size;
    const { rows, columns } = this.cells;
    context.fillStyle = ink;
    context.textAlign = "right";
    const skipRows = Math.ceil((FONT + 1) / high);
    rows.forEach((label, row) => row % skipRows === 0 && context.fillText(cut(label), left - 6, top + row * high + high / 2));
    context.textAlign = steep ? "left" : "center";
    const skipColumns = Math.ceil((steep ? FONT + 8 : 1) / wide);
    columns.forEach((label, column) => {
      if (column % skipColumns) return;
      context.save();
      context.translate(left + column * wide + wide / 2, top - 7);
      if (steep) context.rotate(-Math.PI / 4);
      context.fillText(cut(label), 0, 0);
      context.restore();
    });
    if (!this.wishes.rowsName) return;
    context.save();
    context.translate(7, top + (high * rows.length) / 2);
    context.rotate(-Math.PI / 2);
    context.textAlign = "center";
    context.fillText(this.wishes.rowsName, 0, 0);
    context.restore();
  }

  private drawMarks(context: CanvasRenderingContext2D, soft: string): void {
    const { left, top, wide, high } = this.size;
    // Dark within light, so that it shows on every colour of the map and on both papers.
    const frame = (row: number, column: number, outer: string): void => {
      for (const [colour, inset] of [[outer, 0], ["#000", 2]] as const) {
        context.strokeStyle = colour;
        context.lineWidth = 2;
        context.strokeRect(left + column * wide + inset, top + row * high + inset, wide - 1 - 2 * inset, high - 1 - 2 * inset);
      }
    };
    for (const { row, column } of this.chosen) frame(row, column, soft);
    const isAway = this.home && this.at && (this.home.row !== this.at.row || this.home.column !== this.at.column);
    if (this.at) frame(this.at.row, this.at.column, isAway ? "#fff" : "#ff9d2e");
    if (this.home && isAway) frame(this.home.row, this.home.column, "#ff9d2e");
  }

  // Pointing --------------------------------------------------------------------------------------

  private under(event: PointerEvent): Place | null {
    const box = this.canvas.getBoundingClientRect();
    const row = Math.floor((event.clientY - box.top - this.size.top) / this.size.high);
    const column = Math.floor((event.clientX - box.left - this.size.left) / this.size.wide);
    return row >= 0 && row < this.cells.rows.length && column >= 0 && column < this.cells.columns.length ? { row, column } : null;
  }

  private moved(event: PointerEvent): void {
    const at = this.under(event);
    if (this.corner && at) this.stretch(this.corner, at);
    else this.point(at);
  }

  private point(at: Place | null): void {
    if (at?.row === this.at?.row && at?.column === this.at?.column) return;
    this.stand(at);
    this.wishes.hover?.(at);
  }

  private pressed(event: PointerEvent): void {
    const at = this.under(event);
    if (!at) return;
    this.home = this.at = at;
    if (this.wishes.brush) {
      this.corner = at;
      this.stretch(at, at);
    }
    this.wishes.pick?.(at.row, at.column);
  }

  private released(): void {
    if (this.corner) this.wishes.brush?.(this.chosen);
    this.corner = null;
  }

  private stretch(from: Place, to: Place): void {
    this.brushed.clear();
    for (let row = Math.min(from.row, to.row); row <= Math.max(from.row, to.row); row++)
      for (let column = Math.min(from.column, to.column); column <= Math.max(from.column, to.column); column++)
        this.brushed.add(row * this.cells.columns.length + column);
    this.stand(to);
  }

  private keyed(event: KeyboardEvent): void {
    const move: Record<string, [number, number]> = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    const by = move[event.key];
    const at = this.at ?? { row: 0, column: 0 };
    if (by) {
      event.preventDefault();
      const clamp = (value: number, count: number): number => Math.min(Math.max(value, 0), count - 1);
      const to = this.at ? { row: clamp(at.row + by[0], this.cells.rows.length), column: clamp(at.column + by[1], this.cells.columns.length) } : at;
      if (event.shiftKey && this.wishes.brush) {
        this.anchor ??= at;
        this.stretch(this.anchor, to);
        this.wishes.brush(this.chosen);
      } else {
        this.anchor = null;
        this.point(to);
      }
    } else if ((event.key === "Enter" || event.key === " ") && this.at) {
      event.preventDefault();
      this.home = at;
      this.wishes.pick?.(at.row, at.column);
    }
  }

  private anchor: Place | null = null;

  private tell(): void {
    const { rows, columns, values, text } = this.cells;
    if (!this.at) {
      this.line.textContent = "";
      return;
    }
    const { row, column } = this.at;
    const index = row * columns.length + column;
    const where = [`${this.wishes.rowsName ?? "row"} ${rows[row]}`, `${this.cells.columnsName ?? this.wishes.columnsName ?? "column"} ${columns[column]}`, compact(values[index] ?? Number.NaN), text?.[index], this.wishes.words?.(row, column)];
    this.line.textContent = where.filter(Boolean).join(" · ");
  }
}

function cut(label: string): string {
  return label.length > LABEL_MAX ? `${label.slice(0, LABEL_MAX - 1)}…` : label;
}

function fitted(context: CanvasRenderingContext2D, words: string, width: number): string {
  if (context.measureText(words).width <= width) return words;
  let end = words.length;
  while (end > 1 && context.measureText(`${words.slice(0, end)}…`).width > width) end--;
  return `${words.slice(0, end)}…`;
}
