/** An image as it comes out of the noise: a strip of pictures to scrub, and where its words look. */
import { css, scale } from "../kit/colours";
import { h, replace, visible } from "../kit/dom";
import { exporting } from "../kit/export";
import { Endings } from "../kit/host";
import { root, speaker } from "../kit/sheet";
import { compact, tableBehind } from "../kit/table";

export interface Step {
  number: number;
  timestep: number | null;
  change: number | null;
  picture: DataView;
  /** Token, height, width; nothing where there are no maps. */
  shape: number[];
  maps: Float32Array;
}

export interface State {
  name?: string;
  of?: number;
  trouble?: { what: string; why: string; next: string };
}

export interface Asks {
  select(step: number): void;
  stop(): Promise<unknown>;
  steps(first: number): Promise<{ steps: Step[]; more: boolean }>;
}

export interface DenoisingViewer {
  about(about: { title: string; prompt: string; tokens: string[]; note?: string }): void;
  state(state: State): void;
  step(step: Step): void;
  mark(step: number | null): void;
  end(): void;
}

const SHEET = `
.insitu-denoising_view .strip{display:flex;gap:4px;overflow-x:auto;padding:4px;border:1px solid var(--rule);border-radius:4px}
.insitu-denoising_view .strip button{flex:none;padding:2px;border-color:transparent;display:grid;justify-items:center;font-size:10.5px;color:var(--soft)}
.insitu-denoising_view .strip button[aria-selected=true]{border-color:var(--blue);box-shadow:inset 0 0 0 1px var(--blue);color:var(--ink)}
.insitu-denoising_view .strip img{width:64px;height:64px;object-fit:contain;image-rendering:pixelated}
.insitu-denoising_view .whole{display:flex;flex-wrap:wrap;gap:10px 16px;margin:8px 0;align-items:flex-start}
.insitu-denoising_view figure{margin:0;font-size:12px}
.insitu-denoising_view figure img,.insitu-denoising_view figure canvas{display:block;image-rendering:pixelated;border-radius:3px}
.insitu-denoising_view .maps{display:flex;flex-wrap:wrap;gap:8px;max-width:38rem}
.insitu-denoising_view .scrub:not(.hidden){display:flex;gap:8px;align-items:center;font-size:12px}
.insitu-denoising_view .scrub input{flex:1;accent-color:var(--blue)}
`;
const [LARGE, SMALL, PATIENCE_MS] = [240, 110, 1500];

