import { expect, test } from "vitest";
import sample from "../samples/attention_view.json";
import { attentionView, type Numbers } from "../src/views/attention_view";
import { saved } from "./saved";

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
  view.show({ title: "Attention", names: ["layer", "head"], layers: ["0", "1"], heads: ["0", "1"], queries: keys, keys, note: "", size: [keys.length, keys.length] });
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

/** The view of the sample, as Python's messages fill it. */
async function sampled() {
  const el = document.createElement("div");
  document.body.replaceChildren(el);
  const { traits, ...answers } = sample;
  const answer = ({ shape, buffers }: { shape: number[]; buffers: number[][] }): Promise<Numbers> => Promise.resolve({ shape, values: new Float32Array(buffers[0] ?? []) });
  const view = attentionView(el, { select: () => undefined, heads: () => answer(answers.heads), tile: () => answer(answers.tile), query: () => answer(answers.query) });
  view.show({ ...traits, queries: traits.query_tokens, keys: traits.key_tokens, size: traits.size as [number, number] });
  await new Promise((done) => setTimeout(done));
  return el;
}

test("what Python sends is shown: the layers by their numbers, what the last token reads", async () => {
  const el = await sampled();
  expect([...el.querySelectorAll("option")].map((it) => it.textContent)).toEqual(["layer 1", "layer 2"]);
  const read = sample.query.buffers[0] as number[];
  expect([...el.querySelectorAll<HTMLElement>(".tokens button")].map((it) => it.title)).toEqual(read.map((weight) => weight.toFixed(4)));
  expect(el.querySelector(".sides")?.textContent).toContain("query ⏎ · key ⏎");
});

test("its CSV has the keys above and the queries before, its SVG every weight", async () => {
  const el = await sampled();
  const rows = (await saved(el, "CSV")).text.split("\r\n");
  expect(rows[0]).toBe("query \\ key,The,·<b>,⏎");
  expect(rows.length).toBe(4);
  expect(rows[3]?.split(",").map((cell, index) => (index ? Number(cell) : cell))).toEqual(["⏎", ...sample.tile.buffers[0]!.slice(6)]);
  const { name, text } = await saved(el, "SVG");
  expect(name).toBe("attention.svg");
  expect(text.match(/class="cell"/g)?.length).toBe(9);
});

test("a token that has the focus keeps it when another is read", async () => {
  const { el } = await shown();
  const token = el.querySelectorAll<HTMLElement>(".tokens button")[1] as HTMLElement;
  token.focus();
  token.click();
  await new Promise((done) => setTimeout(done));
  expect(document.activeElement).toBe(token);
  expect(token.getAttribute("aria-pressed")).toBe("true");
});

test("without tokens it says that there is nothing", async () => {
  expect((await shown([])).el.textContent).toContain("no attention to show");
});

test("other weights of the same heads take their place: what is chosen stays, and its button", async () => {
  const { el, view, asked } = await shown();
  (el.querySelectorAll(".heads button")[1] as HTMLElement).click();
  await new Promise((done) => setTimeout(done));
  const button = el.querySelectorAll(".heads button")[1];
  const others = ["A", "b", "c", "d"];
  view.show({ title: "After", names: ["layer", "head"], layers: ["0", "1"], heads: ["0", "1"], queries: others, keys: others, note: "", size: [4, 4] });
  await new Promise((done) => setTimeout(done));
  expect(asked.slice(-3)).toEqual(["heads 1", "tile 1 1 0,4 0,4", "query 1 1 3"]);
  expect(el.querySelectorAll(".heads button")[1]).toBe(button);
  expect(button?.getAttribute("aria-pressed")).toBe("true");
  expect(el.textContent).toContain("d reads:");
  view.show({ title: "Fewer", names: ["layer", "head"], layers: ["0"], heads: ["0"], queries: others, keys: others, note: "", size: [4, 4] });
  await new Promise((done) => setTimeout(done));
  expect(asked.slice(-3)).toEqual(["heads 0", "tile 0 0 0,4 0,4", "query 0 0 3"]);
  expect(el.querySelectorAll(".heads button").length).toBe(1);
});
