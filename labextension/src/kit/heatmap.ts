/**
 * A heat map on a canvas: labelled rows and columns, a cursor for keys and mouse, a brush, a legend.
 *
 *     const map = new Heatmap({ label: "Layers by positions", pick: (row, column) => … }, endings);
 *     view.append(map.element);
 *     map.show({ rows, columns, values, text });
 *
 * The cursor and the brush stand over the canvas: moving them draws no cell.
 */
import { css, scale, type Scale } from "./colours";
import { h, replace, svg } from "./dom";
import { paint } from "./heatmap_canvas";
import { type Cells, type CellSize, FONT, type Layout, layoutOf } from "./heatmap_layout";
import { heatmapPicture } from "./heatmap_svg";
import type { Endings } from "./host";
import { compact } from "./table";

export type { Cells } from "./heatmap_layout";

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
  /** Told the cells of a rectangle when it is drawn: with the mouse, or with the arrow keys while Shift is held. */
  brush?: (cells: Place[]) => void;
  /** More words for the line under the map. */
  words?: (row: number, column: number) => string;
  cell?: CellSize;
  width?: number;
}

const [CURSOR, WIDTH] = ["#ff9d2e", 640];

export class Heatmap {
  readonly element: HTMLElement;
  readonly canvas: HTMLCanvasElement;
  private cells: Cells = { rows: [], columns: [], values: [] };
  private scale: Scale = scale([]);
  private layout: Layout = { left: 0, top: 0, wide: 10, high: 10, steep: false, width: 0, height: 0, skip: { rows: 1, columns: 1 } };
  private width = WIDTH;
  /** Where the cursor is: under the mouse, or else at home, which is where something was picked. */
  private at: Place | null = null;
  private home: Place | null = null;
  /** The rectangle that is brushed, from where it began. */
  private brushed: { from: Place; to: Place } | null = null;
  /** Where a drag began, while there is one. */
  private dragged: Place | null = null;
  /** Where a brush by keys began, and whether it has not been told yet. */
  private anchor: Place | null = null;
  private isStretching = false;
  private readonly line = h("div", { class: "soft", "aria-live": "polite", style: "min-height:1.6em;white-space:pre-wrap" });
  private readonly legend = h("div", { class: "soft", style: "display:flex;gap:6px;align-items:center;font-size:11.5px" });
  private readonly marks = svg("svg", { "aria-hidden": "true", width: 0, height: 0, style: "position:absolute;left:0;top:0;pointer-events:none" });

