/** A generation that fills token by token: its branches, layers by steps, and one step in full. */
import { h, replace, visible } from "../kit/dom";
import { exporting } from "../kit/export";
import { Heatmap } from "../kit/heatmap";
import { Endings } from "../kit/host";
import { root, speaker } from "../kit/sheet";
import { compact, tableBehind } from "../kit/table";
import { entropyChart } from "./generation_chart";
import { Generation, type Lane, type Measure, type Step, windowed } from "./generation_data";
import { Lanes, LANES_SHEET } from "./generation_lanes";
import { type Draft, type Fork, STEP_SHEET, StepPanel } from "./generation_step";

export interface About {
  title: string;
  prompt: string[];
  layers: string[];
  measures: Measure[];
  forks: boolean;
  /** Why there are no forks, though there is a model. */
  unforkable?: string;
}

export interface Asks {
  select(step: number, layer?: number): void;
  focus(branch: number): void;
  /** What is shown of the layers, by its number; a view that is built anew begins there. */
  measure(number: number): void;
  /** What stands in the fork's form, while it is typed and when it is left. */
  draft(draft: Draft, isTyping: boolean): void;
  fork(fork: Fork): Promise<unknown>;
  stop(): Promise<unknown>;
  /** A branch's own steps from one on, for those that were missed. */
  steps(branch: number, first: number): Promise<{ steps: Step[]; more: boolean }>;
}

export interface GenerationViewer {
  about(about: About): void;
  lanes(lanes: Lane[]): void;
  step(branch: number, number: number, step: Step): void;
  focus(branch: number): void;
  measure(number: number): void;
  draft(draft: Draft): void;
  /** Goes to a step, and to a layer by its number from the first; null leaves it as it is. */
  mark(step: number | null, layer?: number | null): void;
  /** The kernel no longer answers, or does again. */
  unanswered(isGone: boolean): void;
  end(): void;
}

const SHEET = `
.insitu-generation_view .prompt{color:var(--soft);margin:0 0 6px;white-space:pre-wrap;overflow-wrap:anywhere;max-height:4.5em;overflow:auto}
.insitu-generation_view .pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,320px),1fr));gap:6px 20px;margin:0 0 4px}
.insitu-generation_view .maps{align-items:end}
.insitu-generation_view .pair>*{min-width:0}
.insitu-generation_view .scrub:not(.hidden){display:flex;gap:8px;align-items:center;font-size:12px}
.insitu-generation_view .scrub input{flex:1;accent-color:var(--blue)}
${LANES_SHEET}${STEP_SHEET}`;
const PROMPT_MAX = 2000;
/** Columns of a map, in pixels, and how many there are at most. */
const [COLUMN, MAP_STEPS] = [36, 48];
const PATIENCE_MS = 1500;
/** Of a longer generation the first are here, and Python has the rest. */
const STEPS_MAX = 20_000;
const COLOURS = ["#3b78b8", "#d9822b"];

