import { expect, test } from "vitest";
import sample from "../samples/cache_inspector.json";
import { cacheInspector, type News, type Numbers, type Page, type Picture, type Row } from "../src/views/cache_inspector";
import { saved } from "./saved";

const soon = (wait = 60) => new Promise((done) => setTimeout(done, wait));
const { traits } = sample;
const page = traits.first as unknown as Page;
const { buffers, ...about } = sample.picture;
const picture: Picture = { ...about, part: about.part as Picture["part"], values: new Float32Array(buffers[0] ?? []), counts: new Float32Array(buffers[1] ?? []) };

async function shown(asks: Partial<Parameters<typeof cacheInspector>[1]> = {}, first: Page | undefined = page, count = traits.count) {
  const el = document.createElement("div");
  document.body.replaceChildren(el);
  const did: unknown[][] = [];
  const view = cacheInspector(el, {
    rows: (from, end, words) => (did.push(["rows", from, end, words]), Promise.resolve({ total: 1, rows: page.rows.filter((row) => row[1].includes(words)) })),
    numbers: (which) => (did.push(["numbers", which]), Promise.resolve(sample.numbers as Record<string, Numbers>)),
    hunt: (start) => (did.push(["hunt", start]), Promise.resolve(start <= sample.hunt.found ? sample.hunt : { found: null, next: null })),
    picture: (wanted) => (did.push(["picture", wanted]), Promise.resolve(picture)),
    choose: (which, place) => did.push(["choose", which, place]),
    place: (layer, step, chosen) => (did.push(["place", layer, step, chosen]), Promise.resolve(sample.place)),
    ...asks,
  });
  view.show(traits.title, count, traits.size_bytes, traits.compares, first);
  await soon();
  const options = () => [...el.querySelectorAll<HTMLElement>("[role=option]")];
  const button = (name: string) => [...el.querySelectorAll("button")].find((it) => it.textContent === name) as HTMLButtonElement;
  return { el, view, did, options, button };
}

test("what Python sends is shown: names as text, kinds, sizes, and the numbers when they come", async () => {
  const { el, options } = await shown();
  expect([...el.querySelectorAll("code")].map((it) => it.textContent)).toEqual(["model.h.0.mlp.output", "model.h.1.mlp.output", "<b>⏎"]);
  expect(options()[0]?.textContent).toContain("float32[2, 3, 4]");
  expect(options()[1]?.querySelector(".bad")?.textContent).toBe("1 NaN 1 ∞");
  expect(el.querySelector(".bar")?.textContent).toContain("3 tensors, 110 B");
});

test("a row says what each of its numbers is", async () => {
  const { options } = await shown();
  expect(options()[0]?.getAttribute("aria-label")).toBe("model.h.0.mlp.output, float32 2 by 3 by 4, 96 B, mean 11.5, std 6.922, min 0, max 23, no NaN and no infinity");
  expect(options()[1]?.getAttribute("aria-label")).toContain("1 NaN 1 ∞");
});

test("two caches are compared, and a row says what apart, relative and cosine are", async () => {
  const apart = { largest: 0.5, relative: 0.25, cosine: null };
  const { el, view, options } = await shown({ numbers: () => Promise.resolve({ 0: { ...sample.numbers[0], apart } } as Record<string, Numbers>) });
  view.show("Caches", 1, 96, true, { total: 1, rows: page.rows.slice(0, 1) });
  await soon();
  expect(options()[0]?.getAttribute("aria-label")).toContain("apart 0.5, relative 0.25, cosine none");
  expect(el.querySelector(".headings")?.textContent).toContain("relative");
});

test("a tensor that is chosen is opened, and what layer it is of is told", async () => {
  const { el, did, options } = await shown();
  options()[1]?.click();
  await soon();
  expect(did.filter(([what]) => what === "choose" || what === "picture")).toEqual([["choose", 1, { layer: 1 }], ["picture", { which: 1 }]]);
  expect(options()[1]?.getAttribute("aria-selected")).toBe("true");
  expect(el.querySelector(".bar b.mono")?.textContent).toBe("model.h.0.mlp.output"); // as the sample's picture is named
  expect(el.querySelector("[aria-label^='Place on dimension 0']")).not.toBeNull();
});

