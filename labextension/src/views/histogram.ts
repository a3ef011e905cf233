/** The spread of all numbers of a tensor, as bars: a picture, and the rows behind it. */
import { h, svg } from "../kit/dom";
import { compact } from "../kit/table";

export const BINS = ["from", "to", "numbers"];
const [WIDTH, HEIGHT, LINE] = [250, 110, 16];

export interface Spread {
  counts: Float32Array;
  low: number;
  high: number;
}

export function histogram({ counts, low, high }: Spread): Element {
  if (!counts.length) return h("p", { class: "soft" }, "No finite number in it.");
  const most = Math.max(...counts, 1);
  const each = WIDTH / counts.length;
  const text = { y: HEIGHT + LINE - 3, "font-size": 11, fill: "currentColor" };
  const bar = (count: number, index: number): SVGElement =>
    svg("rect", { x: index * each, y: HEIGHT - (HEIGHT * count) / most, width: Math.max(each - 1, 1), height: (HEIGHT * count) / most, fill: "#3b78b8" }, svg("title", {}, compact(count)));
  return h(
    "figure",
    { style: "margin:0" },
    svg(
      "svg",
      { viewBox: `0 0 ${WIDTH} ${HEIGHT + LINE}`, width: WIDTH, height: HEIGHT + LINE, style: "width:100%;height:auto", role: "img", "aria-label": `Histogram from ${compact(low)} to ${compact(high)}` },
      ...[...counts].map(bar),
      svg("text", { x: 0, ...text }, compact(low)),
      svg("text", { x: WIDTH, "text-anchor": "end", ...text }, compact(high)),
    ),
    h("figcaption", { class: "soft" }, `spread of its numbers; the tallest bar has ${compact(most)}`),
  );
}

/** From where to where each bar goes, and how many numbers it stands for. */
export function bins({ counts, low, high }: Spread): number[][] {
  const each = (high - low) / (counts.length || 1);
  return [...counts].map((count, index) => [low + index * each, low + (index + 1) * each, count]);
}
