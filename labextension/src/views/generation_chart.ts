/** The entropy of each step as a line a branch, over which one can scrub. */
import { svg } from "../kit/dom";
import { compact } from "../kit/table";
import type { Step } from "./generation_data";

export interface Line {
  name: string;
  colour: string;
  steps: Step[];
  start: number;
}

/** Of a longer text, the highest of some neighbours stands for them. */
const POINTS_MAX = 2000;
const [HEIGHT, LEFT, BOTTOM] = [92, 40, 16];

/** A picture of the lines, and which step a place across it is. */
export function entropyChart(lines: Line[], at: number, width: number): { picture: SVGSVGElement; stepAt: (share: number) => number } {
  const count = Math.max(1, ...lines.map((line) => line.steps.length));
  const high = lines.reduce((most, line) => line.steps.reduce((most, { entropy }) => Math.max(most, entropy ?? 0), most), 1e-9);
  const x = (step: number): number => LEFT + ((width - LEFT - 8) * (step + 0.5)) / count;
  const y = (entropy: number): number => 6 + (HEIGHT - BOTTOM - 8) * (1 - entropy / high);
  const label = { "font-size": 10.5, fill: "currentColor", "fill-opacity": 0.75 };
  const picture = svg(
    "svg",
    { viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, role: "img", style: "display:block;cursor:crosshair;touch-action:none", "aria-label": `Entropy of each step: ${lines.map(({ name }) => name).join(" and ")}` },
    svg("line", { x1: LEFT, x2: width - 8, y1: y(0), y2: y(0), stroke: "currentColor", "stroke-opacity": 0.25 }),
    svg("rect", { x: x(at) - (x(1) - x(0)) / 2, width: x(1) - x(0), y: 2, height: HEIGHT - BOTTOM, fill: "currentColor", "fill-opacity": 0.1 }),
    ...lines.map(({ steps, start, colour, name }) =>
      svg("path", { d: path(steps, Math.max(start - 1, 0), x, y), fill: "none", stroke: colour, "stroke-width": 2 }, svg("title", {}, name)),
    ),
    ...lines.flatMap(({ steps, colour }) => {
      const entropy = steps[at]?.entropy;
      return entropy === null || entropy === undefined ? [] : [svg("circle", { cx: x(at), cy: y(entropy), r: 3.5, fill: colour })];
    }),
    svg("text", { x: LEFT - 4, y: 13, "text-anchor": "end", ...label }, compact(high)),
    svg("text", { x: LEFT - 4, y: y(0) + 3, "text-anchor": "end", ...label }, "0"),
    svg("text", { x: LEFT, y: HEIGHT - 3, ...label }, "entropy (nats) by step"),
  );
  return { picture, stepAt: (share) => Math.min(count - 1, Math.max(0, Math.floor(((share * width - LEFT) / (width - LEFT - 8)) * count))) };
}

function path(steps: Step[], from: number, x: (step: number) => number, y: (entropy: number) => number): string {
  let line = "";
  let isDown = false;
  const stride = Math.ceil(steps.length / POINTS_MAX);
  for (let step = from; step < steps.length; step += stride) {
    const known = steps.slice(step, step + stride).flatMap(({ entropy }) => (entropy === null ? [] : [entropy]));
    if (known.length) line += `${isDown ? "L" : "M"}${x(step).toFixed(1)} ${y(Math.max(...known)).toFixed(1)}`;
    isDown = known.length > 0;
  }
  return line;
}
