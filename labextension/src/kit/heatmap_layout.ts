/** Where the parts of a heat map stand: the same on the screen and in a file. */
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
  /** What a row is, where that is known only now. */
  rowsName?: string;
  /** Cells with a corner of their own, by number: those that differ in kind. */
  corners?: Set<number>;
}

export interface CellSize {
  min: number;
  max: number;
  height: number;
}

export interface Room {
  width: number;
  /** How wide a label is. */
  measure(label: string): number;
  /** Whether rows have a name, which is written beside them. */
  named: boolean;
  cell?: CellSize;
}

export interface Layout {
  left: number;
  top: number;
  wide: number;
  high: number;
  /** Whether the names of columns lean. */
  steep: boolean;
  width: number;
  height: number;
  /** Of so many rows or columns one is named. */
  skip: { rows: number; columns: number };
}

export const FONT = 11;
/** A browser draws no wider or higher canvas than 32,767 dots. */
export const CANVAS_MAX = 32_000;
/** A cell so wide has its word in it. */
export const WORD_MIN = 24;
const [LABEL_MAX, MEASURED_MAX] = [18, 400];

export function layoutOf({ rows, columns, text }: Cells, room: Room): Layout {
  const widest = (labels: string[]): number => labels.slice(0, MEASURED_MAX).reduce((most, label) => Math.max(most, room.measure(cut(label))), 0);
  const across = widest(columns);
  const left = Math.ceil(widest(rows)) + 10 + (room.named ? 14 : 0);
  const limits = room.cell ?? { min: text ? 44 : 3, max: text ? 90 : 30, height: 18 };
  const fits = Math.max(1, Math.floor((CANVAS_MAX - left) / (columns.length || 1)));
  const wide = Math.min(fits, Math.max(limits.min, Math.min(limits.max, Math.floor((room.width - left - 4 || 600) / (columns.length || 1)))));
  const high = text ? Math.max(limits.height, 18) : Math.max(Math.min(limits.min, limits.height), Math.min(limits.height, Math.floor(480 / (rows.length || 1))));
  const steep = across > wide - 4;
  const top = columns.length ? (steep ? Math.ceil(across * 0.72) + 12 : FONT + 8) : 0;
  return {
    left, top, wide, high, steep,
    width: left + wide * columns.length + (steep ? Math.ceil(across * 0.7) : 2),
    height: top + high * rows.length + 2,
    skip: { rows: Math.ceil((FONT + 1) / high), columns: Math.ceil((steep ? FONT + 8 : 1) / wide) },
  };
}

export function cut(label: string): string {
  return label.length > LABEL_MAX ? `${label.slice(0, LABEL_MAX - 1)}…` : label;
}

/** As much of some words as fits. */
export function fitted(words: string, width: number, measure: (words: string) => number): string {
  if (measure(words) <= width) return words;
  let end = words.length;
  while (end > 1 && measure(`${words.slice(0, end)}…`) > width) end--;
  return `${words.slice(0, end)}…`;
}
