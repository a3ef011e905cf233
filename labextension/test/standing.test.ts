import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { h } from "../src/kit/dom";
import { root } from "../src/kit/sheet";
import { widget } from "../src/kit/widget";
import { FakeModel } from "./fake_model";

const laidOut = new Set<() => void>();

class Sized {
  constructor(private readonly tell: () => void) {}
  observe(): void {
    laidOut.add(this.tell);
  }
  disconnect(): void {
    laidOut.delete(this.tell);
  }
}

beforeEach(() => {
  vi.stubGlobal("ResizeObserver", Sized);
  vi.spyOn(HTMLElement.prototype, "offsetHeight", "get").mockImplementation(function (this: HTMLElement) {
    return this.isConnected ? 100 : 0;
  });
});
afterEach(() => {
  vi.unstubAllGlobals();
  vi.restoreAllMocks();
  laidOut.clear();
});

/** A host that shows one widget, and shows it again as JupyterLab does. */
function hosted(state: Record<string, unknown> = { layout: {} }) {
  const model = new FakeModel({ a: 1, ...state });
  const around = h("div");
  document.body.replaceChildren(around);
  let [opened, ended] = [0, 0];
  const glue = widget(({ el, get, follow }) => {
    opened++;
    const told = h("p");
    root(el, "some").append(told, h("input"), h("div", { class: "list" }));
    follow({ a: () => (told.textContent = String(get("a"))) });
    return { end: () => ended++ };
  });
  const showBeside = () => {
    const el = h("div");
    const end = glue.render({ model, el });
    around.append(el);
    for (const tell of [...laidOut]) tell();
    return { el, end };
  };
  const showAgain = () => {
    around.textContent = "Loading widget...";
    const el = h("div");
    const end = glue.render({ model, el });
    around.replaceChildren(el);
    for (const tell of [...laidOut]) tell();
    return { el, end };
  };
  return { model, around, showBeside, showAgain, opened: () => opened, ended: () => ended };
}

const input = (el: HTMLElement) => el.querySelector("input") as HTMLInputElement;

test("a view whose place is taken away moves into the next: typed, scrolled and focused as it was", async () => {
  const { model, showBeside, showAgain, opened, ended } = hosted();
  const first = showBeside();
  const list = first.el.querySelector(".list") as HTMLElement;
  input(first.el).value = "half a wor";
  input(first.el).focus();
  list.scrollTop = 70;
  list.dispatchEvent(new Event("scroll"));
  const second = showAgain();
  await Promise.resolve();
  expect(opened()).toBe(1);
  expect(input(second.el).value).toBe("half a wor");
  expect(document.activeElement).toBe(input(second.el));
  expect(second.el.querySelector(".list")?.scrollTop).toBe(70);
  model.set("a", 2);
  expect(second.el.querySelector("p")?.textContent).toBe("2");
  first.end(); // its place is gone, and it lives on
  model.set("a", 3);
  expect(second.el.querySelector("p")?.textContent).toBe("3");
  second.end();
  expect(ended()).toBe(1);
  expect(model.listeners).toBe(0);
});

test("a focus that the user has taken elsewhere stays there", async () => {
  const { showBeside, showAgain } = hosted();
  const elsewhere = h("input");
  const first = showBeside();
  document.body.append(elsewhere);
  input(first.el).focus();
  elsewhere.focus();
  await Promise.resolve();
  showAgain();
  expect(document.activeElement).toBe(elsewhere);
});

test("the page keeps the room of a view that is away", async () => {
  const { around, showBeside, showAgain } = hosted();
  const { el } = showBeside();
  el.remove();
  await new Promise((done) => setTimeout(done));
  expect(around.style.minHeight).toBe("100px");
  showAgain();
  expect(around.style.minHeight).toBe("");
});

test("a second place for a model has a view of its own", () => {
  const { showBeside, opened } = hosted();
  const places = [showBeside(), showBeside()];
  expect(opened()).toBe(2);
  expect(places.map(({ el }) => el.querySelectorAll("p").length)).toEqual([1, 1]);
});

test("a host that does not tell its widgets apart has a view made for each place", () => {
  const { showBeside, showAgain, opened } = hosted({});
  showBeside();
  showAgain();
  expect(opened()).toBe(2);
});

test("what is asked and not answered yet is seen on the view's element", async () => {
  const model = new FakeModel({}, () => 1);
  const el = h("div");
  let answered: Promise<unknown> = Promise.resolve();
  widget(({ el, ask }) => {
    root(el, "some");
    answered = ask("it");
    return { end: () => undefined };
  }).render({ model, el });
  expect(el.querySelector("[data-asking]")).not.toBeNull();
  await answered;
  expect(el.querySelector("[data-asking]")).toBeNull();
});
