import { expect, test } from "vitest";
import sample from "../samples/run_ledger.json";
import { Refused } from "../src/kit/requests";
import { runLedger, type About, type Compared, type Row } from "../src/views/run_ledger";

function shown(rows = sample.rows as unknown as Row[]) {
  const el = document.createElement("div");
  document.body.replaceChildren(el);
  const asked: [string, unknown][] = [];
  const told: number[][] = [];
  let fails = false;
  const give = <T>(name: string, given: unknown, value: T): Promise<T> => (asked.push([name, given]), fails ? Promise.reject(new Refused({ what: "no", why: "because", next: "so" })) : Promise.resolve(value));
  const view = runLedger(el, {
    about: (number) => give("about", number, sample.about as unknown as About),
    compare: (first, second) => give("compare", [first, second], sample.compared as unknown as Compared),
    again: (number, seeded) => give("again", [number, seeded], null),
    export: (numbers) => give("export", numbers, "{}"),
    choose: (numbers) => asked.push(["choose", numbers]),
    show: (numbers) => told.push(numbers),
  });
  view.setRows(rows);
  const button = (name: string) => [...el.querySelectorAll("button")].find((it) => it.textContent === name) as HTMLButtonElement;
  const lines = () => [...el.querySelectorAll("tbody tr[tabindex]")] as HTMLElement[];
  const settle = () => new Promise((done) => setTimeout(done));
  return { el, view, asked, told, button, lines, settle, fail: () => (fails = true) };
}

test("two runs that are ticked are compared, the older one first", async () => {
  const { el, button, lines, asked, settle } = shown();
  expect(button("Compare").disabled).toBe(true);
  lines()[0]?.querySelector("input")?.click();
  lines()[1]?.querySelector("input")?.click();
  button("Compare").click();
  await settle();
  expect(asked[asked.length - 1]).toEqual(["compare", [1, 2]]);
  expect([...el.querySelectorAll("pre .first, pre .second")].map((it) => it.textContent?.[0])).toEqual(["−", "+"]);
  expect(el.querySelectorAll("svg circle").length).toBe(2);
  expect(el.querySelectorAll("svg rect").length).toBe(1);
});

test("a run that is opened shows its code, and can be run again with its seed", async () => {
  const { el, button, lines, asked, settle } = shown();
  lines()[1]?.click();
  await settle();
  expect(el.querySelector("pre")?.textContent).toBe(sample.about.code);
  (el.querySelector("label input") as HTMLInputElement).click();
  button("Run again").click();
  expect(asked[asked.length - 1]).toEqual(["again", [1, true]]);
});

test("keys walk the rows, tick and open them", async () => {
  const { lines, asked } = shown();
  const press = (key: string) => (document.activeElement as HTMLElement).dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  lines()[0]?.focus();
  press("ArrowDown");
  press(" ");
  expect(asked[0]).toEqual(["choose", [1]]);
  press("Enter");
  expect(asked[1]).toEqual(["about", 1]);
});

test("while a run is run again no other is, and what went wrong is shown", async () => {
  const { el, view, button, lines, settle, fail } = shown();
  lines()[0]?.click();
  view.setBusy(2);
  expect(button("Run again").disabled).toBe(true);
  view.setBusy(0);
  view.setTrouble({ what: "RuntimeError: no", why: "", next: "" });
  expect(el.querySelector("[role=alert]")?.textContent).toBe("RuntimeError: no");
  fail();
  lines()[1]?.click();
  await settle();
  expect(el.querySelector("[role=alert]")?.textContent).toContain("because");
});

test("without runs it says what fills it, and prompts are text", () => {
  expect(shown([]).el.textContent).toContain("No runs yet");
  const row = [...(sample.rows[0] as unknown as Row)] as Row;
  row[3] = "<img src=x onerror=alert(1)>";
  expect(shown([row]).el.querySelector("img")).toBeNull();
});

test("a run that failed says so in its row, and why below", async () => {
  const rows = sample.rows.map((row) => [...row]) as unknown as Row[];
  (rows[0] as Row)[8] = "ZeroDivisionError: <b>division";
  const about = { ...sample.about, failed: "ZeroDivisionError: <b>division" };
  const el = document.createElement("div");
  const view = runLedger(el, { about: () => Promise.resolve(about as unknown as About), compare: () => Promise.reject(new Error()), again: () => Promise.resolve(), export: () => Promise.resolve(""), choose: () => undefined, show: () => undefined });
  view.setRows(rows);
  expect([...el.querySelectorAll(".failed")].map((it) => [it.textContent, it.getAttribute("title")])).toEqual([["failed", "ZeroDivisionError: <b>division"]]);
  (el.querySelector("tbody tr[tabindex]") as HTMLElement).click();
  await new Promise((done) => setTimeout(done));
  expect(el.querySelector(".trouble")?.textContent).toBe("It failed: ZeroDivisionError: <b>division");
});