export function generationView(el: HTMLElement, asks: Asks): GenerationViewer {
  const endings = new Endings();
  const view = root(el, "generation_view", SHEET);
  const say = speaker(view);
  const generation = new Generation();
  let about: About = { title: "", prompt: [], layers: [], measures: [], forks: false };
  const at = { branch: 0, step: 0, layer: null as number | null };
  let [measure, isFollowing, drawing, fetching] = [0, true, 0, new Set<number>()];

  const title = h("b");
  const state = h("span", { class: "soft" });
  const stop = h("button", { type: "button", class: "hidden", click: () => void stopped() }, "Stop");
  const choice = h("select", { "aria-label": "What is shown of the layers" });
  const prompt = h("div", { class: "prompt mono" });
  const troubles = h("div");
  const lanes = new Lanes(generation, { pick: (branch, step) => picked(step, branch) }, () => at, endings);
  const chart = h("div");
  const range = h("input", { type: "range", min: 0, max: 0, value: 0, "aria-label": "Step" });
  const scrub = h("div", { class: "scrub" }, h("span", { class: "soft" }, "step"), range, exporting({ name: "entropy", svg: () => chart.querySelector("svg") }));
  const where = h("div", { class: "soft" });
  const panes = [0, 1].map((side) => pane(side));
  const pairs = h("div", { class: "pair maps" }, ...panes.map(({ element }) => element));
  const panel = new StepPanel(asks, endings);
  const columns = (): string[] => ["branch", "step", "token", "probability", "entropy", "likeliest"];
  const layered = (what: string): string[] => about.layers.map((layer) => `${what}, layer ${layer}`);
  const behind = tableBehind("Steps of the branches", () => [...columns(), ...layered(about.measures[measure]?.quantity ?? "value")], () => rows((step) => about.layers.map((_, layer) => step.values[measure]?.[layer] ?? Number.NaN)));
  let wanted: number | null = null; // a step that was selected before it was here
  let stepAt = (_: number): number => 0;

  const bar = h("div", { class: "bar" }, title, state, stop, h("span", { class: "grow" }), choice,
    exporting({ name: "generation", canvas: () => (about.layers.length ? panes[0]!.map.canvas : null), svg: () => (about.layers.length ? panes[0]!.map.svg() : chart.querySelector("svg")), rows: everything }));
  view.append(bar, prompt, troubles, lanes.element, chart, where, scrub, pairs, panel.element, behind);

  function pane(side: number) {
    const heading = h("h4");
    let first = 0;
    const flip = (row: number): number => about.layers.length - 1 - row;
    const map = new Heatmap(
      { label: `Layers by steps${side ? ", the other branch" : ""}`, rowsName: "layer", columnsName: "step", cell: { min: COLUMN - 2, max: 90, height: 19 },
        pick: (chosen, column) => {
          at.layer = flip(chosen);
          asks.select(first + column, at.layer);
          picked(first + column, at.branch, false);
        } },
      endings,
    );
    const element = h("div", {}, heading, map.element);
    return {
      map, element,
      show(branch: number | null): void {
        element.classList.toggle("hidden", branch === null || !about.layers.length);
        if (branch === null || !about.layers.length) return;
        const steps = generation.steps(branch);
        const [from, end] = windowed(steps.length, at.step, Math.max(6, Math.min(MAP_STEPS, Math.floor((element.clientWidth - 40) / COLUMN))));
        first = from;
        const part = steps.slice(from, end);
        const flipped = about.layers.map((_, row) => flip(row));
        const chosen = about.measures[measure];
        heading.textContent = name(branch);
        map.show({
          rows: flipped.map((row) => about.layers[row] ?? ""),
          columns: part.map(({ token }) => visible(token)),
          values: flipped.flatMap((row) => part.map(({ values }) => values[measure]?.[row] ?? Number.NaN)),
          text: part.some(({ texts }) => texts.length) ? flipped.flatMap((row) => part.map(({ texts }) => visible(texts[row] ?? ""))) : undefined,
          limits: chosen?.limits ?? undefined,
          quantity: chosen ? [chosen.quantity, chosen.unit && `(${chosen.unit})`].filter(Boolean).join(" ") : undefined,
        });
        const layer = Math.min(at.layer ?? Infinity, about.layers.length - 1);
        map.mark(at.step < steps.length ? { row: flip(layer), column: at.step - first } : null);
      },
    };
  }

  const name = (branch: number): string => {
    const lane = generation.lanes[branch];
    if (!lane) return "";
    return lane.parent === null ? visible(lane.why) : `${visible(lane.why)} at step ${lane.start}`;
  };

  /** Every branch, step, measure, layer and word. */
  function everything(): (string | number)[][] {
    const hasTexts = generation.ordered().some(({ lane }) => generation.steps(lane.number).some(({ texts }) => texts.length));
    const head = [...columns(), ...about.measures.flatMap(({ quantity }) => layered(quantity)), ...(hasTexts ? layered("likeliest") : [])];
    return [head, ...rows((step) => [
      ...about.measures.flatMap((_, number) => about.layers.map((_, layer) => step.values[number]?.[layer] ?? Number.NaN)), ...(hasTexts ? about.layers.map((_, layer) => step.texts[layer] ?? "") : []),
    ])];
  }

  function rows(further: (step: Step) => (string | number)[]): (string | number)[][] {
    return generation.ordered().flatMap(({ lane }) =>
      generation.steps(lane.number).slice(lane.start).map((step, index) => [
        name(lane.number), lane.start + index, visible(step.token), step.chance ?? Number.NaN, step.entropy ?? Number.NaN, step.top.slice(0, 3).map(([token]) => visible(token)).join(" "), ...further(step),
      ]),
    );
  }

  function picked(step: number, branch = at.branch, tells = true): void {
    const last = generation.steps(branch).length - 1;
    isFollowing = step >= last && isRunning();
    at.step = Math.min(Math.max(step, 0), Math.max(last, 0));
    if (branch !== at.branch) asks.focus((at.branch = branch));
    if (tells) asks.select(at.step);
    const token = generation.steps(branch)[at.step];
    say(`${name(branch)}, step ${at.step}${token ? `, ${visible(token.token)}` : ""}`);
    draw();
  }

  const isRunning = (): boolean => generation.lanes.some((lane) => lane.state === "running");

  /** Soon, and once for all that came till then. */
  function later(): void {
    cancelAnimationFrame(drawing);
    drawing = requestAnimationFrame(draw);
  }

  function draw(): void {
    cancelAnimationFrame(drawing);
    const beside = generation.beside(at.branch);
    const shown = [at.branch, ...(beside === null ? [] : [beside])].filter((branch) => generation.lanes[branch]);
    const steps = generation.steps(at.branch);
    at.step = Math.min(at.step, Math.max(steps.length - 1, generation.lanes[at.branch]?.start ?? 0));
    lanes.draw();
    const lines = shown.map((branch, index) => ({ name: name(branch), colour: COLOURS[index] as string, steps: generation.steps(branch), start: index === 0 && beside !== null ? (generation.lanes[branch]?.start ?? 0) : 0 }));
    const drawn = entropyChart([...lines].reverse(), at.step, chart.clientWidth || 640);
    stepAt = drawn.stepAt;
    replace(chart, steps.some(({ entropy }) => entropy !== null) ? drawn.picture : null);
    range.max = String(Math.max(steps.length - 1, 0));
    range.value = String(at.step);
    where.textContent = steps.length < STEPS_MAX ? (steps.length ? "" : "nothing generated yet") : `the first ${compact(steps.length)} steps are here; view.branches has all`;
    panes.forEach((pane, index) => pane.show(shown[index] ?? null));
    pairs.classList.toggle("two", shown.length > 1);
    scrub.classList.toggle("hidden", steps.length < 2);
    panel.element.classList.toggle("hidden", !steps.length);
    panel.show({ branch: at.branch, step: at.step }, shown.map((branch) => ({ branch, name: name(branch), step: generation.steps(branch)[at.step] })), about);
  }

  function tellState(): void {
    const focus = generation.lanes[at.branch];
    const words: Record<string, string> = { waiting: "waiting for the kernel …", running: generation.isCut ? "cut off: what came so far is kept" : "generating …", stopped: "stopped: what came so far is kept", failed: "failed", done: "" };
    state.textContent = words[generation.lanes.find((lane) => lane.state === "running")?.state ?? focus?.state ?? ""] ?? "";
    stop.classList.toggle("hidden", !isRunning() || !about.forks || generation.isCut);
    replace(troubles, ...generation.lanes.filter((lane) => lane.trouble).map((lane) => h("div", { class: "trouble", role: "alert" }, [`${name(lane.number)}: ${lane.trouble?.what}`, lane.trouble?.why, lane.trouble?.next].filter(Boolean).join("\n"))));
  }

  async function stopped(): Promise<void> {
    const late = setTimeout(() => (state.textContent = "the kernel hears this only when its cell has ended: interrupt the kernel instead"), PATIENCE_MS);
    await asks.stop().catch(() => undefined);
    clearTimeout(late);
  }

  async function fetch(branch: number): Promise<void> {
    if (fetching.has(branch)) return;
    fetching.add(branch);
    try {
      for (let more = generation.known(branch) < STEPS_MAX; more; ) {
        const first = generation.known(branch);
        const came = await asks.steps(branch, first);
        came.steps.forEach((step, index) => generation.put(branch, (generation.lanes[branch]?.start ?? 0) + first + index, step));
        more = came.more && came.steps.length > 0 && generation.known(branch) < STEPS_MAX;
        if (isFollowing && branch === at.branch) at.step = generation.steps(branch).length - 1;
        if (wanted !== null && !isRunning() && branch === at.branch) marked(wanted);
        later();
      }
    } catch {
      replace(troubles, h("div", { class: "trouble", role: "alert" }, "The steps of this generation could not be had: the kernel does not know them any more."));
    } finally {
      fetching.delete(branch);
    }
  }

  function marked(step: number | null, layer: number | null = null): void {
    if (layer !== null && layer !== at.layer && layer < about.layers.length) {
      at.layer = layer;
      later();
    }
    const isHere = step !== null && step < generation.steps(at.branch).length;
    wanted = isHere ? null : step;
    if (!isHere || step === at.step) return;
    at.step = step;
    isFollowing = false;
    later();
  }

  endings.listen(choice, "change", () => {
    measure = choice.selectedIndex;
    asks.measure(measure);
    draw();
  });
  endings.listen(range, "input", () => picked(Number(range.value)));
  endings.listen(chart, "pointerdown", (event) => scrubbed(event as PointerEvent));
  endings.listen(chart, "pointermove", (event) => (event as PointerEvent).buttons & 1 && scrubbed(event as PointerEvent));
  endings.add(() => cancelAnimationFrame(drawing));
  const sized = new ResizeObserver(() => chart.clientWidth !== Number(chart.querySelector("svg")?.getAttribute("width") ?? chart.clientWidth) && later());
  sized.observe(chart);
  endings.add(() => sized.disconnect());

  function scrubbed(event: PointerEvent): void {
    const box = chart.getBoundingClientRect();
    if (box.width) picked(stepAt((event.clientX - box.left) / box.width));
  }

  return {
    about(given) {
      about = given;
      title.textContent = about.title;
      const text = about.prompt.join("");
      prompt.textContent = text.length > PROMPT_MAX ? `…${text.slice(-PROMPT_MAX)}` : text;
      prompt.classList.toggle("hidden", !text);
      replace(choice, ...about.measures.map(({ quantity }) => h("option", {}, quantity)));
      choice.selectedIndex = measure;
      choice.classList.toggle("hidden", about.measures.length < 2 || !about.layers.length);
      later();
    },
    lanes(given) {
      const had = generation.lanes.length;
      generation.lanes = given;
      for (const lane of given.slice(had)) void fetch(lane.number);
      tellState();
      later();
    },
    unanswered(isGone) {
      generation.isCut = isGone;
      tellState();
      later();
    },
    step(branch, number, step) {
      if (!generation.put(branch, number, step)) void fetch(branch);
      if (isFollowing && branch === at.branch) at.step = number;
      later();
    },
    focus(branch) {
      if (branch === at.branch) return;
      at.branch = branch;
      const lane = generation.lanes[branch];
      if (lane?.state === "running") at.step = lane.start;
      isFollowing = false;
      tellState();
      later();
    },
    measure(number) {
      if (number === measure || !about.measures[number]) return;
      choice.selectedIndex = measure = number;
      later();
    },
    draft: (draft) => panel.write(draft),
    mark: marked,
    end: () => endings.run(),
  };
}
