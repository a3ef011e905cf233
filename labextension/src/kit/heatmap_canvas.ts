/** The cells and labels of a heat map on a canvas. */
import { css, inkOn, type Scale } from "./colours";
import { CANVAS_MAX, type Cells, cut, fitted, type Layout, WORD_MIN } from "./heatmap_layout";

export interface Look {
  ink: string;
  font: string;
  /** What rows are. */
  rowsName?: string;
}

export function paint(canvas: HTMLCanvasElement, context: CanvasRenderingContext2D, cells: Cells, scale: Scale, at: Layout, look: Look): void {
  const dots = Math.min(window.devicePixelRatio || 1, CANVAS_MAX / at.width, CANVAS_MAX / at.height);
  Object.assign(canvas, { width: Math.ceil(at.width * dots), height: Math.ceil(at.height * dots) });
  Object.assign(canvas.style, { width: `${at.width}px`, height: `${at.height}px` });
  context.scale(dots, dots);
  context.font = look.font;
  context.textBaseline = "middle";
  paintLabels(context, cells, at, look);
  paintCells(context, cells, scale, at, dots);
}

function paintCells(context: CanvasRenderingContext2D, { rows, columns, values, text, corners }: Cells, scale: Scale, { left, top, wide, high }: Layout, dots: number): void {
  const edge = (at: number): number => Math.round(at * dots) / dots; // between two dots there would be seams
  const measure = (words: string): number => context.measureText(words).width;
  context.textAlign = "center";
  for (let row = 0; row < rows.length; row++)
    for (let column = 0; column < columns.length; column++) {
      const index = row * columns.length + column;
      const colour = scale.colour(values[index] ?? Number.NaN);
      const [x, y] = [edge(left + column * wide), edge(top + row * high)];
      context.fillStyle = css(colour);
      context.fillRect(x, y, edge(left + (column + 1) * wide) - x - (wide > 6 ? 1 : 0), edge(top + (row + 1) * high) - y - (high > 6 ? 1 : 0));
      if (corners?.has(index)) {
        context.fillStyle = inkOn(colour);
        context.beginPath();
        context.moveTo(x + wide - 9, y);
        context.lineTo(x + wide - 1, y);
        context.lineTo(x + wide - 1, y + 8);
        context.fill();
      }
      const words = text?.[index];
      if (words && wide > WORD_MIN) {
        context.fillStyle = inkOn(colour);
        context.fillText(fitted(words, wide - 6, measure), x + wide / 2, y + high / 2, wide - 2);
      }
    }
}

function paintLabels(context: CanvasRenderingContext2D, { rows, columns }: Cells, { left, top, wide, high, steep, skip }: Layout, { ink, rowsName }: Look): void {
  context.fillStyle = ink;
  context.textAlign = "right";
  rows.forEach((label, row) => row % skip.rows === 0 && context.fillText(cut(label), left - 6, top + row * high + high / 2));
  context.textAlign = steep ? "left" : "center";
  columns.forEach((label, column) => {
    if (column % skip.columns) return;
    context.save();
    context.translate(left + column * wide + wide / 2, top - 7);
    if (steep) context.rotate(-Math.PI / 4);
    context.fillText(cut(label), 0, 0);
    context.restore();
  });
  if (!rowsName) return;
  context.save();
  context.translate(7, top + (high * rows.length) / 2);
  context.rotate(-Math.PI / 2);
  context.textAlign = "center";
  context.fillText(rowsName, 0, 0);
  context.restore();
}
