import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { Heatmap, type Cells, type Place, type Wishes } from "../src/kit/heatmap";
import { Endings } from "../src/kit/host";

const grid = (high: number, wide: number, further: Partial<Cells> = {}): Cells => ({
  rows: Array.from({ length: high }, (_, row) => `r${row}`), columns: Array.from({ length: wide }, (_, column) => `c${column}`),
  values: Float32Array.from({ length: high * wide }, (_, index) => index), ...further,
});

let drawn = 0;
beforeEach(() => {
  drawn = 0;
  const pen = new Proxy({}, { get: (_, name) => (name === "measureText" ? (text: string) => ({ width: 6.6 * text.length }) : () => void (name === "fillRect" && drawn++)), set: () => true });
  vi.spyOn(HTMLCanvasElement.prototype, "getContext").mockReturnValue(pen as unknown as RenderingContext);
});
afterEach(() => vi.restoreAllMocks());

function shown(cells = grid(3, 4), wishes: Partial<Wishes> = {}) {
  const brushed: Place[][] = [];
  const picked: number[][] = [];
  const endings = new Endings();
  const map = new Heatmap({ label: "A map", rowsName: "row", brush: (cells) => brushed.push(cells), pick: (...at) => picked.push(at), cell: { min: 10, max: 10, height: 10 }, ...wishes }, endings);
  document.body.replaceChildren(map.element);
  map.show(cells);
  const key = (type: "keydown" | "keyup", key: string, shiftKey = false) => map.canvas.dispatchEvent(new KeyboardEvent(type, { key, shiftKey, bubbles: true }));
  /** An event of the mouse, in cells from the first one's corner; they are 10 pixels here. */
  const point = (type: string, row: number, column: number, further = {}) => map.canvas.dispatchEvent(new PointerEvent(type, { clientX: map.corner.x + 10 * column + 5, clientY: map.corner.y + 10 * row + 5, buttons: 1, pointerId: 7, bubbles: true, ...further }));
  const line = () => map.element.querySelector("[aria-live]")?.textContent ?? "";
  return { map, brushed, picked, key, point, line, endings };
}

test("a brush by keys is told when Shift is let go, however large it has grown", () => {
  const { key, brushed } = shown();
  key("keydown", "ArrowDown");
  for (let press = 0; press < 2; press++) for (const name of ["ArrowRight", "ArrowDown"]) key("keydown", name, true);
  expect(brushed).toEqual([]);
  key("keyup", "Shift");
  expect(brushed.map((cells) => cells.length)).toEqual([9]);
  key("keyup", "Shift");
  expect(brushed.length).toBe(1);
});

test("a brush by keys goes on where it was when Shift is pressed again, and a plain arrow begins anew", () => {
  const { key, brushed } = shown();
  key("keydown", "ArrowDown");
  for (const name of ["ArrowRight", "ArrowDown"]) key("keydown", name, true), key("keyup", "Shift");
  key("keydown", "ArrowRight");
  key("keydown", "ArrowRight", true);
  key("keyup", "Shift");
  expect(brushed.map((cells) => cells.length)).toEqual([2, 4, 2]);
});

test("what is shown anew begins a brush anew", () => {
  const { map, key, brushed } = shown();
  key("keydown", "ArrowDown");
  key("keydown", "ArrowRight", true);
  key("keyup", "Shift");
  map.show(grid(2, 2)); // as a view does that shows the part that was brushed
  key("keydown", "ArrowDown", true);
  key("keyup", "Shift");
  expect(brushed[1]).toEqual([{ row: 0, column: 1 }, { row: 1, column: 1 }]);
});

test("a drag that leaves the map goes on to its edge, and ends wherever the button is let go", () => {
  const { map, point, brushed, line } = shown();
  const captured: number[] = [];
  map.canvas.setPointerCapture = (pointer) => captured.push(pointer);
  point("pointerdown", 1, 1);
  expect(captured).toEqual([7]); // so the rest of it comes here, from outside too
  point("pointermove", 90, 90);
  expect(line()).toContain("row r2");
  point("pointerup", 90, 90, { buttons: 0 });
  expect(brushed.map((cells) => cells.length)).toEqual([6]);
  point("pointermove", 0, 0, { buttons: 0 });
  expect(map.chosen.length).toBe(6);
});