  constructor(
    private readonly wishes: Wishes,
    endings: Endings,
  ) {
    this.canvas = h("canvas", { tabindex: "0", role: "img", "aria-roledescription": "heat map", "aria-label": wishes.label, style: "display:block;touch-action:none;outline-offset:-2px" });
    this.element = h("div", {}, h("div", { style: "overflow:auto;max-height:560px;position:relative" }, this.canvas, this.marks), this.legend, this.line);
    const pointed = (event: string, heard: (event: PointerEvent) => void): void => endings.listen(this.canvas, event, (it) => heard(it as PointerEvent));
    pointed("pointermove", (event) => this.moved(event));
    pointed("pointerleave", () => this.dragged || this.point(this.home));
    pointed("pointerdown", (event) => this.pressed(event));
    pointed("pointerup", () => this.released());
    pointed("pointercancel", () => this.released());
    endings.listen(this.canvas, "keydown", (event) => this.keyed(event as KeyboardEvent));
    endings.listen(this.canvas, "keyup", (event) => (event as KeyboardEvent).key === "Shift" && this.settle());
    endings.listen(this.canvas, "blur", () => this.settle());
    const sized = new ResizeObserver(() => this.draw());
    sized.observe(this.element);
    const themed = new MutationObserver(() => this.draw());
    themed.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "class"] });
    endings.add(() => (sized.disconnect(), themed.disconnect()));
  }

  show(cells: Cells): void {
    if (!alike(cells.rows, this.cells.rows) || !alike(cells.columns, this.cells.columns)) this.anchor = null;
    this.cells = cells;
    this.scale = scale(cells.values, cells.limits);
    this.brushed = null;
    const isThere = (at: Place | null): boolean => at !== null && at.row < cells.rows.length && at.column < cells.columns.length;
    if (!isThere(this.home)) this.home = null;
    if (!isThere(this.dragged)) this.dragged = null;
    if (!isThere(this.at)) this.at = this.home;
    this.tell();
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
    this.drawMarks();
  }

  /** The cells that are brushed. */
  get chosen(): Place[] {
    if (!this.brushed) return [];
    const [top, left, bottom, right] = sidesOf(this.brushed);
    const found: Place[] = [];
    for (let row = top; row <= bottom; row++) for (let column = left; column <= right; column++) found.push({ row, column });
    return found;
  }

  /** Brush a rectangle of cells without telling anyone. */
  brushCells(cells: Place[]): void {
    const [from, to] = [cells[0], cells[cells.length - 1]];
    this.brushed = from && to ? { from, to } : null;
    this.drawMarks();
  }

  /** Its numbers under the names of its columns, each row behind its name. */
  rows(): (string | number)[][] {
    const { rows, columns, values } = this.cells;
    return [[`${this.rowsName} \\ ${this.columnsName}`, ...columns], ...rows.map((name, row) => [name, ...columns.map((_, column) => values[row * columns.length + column] ?? Number.NaN)])];
  }

  /** The same as a picture to be saved; where there are too many cells for one, why there is none. */
  svg(): SVGSVGElement | string | null {
    const { wishes, width } = this;
    return heatmapPicture(this.cells, this.scale, { cell: wishes.cell, width: wishes.width ?? width, rowsName: this.namedRows }, { label: wishes.label, told: (index) => this.told(index) });
  }

  /** Where its first cell stands on the canvas. */
  get corner(): { x: number; y: number } {
    return { x: this.layout.left, y: this.layout.top };
  }

  private get namedRows(): string | undefined {
    return this.cells.rowsName ?? this.wishes.rowsName;
  }

  private get rowsName(): string {
    return this.namedRows ?? "row";
  }

  private get columnsName(): string {
    return this.cells.columnsName ?? this.wishes.columnsName ?? "column";
  }

  // Drawing ---------------------------------------------------------------------------------------

  private draw(): void {
    const context = this.canvas.getContext("2d");
    if (!context) return;
    const look = getComputedStyle(this.element);
    const font = `${FONT}px ${look.getPropertyValue("--mono") || "monospace"}`;
    context.font = font;
    // While JupyterLab changes its theme nothing has a width: the last one holds.
    this.width = this.element.clientWidth || this.width;
    const measure = (label: string): number => context.measureText(label).width;
    this.layout = layoutOf(this.cells, { width: this.wishes.width ?? this.width, measure, named: Boolean(this.namedRows), cell: this.wishes.cell });
    paint(this.canvas, context, this.cells, this.scale, this.layout, { ink: look.color || "#222", font, rowsName: this.namedRows });
    this.drawMarks();
  }

  private drawMarks(): void {
    const { left, top, wide, high, width, height } = this.layout;
    // Dark within light, so that it shows on every colour of the map and on both papers.
    const frame = (name: string, { from, to }: { from: Place; to: Place }, outer: string): SVGElement[] => {
      const [first, start, last, end] = sidesOf({ from, to });
      const [x, y, across, down] = [left + start * wide, top + first * high, (end - start + 1) * wide - 1, (last - first + 1) * high - 1];
      const side = (inset: number, stroke: string, named: string | null): SVGElement =>
        svg("rect", { class: named, x: x + inset, y: y + inset, width: Math.max(across - 2 * inset, 0), height: Math.max(down - 2 * inset, 0), fill: "none", stroke, "stroke-width": 2 });
      return [side(0, outer, name), ...(Math.min(across, down) > 5 ? [side(2, "#000", null)] : [])];
    };
    const one = (at: Place): { from: Place; to: Place } => ({ from: at, to: at });
    const isAway = this.home && this.at && (this.home.row !== this.at.row || this.home.column !== this.at.column);
    this.marks.setAttribute("width", String(width));
    this.marks.setAttribute("height", String(height));
    replace(
      this.marks,
      ...(this.brushed ? frame("brush", this.brushed, "#fff") : []),
      ...(this.at ? frame("cursor", one(this.at), isAway ? "#fff" : CURSOR) : []),
      ...(this.home && isAway ? frame("home", one(this.home), CURSOR) : []),
    );
  }

  // Pointing --------------------------------------------------------------------------------------

  private under(event: PointerEvent): Place {
    const box = this.canvas.getBoundingClientRect();
    return {
      row: Math.floor((event.clientY - box.top - this.layout.top) / this.layout.high),
      column: Math.floor((event.clientX - box.left - this.layout.left) / this.layout.wide),
    };
  }

  private isCell({ row, column }: Place): boolean {
    return row >= 0 && row < this.cells.rows.length && column >= 0 && column < this.cells.columns.length;
  }

  /** The cell nearest to a place. */
  private nearest({ row, column }: Place): Place {
    const clamp = (value: number, count: number): number => Math.min(Math.max(value, 0), count - 1);
    return { row: clamp(row, this.cells.rows.length), column: clamp(column, this.cells.columns.length) };
  }

  private moved(event: PointerEvent): void {
    if (this.dragged && !(event.buttons & 1)) this.released(); // the button was let go where nobody told of it
    const at = this.under(event);
    if (this.dragged) this.stretch(this.dragged, this.nearest(at));
    else this.point(this.isCell(at) ? at : null);
  }

  private point(at: Place | null): void {
    if (at?.row === this.at?.row && at?.column === this.at?.column) return;
    this.stand(at);
    this.wishes.hover?.(at);
  }

  private pressed(event: PointerEvent): void {
    const at = this.under(event);
    if (event.button !== 0 || !this.isCell(at)) return;
    this.home = this.at = at;
    if (this.wishes.brush) {
      this.dragged = at;
      this.canvas.setPointerCapture(event.pointerId); // so that the end of a drag comes here from anywhere
      this.stretch(at, at);
    }
    this.wishes.pick?.(at.row, at.column);
  }

  private released(): void {
    if (!this.dragged) return;
    this.dragged = null;
    this.wishes.brush?.(this.chosen);
  }

  private stretch(from: Place, to: Place): void {
    this.brushed = { from, to };
    this.stand(to);
  }

  private keyed(event: KeyboardEvent): void {
    const move: Record<string, [number, number]> = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    const by = move[event.key];
    if (!this.cells.values.length) return;
    const at = this.at ?? { row: 0, column: 0 };
    if (by) {
      event.preventDefault();
      const to = this.at ? this.nearest({ row: at.row + by[0], column: at.column + by[1] }) : at;
      if (event.shiftKey && this.wishes.brush) {
        this.anchor ??= at;
        this.isStretching = true;
        this.stretch(this.anchor, to);
      } else {
        this.anchor = null;
        this.point(to);
      }
    } else if ((event.key === "Enter" || event.key === " ") && this.at) {
      event.preventDefault();
      this.home = at;
      this.drawMarks();
      this.wishes.pick?.(at.row, at.column);
    }
  }

  /** A brush by keys is done. */
  private settle(): void {
    if (!this.isStretching) return;
    this.isStretching = false;
    this.wishes.brush?.(this.chosen);
  }

  private tell(): void {
    const words = this.at ? this.told(this.at.row * this.cells.columns.length + this.at.column) : "";
    if (this.line.textContent !== words) this.line.textContent = words; // it is spoken where it changes
  }

  private told(index: number): string {
    const { rows, columns, values, text } = this.cells;
    const [row, column] = [Math.floor(index / columns.length), index % columns.length];
    return [`${this.rowsName} ${rows[row]}`, `${this.columnsName} ${columns[column]}`, compact(values[index] ?? Number.NaN), text?.[index], this.wishes.words?.(row, column)].filter(Boolean).join(" · ");
  }
}

function sidesOf({ from, to }: { from: Place; to: Place }): [top: number, left: number, bottom: number, right: number] {
  return [Math.min(from.row, to.row), Math.min(from.column, to.column), Math.max(from.row, to.row), Math.max(from.column, to.column)];
}

function alike(one: string[], other: string[]): boolean {
  return one.length === other.length && one.every((it, index) => it === other[index]);
}
