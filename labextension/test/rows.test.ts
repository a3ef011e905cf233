import { expect, test } from "vitest";
import { h } from "../src/kit/dom";
import { Endings } from "../src/kit/host";
import { Rows } from "../src/kit/rows";

function listed(count: number, words = (index: number) => `row ${index}`) {
  const said = { words };
  const rows = new Rows(20, (index) => h("div", { id: `it-${index}` }, said.words(index)), new Endings());
  document.body.replaceChildren(rows.element);
  rows.setHeight(100);
  rows.setCount(count);
  const texts = () => [...rows.element.querySelectorAll("[id]")].map((row) => row.textContent);
  return { rows, said, texts };
}

const from = (first: number, end: number) => Array.from({ length: end - first }, (_, at) => `row ${first + at}`);

test("a row that is gone to from elsewhere stands in the middle, wherever the list stood", () => {
  const tops = [900, 0].map((from) => {
    const rows = new Rows(10, (index) => h("div", {}, String(index)), new Endings());
    rows.setHeight(100);
    rows.setCount(100);
    rows.show(from / 10);
    rows.show(50, true);
    return rows.element.scrollTop;
  });
  expect(tops).toEqual([455, 455]);
});

test("of very many rows those in sight exist, and some more on each side", () => {
  const { rows, texts } = listed(1000);
  expect(texts()).toEqual(from(0, 13));
  rows.show(500);
  expect(texts()).toEqual(from(488, 509));
  rows.show(484);
  expect(texts()).toEqual(from(476, 497));
  rows.setCount(10);
  expect(texts()).toEqual(from(0, 10));
  rows.setCount(500, true);
  expect(texts()).toEqual(from(487, 500));
});

test("a row that is as it was stays the same element", () => {
  const { rows, said, texts } = listed(6);
  const before = [...rows.element.querySelectorAll("[id]")];
  said.words = (index) => (index === 2 ? "another" : `row ${index}`);
  rows.refresh();
  const after = [...rows.element.querySelectorAll("[id]")];
  expect(after.map((row, index) => row === before[index])).toEqual([true, true, false, true, true, true]);
  expect(texts()[2]).toBe("another");
});