test("keys walk the rows, and a search asks for those that hold its words", async () => {
  const { el, did, options } = await shown();
  const list = el.querySelector("[role=listbox]") as HTMLElement;
  for (const key of ["ArrowDown", "End", "ArrowUp"]) list.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  expect(did.filter(([what]) => what === "choose").map(([, which]) => which)).toEqual([0, 2, 1]);
  const search = el.querySelector("input[type=search]") as HTMLInputElement;
  search.value = "<b>";
  search.dispatchEvent(new Event("input"));
  await soon(250);
  expect(did.at(-1)?.[0] === "rows" || did.some((it) => it[0] === "rows" && it[3] === "<b>")).toBe(true);
  expect(options().length).toBe(1);
});

test("a hunt goes to the next tensor with a NaN, and says when there is none", async () => {
  const { el, did, button } = await shown();
  button("Find NaN or ∞").click();
  await soon();
  expect(did.filter(([what]) => what === "choose").at(-1)?.[1]).toBe(1);
  button("Find NaN or ∞").click();
  await soon();
  expect(el.textContent).toContain("no NaN and no ∞ after this one");
});

test("a rectangle drawn with the keys is enlarged, whatever its size, and Whole leads back", async () => {
  const { el, did, options, button } = await shown({ picture: (wanted) => (did_.push(wanted), Promise.resolve(wanted.rows ? { ...picture, picture: [2, 3], part: [0, 2, 1, 4], values: new Float32Array(6) } : picture)) });
  const did_: unknown[] = [];
  options()[0]?.click();
  await soon();
  const canvas = el.querySelector("canvas") as HTMLCanvasElement;
  const press = (key: string, shiftKey = false) => canvas.dispatchEvent(new KeyboardEvent("keydown", { key, shiftKey, bubbles: true }));
  for (const key of ["ArrowDown", "ArrowRight"]) press(key);
  for (const key of ["ArrowRight", "ArrowRight", "ArrowDown"]) press(key, true);
  expect(did_.length).toBe(1); // none while Shift is held
  canvas.dispatchEvent(new KeyboardEvent("keyup", { key: "Shift", bubbles: true }));
  await soon();
  expect(did_.at(-1)).toEqual({ which: 0, rows: [0, 2], columns: [1, 4] });
  expect(el.textContent).toContain("rows 0–1, columns 1–3");
  button("Whole").click();
  expect(did_.at(-1)).toEqual({ which: 0, at: undefined });
  expect(did.length).toBeGreaterThan(0);
});

test("behind the map and behind the histogram stands a table", async () => {
  const { el, options } = await shown();
  options()[0]?.click();
  await soon();
  const tables = [...el.querySelectorAll<HTMLDetailsElement>("details.behind")].map((fold) => {
    fold.open = true;
    fold.dispatchEvent(new Event("toggle"));
    return { columns: [...fold.querySelectorAll("thead th")].map((it) => it.textContent), rows: [...fold.querySelectorAll("tbody tr")].map((row) => [...row.children].map((it) => it.textContent)) };
  });
  expect(tables[0]?.columns).toEqual(["row", "column", "value"]);
  expect(tables[0]?.rows.slice(0, 2)).toEqual([["0", "0", "12"], ["0", "1", "13"]]);
  expect(tables[0]?.rows.length).toBe(12);
  expect(tables[1]?.columns).toEqual(["from", "to", "numbers"]);
  expect(tables[1]?.rows.length).toBe(picture.counts.length);
  expect(tables[1]?.rows[0]).toEqual(["0", "0.3833", "1"]);
});

test("the map is saved with its columns named and as SVG, the histogram as SVG and numbers", async () => {
  const { el, options } = await shown();
  options()[0]?.click();
  await soon();
  const map = el.querySelector('[aria-label="Export tensor"]')?.parentElement as HTMLElement;
  expect((await saved(map, "CSV")).text.split("\r\n").slice(0, 2)).toEqual(["row \\ column,0,1,2,3", "0,12,13,14,15"]);
  expect((await saved(map, "SVG")).text.match(/class="cell"/g)?.length).toBe(12);
  const chart = el.querySelector('[aria-label="Export histogram"]')?.parentElement as HTMLElement;
  expect((await saved(chart, "SVG")).name).toBe("histogram.svg");
  expect((await saved(chart, "CSV")).text.split("\r\n")[0]).toBe("from,to,numbers");
});

