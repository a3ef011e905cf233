/** The branches of a generation as lanes of tokens, one below the other, aligned by step. */
import { clicks, h, update, visible } from "../kit/dom";
import type { Endings } from "../kit/host";
import { type Generation, windowed } from "./generation_data";

export interface Wishes {
  pick(branch: number, step: number): void;
}

export const STEPS_IN_SIGHT = 60;
const PARTS = { waiting: "waiting for the kernel", running: "running", done: "", stopped: "stopped", failed: "failed" } as Record<string, string>;

export const LANES_SHEET = `
.insitu-generation_view .lanes{overflow-x:auto;border:1px solid var(--rule);border-radius:4px;padding:4px 0;margin:0 0 8px}
.insitu-generation_view .lanes table{border-spacing:0;border-collapse:separate}
.insitu-generation_view .lanes td,.insitu-generation_view .lanes th{border:0;padding:2px 1px;vertical-align:middle}
.insitu-generation_view .lanes th.name{position:sticky;left:0;background:var(--paper);padding:2px 12px 2px 8px;font-size:12px;cursor:pointer;z-index:1}
.insitu-generation_view .lanes th.name span{display:inline-block;max-width:14rem;overflow:hidden;text-overflow:ellipsis;white-space:pre;vertical-align:bottom}
.insitu-generation_view .lanes tr[data-focus] th.name{font-weight:600;box-shadow:inset 3px 0 var(--blue)}
.insitu-generation_view .lanes tr[data-beside] th.name{box-shadow:inset 3px 0 var(--orange)}
.insitu-generation_view .lanes .at{color:var(--soft);font-size:10.5px;text-align:center}
.insitu-generation_view .token{display:block;background:linear-gradient(var(--blue),var(--blue)) 0 100%/var(--share,0%) 3px no-repeat,var(--tint);border-radius:3px;padding:1px 5px 4px;font:12px/1.4 var(--mono);white-space:pre;text-align:center;min-width:14px;cursor:pointer}
.insitu-generation_view .token.forced{outline:1.5px dashed var(--orange);outline-offset:-1px}
.insitu-generation_view td[aria-selected=true] .token{outline:2px solid var(--blue);outline-offset:-1px}
.insitu-generation_view .shared{opacity:.38;text-align:center;color:var(--soft)}
`;

export class Lanes {
  readonly element: HTMLElement;

  constructor(
    private readonly generation: Generation,
    private readonly wishes: Wishes,
    private readonly where: () => { branch: number; step: number },
    endings: Endings,
  ) {
    this.element = h("div", { class: "lanes", role: "grid", tabindex: "0", "aria-label": "Branches by steps; the arrow keys go from token to token" });
    endings.listen(this.element, "keydown", (event) => this.keyed(event as KeyboardEvent));
    clicks(this.element, "data-lane", (lane) => this.wishes.pick(Number(lane), Math.max(this.where().step, this.generation.lanes[Number(lane)]?.start ?? 0)), endings);
    clicks(this.element, "data-at", (at) => this.wishes.pick(...(at.split(" ").map(Number) as [number, number])), endings);
  }

  draw(): void {
    const { branch, step } = this.where();
    const [first, end] = windowed(this.generation.length, step, STEPS_IN_SIGHT);
    const numbers = Array.from({ length: end - first }, (_, i) => first + i);
    const marks = h("tr", { role: "row" }, h("th", { class: "name", scope: "col" }, this.hidden(first, end)), ...numbers.map((number) => h("th", { class: "at", scope: "col" }, String(number))));
    const beside = this.generation.beside(branch);
    const rows = this.generation.ordered().map(({ lane, depth }) => {
      const steps = this.generation.steps(lane.number);
      const state = this.generation.isCut && lane.state === "running" ? "cut off" : (PARTS[lane.state] ?? lane.state);
      const cells = numbers.map((number) => this.cell(lane.number, number, number < lane.start ? undefined : steps[number], number < lane.start));
      const name = `${"  ".repeat(depth)}${depth ? "↳ " : ""}${visible(lane.why)}${depth ? ` at ${lane.start}` : ""}`;
      return h(
        "tr",
        { role: "row", "data-focus": lane.number === branch, "data-beside": lane.number === beside },
        h("th", { class: "name", scope: "row", title: lane.why, "data-lane": lane.number }, h("span", {}, name), state && h("span", { class: "soft" }, ` · ${state}`)),
        ...cells,
      );
    });
    update(this.element, h("table", { role: "presentation" }, h("thead", {}, marks), h("tbody", {}, ...rows)));
    this.reveal();
  }

  private hidden(first: number, end: number): string {
    const all = this.generation.length;
    return all > end - first ? `steps ${first} to ${end - 1} of ${all}` : "step";
  }

  private cell(branch: number, number: number, step: { token: string; chance: number | null; forced: boolean } | undefined, isShared: boolean): HTMLElement {
    if (isShared) return h("td", { role: "gridcell", class: "shared", "aria-label": "as in the branch it left" }, "·");
    if (!step) return h("td", { role: "gridcell" });
    const { branch: focus, step: at } = this.where();
    const share = Number.isFinite(step.chance) && step.chance !== null ? `--share:${Math.round(Math.min(Math.max(step.chance, 0), 1) * 100)}%` : "";
    const chance = step.chance === null ? "" : `, probability ${step.chance.toPrecision(3)}`;
    return h(
      "td",
      { role: "gridcell", "aria-selected": branch === focus && number === at ? "true" : "false", "aria-label": `step ${number}, ${visible(step.token)}${chance}${step.forced ? ", put there by the fork" : ""}`, title: `step ${number}${chance}`, "data-at": `${branch} ${number}` },
      h("span", { class: step.forced ? "token forced" : "token", style: share }, visible(step.token) || "∅"),
    );
  }

  private revealed = "";

  /** Scroll to the chosen step when another one is: the user's scroll place is kept otherwise. */
  private reveal(): void {
    const { branch, step } = this.where();
    if (this.revealed === `${branch} ${step}`) return;
    this.revealed = `${branch} ${step}`;
    const chosen = this.element.querySelector<HTMLElement>("td[aria-selected=true]");
    if (!chosen) return;
    const [left, right] = [chosen.offsetLeft, chosen.offsetLeft + chosen.offsetWidth];
    const name = this.element.querySelector<HTMLElement>("th.name")?.offsetWidth ?? 0;
    if (left - name < this.element.scrollLeft) this.element.scrollLeft = left - name - 20;
    else if (right > this.element.scrollLeft + this.element.clientWidth) this.element.scrollLeft = right - this.element.clientWidth + 20;
  }

  private keyed(event: KeyboardEvent): void {
    const { branch, step } = this.where();
    const order = this.generation.ordered().map(({ lane }) => lane);
    const row = order.findIndex((lane) => lane.number === branch);
    const last = this.generation.steps(branch).length - 1;
    const to = { ArrowLeft: step - 1, ArrowRight: step + 1, Home: 0, End: last }[event.key];
    if (to !== undefined) this.go(event, branch, to);
    const further = { ArrowUp: order[row - 1], ArrowDown: order[row + 1] }[event.key];
    if (further) this.go(event, further.number, Math.max(step, further.start));
  }

  private go(event: KeyboardEvent, branch: number, step: number): void {
    event.preventDefault();
    const last = this.generation.steps(branch).length - 1;
    this.wishes.pick(branch, Math.min(Math.max(step, 0), Math.max(last, 0)));
  }
}
