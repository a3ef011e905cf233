import { expect, test } from "vitest";
import { kernelWatch } from "../src/kit/alive";
import { Endings, type Model, type Signal } from "../src/kit/host";
import { Requests } from "../src/kit/requests";

test("a kernel that ends is noticed at once, and not heard after the view has gone", () => {
  const heard = new Set<(sender: unknown, status: string) => void>();
  const statusChanged: Signal<string> = { connect: (slot) => heard.add(slot), disconnect: (slot) => heard.delete(slot) };
  const model: Model = { get: () => undefined, set: () => undefined, save_changes: () => undefined, on: () => undefined, off: () => undefined, send: () => undefined, widget_manager: { kernel: { statusChanged } } };
  const endings = new Endings();
  const told: boolean[] = [];
  kernelWatch(model, new Requests(model, endings), endings, (isGone) => told.push(isGone), () => false);
  const say = (status: string): void => heard.forEach((slot) => slot(null, status));
  say("busy");
  expect(told).toEqual([]);
  say("autorestarting");
  say("dead");
  expect(told).toEqual([true]);
  endings.run();
  expect(heard.size).toBe(0);
});
