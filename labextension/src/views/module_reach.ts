/** What a block can reach at the modules of a tree, as the model is run: chips at the rows, and a list above them. */
import { h, replace } from "../kit/dom";
import { compact } from "../kit/table";

/** Modules at which a block can do less than at others, or does it in another way. */
export interface Kind {
  label: string;
  words: string;
  /** Firsts and lasts of stretches: `[0, 3, 7, 7]` is 0 to 3, and 7. */
  rows: number[];
}

/** Nothing while it is not shown. */
export interface Reach {
  backend?: string;
  kinds?: Kind[];
}

export const REACH_SHEET = `
.insitu-module_tree .kind{border:1px solid var(--rule);border-radius:3px;padding:0 5px;font-size:11px;line-height:16px;flex:none;color:var(--soft)}
.insitu-module_tree .kind.less{border:1px dashed var(--bad);color:var(--bad)}
.insitu-module_tree .reach:not(.hidden){display:grid;grid-template-columns:max-content max-content minmax(0,1fr);gap:3px 10px;align-items:baseline;margin:6px 0 8px;padding:6px 8px;border:1px solid var(--rule);border-radius:4px;font-size:12px}
.insitu-module_tree .reach>p{grid-column:1/-1;margin:0}
.insitu-module_tree .reach>div{display:contents}
.insitu-module_tree .reach button{font-size:11.5px;text-align:left}
.insitu-module_tree .reach .number{text-align:right}
.insitu-module_tree button[aria-pressed=true]{border-color:var(--blue);box-shadow:inset 0 -2px var(--blue)}
`;
/** Kinds that take something away; the others say how it is done. */
const LESS = new Set(["out of reach", "own values alone", "never called"]);

export class ReachOf {
  readonly button: HTMLButtonElement;
  readonly element = h("section", { class: "reach hidden", "aria-label": "What a block can reach" });
  private kinds: Kind[] = [];
  /** For each row, a bit for each of its kinds; null while nothing of it is shown. */
  private bits: Uint16Array | null = null;

  constructor(
    lay: (isOn: boolean) => void,
    private readonly show: (label: string) => void,
  ) {
    this.button = h("button", { type: "button", "aria-pressed": "false", title: "What a block can reach, as this model is run", "aria-label": "Reach: what a block can read and write here", click: () => lay(!this.isOn) }, "Reach");
  }

  get isOn(): boolean {
    return this.bits !== null;
  }

  of(row: number): Kind[] {
    const own = this.bits?.[row] ?? 0;
    return own ? this.kinds.filter((_, bit) => own & (1 << bit)) : [];
  }

  chips(row: number): HTMLElement[] {
    return this.of(row).map(({ label, words }) => h("span", { class: LESS.has(label) ? "kind less" : "kind", title: words }, label));
  }

  take({ backend = "", kinds }: Reach, count: number): void {
    this.kinds = kinds ?? [];
    const bits = kinds ? new Uint16Array(count) : null;
    this.bits = bits;
    this.button.setAttribute("aria-pressed", String(this.isOn));
    this.element.classList.toggle("hidden", !this.isOn);
    if (!bits) return replace(this.element);
    const counts = this.kinds.map(({ rows }, bit) => marked(bits, rows, 1 << bit));
    const open = bits.reduce((sum, own) => sum + Number(!own), 0);
    replace(
      this.element,
      h("p", {}, h("b", {}, "As it is run here: "), backend),
      ...this.kinds.map(({ label, words }, at) =>
        h(
          "div",
          {},
          h("button", { type: "button", "aria-label": `${label}: show these ${compact(counts[at] ?? 0)}`, click: () => this.show(label) }, label),
          h("span", { class: "number" }, compact(counts[at] ?? 0)),
          h("span", { class: "soft" }, words),
        ),
      ),
      h("p", { class: "soft" }, `${this.kinds.length ? "The other " : ""}${compact(open)} modules: input, output, operations and all that is in them.`),
    );
  }
}

function marked(bits: Uint16Array, stretches: number[], bit: number): number {
  let count = 0;
  for (let at = 0; at + 1 < stretches.length; at += 2)
    for (let row = stretches[at] as number; row <= (stretches[at + 1] as number) && row < bits.length; row++, count++) bits[row] = (bits[row] as number) | bit;
  return count;
}
