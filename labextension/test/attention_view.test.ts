import { expect, test } from "vitest";
import { attentionView, type Numbers } from "../src/views/attention_view";

const tokens = ["The", " city", "\n", "<b>of"];
const weights = (shape: number[]): Promise<Numbers> => Promise.resolve({ shape, values: new Float32Array(shape.reduce((a, b) => a * b, 1)).fill(0.25) });

async function shown(keys = tokens) {
  const el = document.createElement("div");
  document.body.replaceChildren(el);
  const asked: string[] = [];
  const chosen: (number | null)[][] = [];
  const size = keys.length;
  const view = attentionView(el, {
    select: (...at) => chosen.push(at),
    heads: (layer) => (asked.push(`heads ${layer}`), weights([2, size, size])),
    tile: (layer, head, rows, columns) => (asked.push(`tile ${layer} ${head} ${rows} ${columns}`), weights([size, size])),
    query: (layer, head, query) => (asked.push(`query ${layer} ${head} ${query}`), weights([size])),
  });
  view.show({ title: "Attention", layers: ["0", "1"], heads: ["0", "1"], queries: keys, keys, note: "", size: [keys.length, keys.length] });
  await new Promise((done) => setTimeout(done));
  return { el, view, asked, chosen };
}

test("it opens on the last layer and what the last token reads", async () => {
  const { asked, el } = await shown();
  expect(asked).toEqual(["heads 1", "tile 1 0 0,4 0,4", "query 1 0 3"]);
  expect(el.querySelectorAll(".heads button").length).toBe(2);
});

test("a head and a token are chosen by a click, and told to Python", async () => {
  const { el, chosen, asked } = await shown();
  (el.querySelectorAll(".heads button")[1] as HTMLElement).click();
  (el.querySelectorAll(".tokens button")[1] as HTMLElement).click();
  expect(chosen).toEqual([[1, 1, 3], [1, 1, 1]]);
  expect(asked[asked.length - 1]).toBe("query 1 1 1");
});

test("tokens are text, and what cannot be seen is named", async () => {
  const { el } = await shown();
  expect([...el.querySelectorAll(".tokens button")].map((it) => it.textContent)).toEqual(["The", "·city", "⏎", "<b>of"]);
});

test("a selection made elsewhere is followed, one beyond its end is not", async () => {
  const { view, asked } = await shown();
  view.mark(0, 1, 2);
  view.mark(7, 1, 2);
  await new Promise((done) => setTimeout(done));
  expect(asked.filter((it) => it.startsWith("heads"))).toEqual(["heads 1", "heads 0"]);
});

test("without tokens it says that there is nothing", async () => {
  expect((await shown([])).el.textContent).toContain("no attention to show");
});