export function denoisingView(el: HTMLElement, asks: Asks): DenoisingViewer {
  const endings = new Endings();
  const view = root(el, "denoising_view", SHEET);
  const say = speaker(view);
  const steps: Step[] = [];
  const addresses: string[] = [];
  let [tokens, at, isFollowing, isFetching, isRunning, drawing] = [[] as string[], 0, true, false, false, 0];

  const title = h("b");
  const prompt = h("span", { class: "mono" });
  const news = h("span", { class: "soft", "aria-live": "polite" });
  const stop = h("button", { type: "button", class: "hidden", click: () => void stopped() }, "Stop");
  const strip = h("div", { class: "strip", role: "listbox", tabindex: "0", "aria-label": "The picture after each step; the arrow keys go from step to step" });
  const range = h("input", { type: "range", min: 0, value: 0, "aria-label": "Step" });
  const scrub = h("div", { class: "scrub" }, h("span", { class: "soft" }, "step"), range);
  const whole = h("div", { class: "whole" });
  const trouble = h("div");
  const note = h("p", { class: "soft hidden", style: "margin:0 0 4px" });
  const columns = ["step", "timestep", "change"];
  const places = tableBehind("Where each word is looked at in this step", ["token", "lowest", "highest", "mean", "highest at row, column"], attention, "Attention of this step as a table");
  const looks = h("div", { class: "bar hidden" }, places, h("span", { class: "grow" }), exporting({ name: "attention", rows: () => [["step", "token", "row", "column", "weight"], ...steps.flatMap(weights)] }));
  const rows = (): (string | number)[][] => steps.map((step) => [step.number, step.timestep ?? Number.NaN, step.change ?? Number.NaN]);
  view.append(
    h("div", { class: "bar" }, title, prompt, news, stop, h("span", { class: "grow" }), exporting({ name: "denoising", canvas: whole_, rows: () => [columns, ...rows()] })),
    trouble, strip, scrub, whole, note, tableBehind("Steps", columns, rows), looks,
  );

  function address(number: number): string {
    const picture = steps[number]?.picture;
    if (!picture) return "";
    return (addresses[number] ??= URL.createObjectURL(new Blob([picture as unknown as BlobPart])));
  }
  endings.add(() => addresses.forEach((address) => URL.revokeObjectURL(address)));

  /** The large picture on a canvas, to be saved. */
  function whole_(): HTMLCanvasElement {
    const image = whole.querySelector("img");
    const canvas = h("canvas", { width: image?.naturalWidth || 0, height: image?.naturalHeight || 0 });
    if (image) canvas.getContext("2d")?.drawImage(image, 0, 0);
    return canvas;
  }

  function picked(step: number): void {
    if (!steps.length) return;
    at = Math.min(Math.max(step, 0), steps.length - 1);
    isFollowing = isRunning && at === steps.length - 1;
    asks.select(at);
    say(`step ${at} of ${steps.length}`);
    draw();
  }

  function later(): void {
    cancelAnimationFrame(drawing);
    drawing = requestAnimationFrame(draw);
  }

  function draw(): void {
    while (strip.children.length < steps.length) {
      const number = strip.children.length;
      strip.append(h("button", { type: "button", role: "option", tabindex: "-1", click: () => picked(number) }, h("img", { src: address(number), alt: "", loading: "lazy" }), String(number)));
    }
    [...strip.children].forEach((button, number) => button.setAttribute("aria-selected", String(number === at)));
    const chosen = strip.children[at] as HTMLElement | undefined;
    if (chosen) strip.scrollLeft = Math.min(strip.scrollLeft, chosen.offsetLeft - strip.offsetLeft - 8) < chosen.offsetLeft - strip.offsetLeft - strip.clientWidth + chosen.offsetWidth ? chosen.offsetLeft - strip.offsetLeft - strip.clientWidth + chosen.offsetWidth + 8 : Math.min(strip.scrollLeft, chosen.offsetLeft - strip.offsetLeft - 8);
    range.max = String(Math.max(steps.length - 1, 0));
    range.value = String(at);
    scrub.classList.toggle("hidden", steps.length < 2);
    const step = steps[at];
    looks.classList.toggle("hidden", step?.shape.length !== 3);
    places.dispatchEvent(new Event("toggle")); // filled anew where it is open
    if (!step) {
      replace(whole, h("span", { class: "soft" }, "No picture yet."));
      return;
    }
    const said = [`step ${step.number}`, step.timestep === null ? "" : `timestep ${compact(step.timestep)}`, step.change === null ? "" : `moved by ${compact(step.change)} of its length`];
    replace(
      whole,
      h("figure", {}, h("img", { src: address(at), width: LARGE, alt: `The picture after step ${step.number}` }), h("figcaption", { class: "soft" }, said.filter(Boolean).join(" · "))),
      step.shape.length === 3 ? h("div", { class: "maps", role: "list", "aria-label": "Where each token is looked at" }, ...tokens.slice(0, step.shape[0]).map((token, number) => map(step, token, number))) : null,
    );
  }

  function map(step: Step, token: string, number: number): HTMLElement {
    const [high, wide] = [step.shape[1] ?? 0, step.shape[2] ?? 0];
    const values = step.maps.subarray(number * high * wide, (number + 1) * high * wide);
    const known = scale(values);
    const canvas = h("canvas", { width: wide, height: high, role: "img", "aria-label": `Attention to ${visible(token)}: from ${compact(known.low)} to ${compact(known.high)}`, style: `width:${SMALL}px;height:${(SMALL * high) / Math.max(wide, 1)}px` });
    const context = canvas.getContext("2d");
    if (context)
      values.forEach((value, index) => {
        context.fillStyle = css(known.colour(value));
        context.fillRect(index % wide, Math.floor(index / wide), 1, 1);
      });
    return h("figure", { role: "listitem" }, canvas, h("figcaption", {}, h("code", {}, visible(token)), h("span", { class: "soft" }, ` ${compact(known.low)} – ${compact(known.high)}`)));
  }

  /** The map of each word in the step that is shown, in a row. */
  function attention(): (string | number)[][] {
    const { shape: [, high = 0, wide = 0] = [], maps } = steps[at] ?? { shape: [], maps: new Float32Array() };
    return tokens.slice(0, steps[at]?.shape[0] ?? 0).map((token, number) => {
      const values = maps.subarray(number * high * wide, (number + 1) * high * wide);
      const { low, high: most } = values.reduce((known, value) => ({ low: Math.min(known.low, value), high: Math.max(known.high, value) }), { low: Infinity, high: -Infinity });
      const where = values.indexOf(most);
      return [visible(token), low, most, values.reduce((sum, value) => sum + value, 0) / (values.length || 1), `${Math.floor(where / (wide || 1))}, ${where % (wide || 1)}`];
    });
  }

  /** Every weight of a step: token, row, column. */
  function weights({ number, shape: [count = 0, high = 0, wide = 0], maps }: Step): (string | number)[][] {
    return [...maps.subarray(0, count * high * wide)].map((weight, index) => [number, tokens[Math.floor(index / (high * wide))] ?? "", Math.floor(index / wide) % high, index % wide, weight]);
  }

  async function fetch(): Promise<void> {
    if (isFetching) return;
    isFetching = true;
    try {
      for (let more = true; more; ) {
        const came = await asks.steps(steps.length);
        came.steps.forEach((step) => (steps[step.number] ??= step));
        more = came.more && came.steps.length > 0;
        if (isFollowing) at = Math.max(steps.length - 1, 0);
        if (wanted !== null && !isRunning) marked(wanted);
        later();
      }
    } catch {
      replace(trouble, h("div", { class: "trouble", role: "alert" }, "The steps could not be had: the kernel does not know them any more."));
    } finally {
      isFetching = false;
    }
  }

  let wanted: number | null = null; // a step that was selected before it was here
  function marked(step: number | null): void {
    wanted = step !== null && step >= steps.length ? step : null;
    if (step === null || step === at || step >= steps.length) return;
    [at, isFollowing] = [step, false];
    later();
  }

  async function stopped(): Promise<void> {
    const late = setTimeout(() => (news.textContent = "the kernel hears this only when its cell has ended: interrupt the kernel instead"), PATIENCE_MS);
    await asks.stop().catch(() => undefined);
    clearTimeout(late);
  }

  endings.listen(range, "input", () => picked(Number(range.value)));
  endings.listen(strip, "keydown", (event) => {
    const { key } = event as KeyboardEvent;
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: steps.length - 1 }[key];
    if (to === undefined) return;
    event.preventDefault();
    picked(to);
  });
  endings.add(() => cancelAnimationFrame(drawing));

  return {
    about(given) {
      ({ tokens } = given);
      title.textContent = given.title;
      prompt.textContent = visible(given.prompt);
      note.textContent = given.note ?? "";
      note.classList.toggle("hidden", !given.note);
      void fetch();
      later();
    },
    state({ name, of, trouble: told }) {
      isRunning = name === "running";
      stop.classList.toggle("hidden", !isRunning);
      news.textContent = { running: `drawing, ${of} steps …`, stopped: "stopped: what came so far is kept", failed: "failed" }[name ?? ""] ?? "";
      replace(trouble, told ? h("div", { class: "trouble", role: "alert" }, [told.what, told.why, told.next].filter(Boolean).join("\n")) : null);
    },
    step(step) {
      if (step.number > steps.length) void fetch();
      else steps[step.number] = step;
      if (isFollowing) at = Math.max(steps.length - 1, 0);
      later();
    },
    mark: marked,
    end: () => endings.run(),
  };
}