test("a view that opens with a tensor chosen stays at it, whatever layer is selected", async () => {
  const { view, did } = await shown();
  view.setChosen(2);
  view.follow({ layer: 1, step: null }); // as a page that was loaded again tells
  await soon();
  expect(did.filter(([what]) => what === "place")).toEqual([]);
  view.follow({ layer: 0, step: null });
  expect(did.at(-1)).toEqual(["place", 0, null, 2]);
});

test("a layer that is selected elsewhere is gone to, unless a search narrows the table", async () => {
  const { el, view, did, options } = await shown();
  view.follow({ layer: 1, step: null });
  await soon();
  expect(did).toContainEqual(["place", 1, null, null]);
  expect(options()[sample.place]?.getAttribute("aria-selected")).toBe("true");
  expect(did.filter(([what]) => what === "choose")).toEqual([["choose", sample.place, null]]); // which selects nothing anew
  const search = el.querySelector("input[type=search]") as HTMLInputElement;
  search.value = "mlp";
  const asked = did.length;
  view.follow({ layer: 0, step: null });
  await soon();
  expect(did.length).toBe(asked);
});

test("an empty cache, an empty tensor and one without numbers have their words", async () => {
  const { el } = await shown({}, { total: 0, rows: [] }, 0);
  expect(el.textContent).toContain("This cache is empty");
  const none = { ...picture, shape: [0], leading: [], picture: [1, 0], part: [0, 1, 0, 0] as Picture["part"], values: new Float32Array(), counts: new Float32Array() };
  const { el: other, options } = await shown({ picture: () => Promise.resolve(none) });
  options()[0]?.click();
  await soon();
  expect(other.textContent).toContain("No finite number in it.");
  expect(other.textContent).toContain("nothing to show");
});

test("what goes wrong is told in the view", async () => {
  const { el, options } = await shown({ picture: () => Promise.reject(new Error("it is gone")) });
  options()[0]?.click();
  await soon();
  expect(el.querySelector(".trouble")?.textContent).toContain("it is gone");
});

test("ten thousand tensors are asked for a page at a time", async () => {
  const rows = (from: number, end: number): Row[] => Array.from({ length: end - from }, (_, at) => [from + at, `t${from + at}`, 0, [2], "float32", 8, null]);
  const asked: number[] = [];
  const { options } = await shown({ rows: (from, end) => (asked.push(from), Promise.resolve({ total: 10_000, rows: rows(from, end) })), numbers: () => Promise.resolve({}) }, { total: 10_000, rows: rows(0, 60) }, 10_000);
  expect(options().length).toBeLessThan(60);
  expect(asked).toEqual([]);
});

// A cache that is being filled -------------------------------------------------------------------

const many = (from: number, end: number): Row[] => Array.from({ length: end - from }, (_, at) => [from + at, `h.${from + at}.output`, null, [2], "float32", 8, from + at]);
const news = (count: number, rows: Row[], further: Partial<News> = {}): News => ({ count, size: 8 * count, rows, rest: false, stale: [], ...further });

test("a view that opened empty says that more is to come, and shows what comes", async () => {
  const asked: number[] = [];
  const { el, view, options } = await shown({ rows: (from) => (asked.push(from), Promise.resolve({ total: 0, rows: [] })) }, { total: 0, rows: [] }, 0);
  view.setGrowing(true);
  expect(el.textContent).toContain("Nothing was kept yet: the pass goes on.");
  view.grow(news(2, many(0, 2)));
  expect(options().map((it) => it.querySelector("code")?.textContent)).toEqual(["h.0.output", "h.1.output"]);
  expect(el.querySelector(".bar")?.textContent).toContain("2 tensors, 16 B · more to come");
  view.setGrowing(false);
  expect(el.querySelector(".bar")?.textContent).not.toContain("more to come");
  expect(el.textContent).not.toContain("Nothing was kept");
  expect(asked).toEqual([]); // what came was told
});

