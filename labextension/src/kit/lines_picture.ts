/** Lines of text as a picture, dark on white as print wants it: what a tree or a listing exports. */
import { svg, visible } from "./dom";
import { grouped } from "./table";

export interface Part {
  text: string;
  colour?: string;
}

export interface Line {
  parts: Part[];
  /** Stands at the right edge. */
  end?: string;
  isTinted?: boolean;
}

export const [INK, SOFT, BLUE, ORANGE] = ["#20262d", "#5b6570", "#2f659e", "#b5651d"];
/** So many lines are drawn, and how many there are beside is told. */
const LINES_MAX = 400;
/** Of a line of 12 pixels; a letter of a fixed width is three fifths as wide. */
const [HEIGHT, LETTER, MARGIN, LETTERS_MAX] = [19, 7.25, 10, 240];

export function linesPicture(label: string, lines: Line[]): SVGSVGElement {
  const over = lines.length - LINES_MAX;
  const shown = over > 0 ? [...lines.slice(0, LINES_MAX), { parts: [{ text: `… and ${grouped(over)} lines more: the CSV has all`, colour: SOFT }] }] : lines;
  const written = shown.map(({ parts, end, isTinted }) => ({ parts: fitted(parts), end: end ? clean(end) : "", isTinted }));
  const letters = Math.max(20, ...written.map(({ parts, end }) => parts.reduce((sum, { text }) => sum + wide(text), 0) + (end ? wide(end) + 2 : 0)));
  const [width, height] = [Math.ceil(letters * LETTER + 2 * MARGIN), shown.length * HEIGHT + 2 * MARGIN];
  return svg(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": clean(label), "font-family": "ui-monospace, SFMono-Regular, Menlo, Consolas, monospace", "font-size": 12 },
    svg("title", {}, clean(label)),
    svg("rect", { width, height, fill: "#fff" }),
    ...written.flatMap(({ parts, end, isTinted }, index) => {
      const y = MARGIN + index * HEIGHT;
      return [
        ...(isTinted ? [svg("rect", { y, width, height: HEIGHT, fill: "#eef1f4" })] : []),
        svg("text", { x: MARGIN, y: y + 13.5, "xml:space": "preserve", style: "white-space:pre" }, ...parts.map(({ text, colour }) => svg("tspan", { fill: colour ?? INK }, text))),
        ...(end ? [svg("text", { x: width - MARGIN, y: y + 13.5, "text-anchor": "end", fill: SOFT }, end)] : []),
      ];
    }),
  );
}

/** Parts without what no file of XML may hold, cut where a line gets too long. */
function fitted(parts: Part[]): Part[] {
  let left = LETTERS_MAX;
  return parts.flatMap(({ text, colour }) => {
    if (left <= 0) return [];
    const letters = [...clean(text)];
    const cut = letters.length > left ? `${letters.slice(0, left).join("")}…` : letters.join("");
    left -= letters.length;
    return [{ text: cut, colour }];
  });
}

/** What a file of XML may hold: spaces about a text stay spaces; control characters within are named. */
export function clean(text: string): string {
  const spaced = text.replaceAll("\t", "    ");
  const inner = spaced.replace(/^ +| +$/g, "");
  const start = spaced.length - spaced.replace(/^ +/, "").length;
  return (" ".repeat(start) + visible(inner) + (inner ? " ".repeat(spaced.length - start - inner.length) : "")).replace(/[\ufffe\uffff]|\p{Surrogate}/gu, "\ufffd");
}

/** How many letters wide a text is: those of East Asia take two. */
function wide(text: string): number {
  let sum = 0;
  for (const letter of text) sum += /[\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\u{1f300}-\u{1faff}\u{20000}-\u{3fffd}]/u.test(letter) ? 2 : 1;
  return sum;
}