test("a drag whose end was missed ends with the next move, and one that is called off is kept", () => {
  const { map, point, brushed } = shown();
  point("pointerdown", 0, 0);
  point("pointermove", 1, 1);
  point("pointermove", 2, 2, { buttons: 0 });
  expect(brushed.map((cells) => cells.length)).toEqual([4]);
  point("pointerdown", 0, 0);
  point("pointercancel", 0, 0, { buttons: 0 });
  point("pointermove", 2, 2, { buttons: 0 });
  expect(map.chosen.length).toBe(1);
});

test("a drag goes on where a pick shows the map anew", () => {
  const { map, point, brushed } = shown(grid(3, 4), { pick: () => map.show(grid(3, 4)) });
  map.canvas.setPointerCapture = () => undefined;
  point("pointerdown", 0, 0);
  point("pointermove", 1, 2);
  point("pointerup", 1, 2, { buttons: 0 });
  expect(brushed.map((cells) => cells.length)).toEqual([6]);
});

test("a button that opens a menu picks nothing", () => {
  const { point, picked } = shown();
  point("pointerdown", 1, 1, { button: 2, buttons: 2 });
  expect(picked).toEqual([]);
  point("pointerdown", 1, 2);
  expect(picked).toEqual([[1, 2]]);
});

test("the cursor is drawn over the cells, which are not drawn again when it moves", () => {
  const { map, point, key, line } = shown(grid(100, 100));
  const before = drawn;
  expect(before).toBeGreaterThanOrEqual(10_000);
  for (let step = 0; step < 50; step++) point("pointermove", step, step, { buttons: 0 });
  key("keydown", "ArrowDown");
  expect(drawn).toBe(before);
  expect(line()).toContain("row r50 · column c49");
  const cursor = map.element.querySelector("svg .cursor");
  expect(cursor?.getAttribute("y")).toBe(String(map.corner.y + 500));
  map.mark(null);
  expect(map.element.querySelector("svg .cursor")).toBeNull();
});

test("where something was picked is told from where the mouse is", () => {
  const { map, point } = shown();
  map.mark({ row: 2, column: 2 });
  point("pointermove", 0, 0, { buttons: 0 });
  expect(map.element.querySelectorAll("svg .cursor, svg .home").length).toBe(2);
  map.canvas.dispatchEvent(new PointerEvent("pointerleave"));
  expect(map.element.querySelectorAll("svg .cursor, svg .home").length).toBe(1);
});

test("the line under it tells of what is shown now", () => {
  const { map, key, line } = shown(grid(2, 2));
  key("keydown", "ArrowDown");
  map.show(grid(2, 2, { values: [7, 8, 9, 10] }));
  expect(line()).toBe("row r0 · column c0 · 7");
  key("keydown", "ArrowDown");
  map.show(grid(1, 1));
  expect(line()).toBe("");
});

test("its rows begin with the names of the columns", () => {
  const { map } = shown(grid(2, 2), { columnsName: "key" });
  expect(map.rows()).toEqual([["row \\ key", "c0", "c1"], ["r0", 0, 1], ["r1", 2, 3]]);
});

test("its picture as SVG has each cell with its number, its word and its labels, on white", () => {
  const { map } = shown(grid(2, 3, { text: ["<b>", "\u0000", "c", "d", "e", "f"], values: [0, 1, Number.NaN, 3, 4, 5], corners: new Set([1]), quantity: "share" }), { cell: { min: 44, max: 44, height: 20 } });
  const picture = map.svg() as SVGSVGElement;
  const titles = [...picture.querySelectorAll(".cell title")].map((it) => it.textContent);
  expect(titles).toEqual(["row r0 · column c0 · 0 · <b>", "row r0 · column c1 · 1 · \\u0000", "row r0 · column c2 · NaN · c", "row r1 · column c0 · 3 · d", "row r1 · column c1 · 4 · e", "row r1 · column c2 · 5 · f"]);
  const words = [...picture.querySelectorAll("text")].map((it) => it.textContent);
  expect(words).toEqual(expect.arrayContaining(["r0", "r1", "c0", "c2", "<b>", "f", "0", "5", "share", "row"]));
  expect(picture.querySelectorAll("path.corner").length).toBe(1);
  expect(picture.querySelector("rect")?.getAttribute("fill")).toBe("#fff");
  expect(new XMLSerializer().serializeToString(picture)).not.toContain("<b>");
});

test("of too many cells there is no SVG, and that is said; of none there is none", () => {
  const { map } = shown(grid(200, 200));
  expect(map.svg()).toMatch(/40,000 cells/);
  map.show(grid(0, 0));
  expect(map.svg()).toBeNull();
});