test("what is chosen, and where the list stands, stay while more comes", async () => {
  const { el, view, did, options } = await shown({ rows: (from, end) => Promise.resolve({ total: 130, rows: many(from, Math.min(end, 130)) }) }, { total: 130, rows: many(0, 60) }, 130);
  const list = el.querySelector("[role=listbox]") as HTMLElement;
  list.dispatchEvent(new KeyboardEvent("keydown", { key: "End", bubbles: true }));
  await soon();
  list.dispatchEvent(new KeyboardEvent("keydown", { key: "End", bubbles: true }));
  await soon();
  const [chosen, top] = [options().find((it) => it.getAttribute("aria-selected") === "true"), list.scrollTop];
  expect(chosen?.textContent).toContain("h.129.output");
  const before = did.filter(([what]) => what === "picture").length;
  view.grow(news(200, many(130, 190)));
  await soon();
  expect(options().find((it) => it.getAttribute("aria-selected") === "true")).toBe(chosen); // the same element: no click on it is lost
  expect(list.scrollTop).toBe(top);
  expect(options().some((it) => it.textContent?.includes("h.131.output"))).toBe(true);
  expect(did.filter(([what]) => what === "picture").length).toBe(before);
});

test("only rows that are in sight and were not told are asked for", async () => {
  const asked: number[] = [];
  const { el, view, options } = await shown({ rows: (from, end) => (asked.push(from), Promise.resolve({ total: 5000, rows: many(from, end) })) }, { total: 1, rows: many(0, 1) }, 1);
  view.grow(news(5000, many(1, 61)));
  await soon();
  expect(asked).toEqual([]);
  expect(options().length).toBeLessThan(60);
  const list = el.querySelector("[role=listbox]") as HTMLElement;
  list.dispatchEvent(new KeyboardEvent("keydown", { key: "End", bubbles: true }));
  await soon();
  expect(asked).toEqual([4980]);
  expect(options().at(-1)?.textContent).toContain("h.4999.output");
});

test("a row that changed is drawn anew, and its numbers are asked for again", async () => {
  const { view, did, options } = await shown();
  const asked = did.filter(([what]) => what === "numbers").length;
  view.grow(news(3, [[0, "model.h.0.mlp[0].output", null, [2, 3, 4], "lost", 0, 0]], { stale: [0] }));
  await soon();
  expect(options()[0]?.querySelector("code")?.textContent).toBe("model.h.0.mlp[0].output");
  expect(options()[0]?.textContent).toContain("lost");
  expect(did.filter(([what]) => what === "numbers").slice(asked)).toEqual([["numbers", [0]]]);
});

test("where more rows changed than are told, those in sight are asked for", async () => {
  const named = (from: number, end: number): Row[] => many(from, end).map(([number, name, ...further]) => [number, `${name}[0]`, ...further]);
  const asked: number[] = [];
  const { view, options } = await shown({ rows: (from, end) => (asked.push(from), Promise.resolve({ total: 500, rows: named(from, end) })) }, { total: 500, rows: many(0, 60) }, 500);
  view.grow(news(500, [], { rest: true, stale: null }));
  await soon();
  expect(asked).toEqual([0]);
  expect(options()[0]?.querySelector("code")?.textContent).toBe("h.0.output[0]");
});

test("a search that is on takes in what comes too", async () => {
  let there = 3;
  const { el, view, options } = await shown({ rows: (from, end, words) => Promise.resolve({ total: words ? there : 100, rows: many(0, there).slice(from, end) }) }, { total: 100, rows: many(0, 60) }, 100);
  const search = el.querySelector("input[type=search]") as HTMLInputElement;
  search.value = "h.";
  search.dispatchEvent(new Event("input"));
  await soon(250);
  expect(options().length).toBe(3);
  there = 5;
  view.grow(news(140, many(100, 140)));
  await soon();
  expect(options().length).toBe(5);
});

test("a page that was loaded again while the cache grew asks for its first rows", async () => {
  const asked: number[] = [];
  const { options } = await shown({ rows: (from, end) => (asked.push(from), Promise.resolve({ total: 9, rows: many(from, Math.min(end, 9)) })) }, { total: 0, rows: [] }, 9);
  expect(asked).toEqual([0]);
  expect(options().length).toBe(9);
});

test("what Python tells of a cache that grew is shown", async () => {
  const { el, view, options } = await shown({}, { total: 0, rows: [] }, 0);
  for (const told of sample.news) view.grow(told as unknown as News);
  expect(options().map((it) => it.querySelector("code")?.textContent)).toEqual(["model.0[0].output", "model.1.output", "model.0[1].output"]);
  expect(el.querySelector(".bar")?.textContent).toContain("3 tensors, 24 B");
});
