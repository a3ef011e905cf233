/** One step of a generation: what else was likely, branch beside branch, and where to fork. */
import { clicks, h, replace, update, visible } from "../kit/dom";
import type { Endings } from "../kit/host";
import { Refused } from "../kit/requests";
import { compact } from "../kit/table";
import { trouble } from "../kit/trouble";
import type { Step } from "./generation_data";

export interface Fork {
  branch: number;
  step: number;
  token?: string;
  id?: number;
  edit?: string;
}

/** What is typed of a fork that was not asked for yet. */
export interface Draft {
  token?: string;
  edit?: string;
}

interface Asks {
  fork(fork: Fork): Promise<unknown>;
  draft(draft: Draft, isTyping: boolean): void;
}

export interface Shown {
  branch: number;
  name: string;
  step: Step | undefined;
}

export const STEP_SHEET = `
.insitu-generation_view .likely{display:grid;grid-template-columns:max-content minmax(60px,1fr) max-content;gap:1px 8px;align-items:center;max-width:34rem}
.insitu-generation_view .likely button{font:12px/1.3 var(--mono);white-space:pre;text-align:left;padding:0 6px;min-height:22px;border-color:transparent;overflow:hidden;text-overflow:ellipsis;max-width:16rem}
.insitu-generation_view .likely button:hover:not(:disabled){border-color:var(--blue)}
.insitu-generation_view .likely button:disabled{opacity:1}
.insitu-generation_view .likely .track{height:9px;background:var(--tint);border-radius:2px}
.insitu-generation_view .likely .track i{display:block;height:100%;border-radius:2px;background:var(--blue)}
.insitu-generation_view .pair>:nth-child(2) .track i{background:var(--orange)}
.insitu-generation_view .likely .chosen{font-weight:700}
.insitu-generation_view .forking:not(.hidden){display:flex;flex-wrap:wrap;gap:6px 8px;align-items:center;margin:8px 0 0}
.insitu-generation_view .forking input[name=edit]{flex:1;min-width:18rem;font-family:var(--mono)}
.insitu-generation_view h4{margin:0 0 4px;font-weight:600;font-size:12.5px;overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.insitu-generation_view .pair.two h4{border-left:3px solid var(--blue);padding-left:7px}
.insitu-generation_view .pair.two>:nth-child(2) h4{border-color:var(--orange)}
`;
const PATIENCE_MS = 4000;
const GONE = "The fork could not be asked for: the kernel is gone.\nWatch the generation again when it is back.";

export class StepPanel {
  readonly element = h("section", { "aria-label": "The selected step" });
  private readonly sides = h("div", { class: "pair" });
  private readonly news = h("div", { "aria-live": "polite" });
  private readonly token = h("input", { name: "token", "aria-label": "Another token", placeholder: "another token, as ' Paris'", size: "22" });
  private readonly edit = h("input", { name: "edit", "aria-label": "An edit of the model, in Python", placeholder: "an edit: model.layers[2].mlp_out[:] = 0", spellcheck: "false" });
  private readonly button = h("button", { type: "submit" }, "Fork");
  private readonly form = h("form", { class: "forking" }, this.button, this.token, this.edit);
  private readonly without = h("p", { class: "soft hidden" });
  private at = { branch: 0, step: 0 };

  constructor(
    private readonly asks: Asks,
    endings: Endings,
  ) {
    this.element.append(this.sides, this.form, this.without, this.news);
    endings.listen(this.form, "submit", (event) => {
      event.preventDefault();
      const [token, edit] = [this.token.value, this.edit.value];
      if (!token && !edit.trim()) replace(this.news, h("span", { class: "soft" }, "Type a token or an edit, or click one of the likely tokens."));
      else void this.ask({ ...this.at, ...(token && { token }), ...(edit.trim() && { edit }) });
    });
    endings.listen(this.form, "input", () => asks.draft(this.draft, true));
    endings.listen(this.form, "change", () => asks.draft(this.draft, false));
    clicks(this.sides, "data-fork", (fork) => void this.ask(JSON.parse(fork) as Fork), endings);
    // Jupyter's own shortcuts must not take what is typed here.
    endings.listen(this.form, "keydown", (event) => event.stopPropagation());
  }

  private get draft(): Draft {
    const [token, edit] = [this.token.value, this.edit.value];
    return { ...(token && { token }), ...(edit && { edit }) };
  }

  write({ token = "", edit = "" }: Draft): void {
    if (this.token.value !== token) this.token.value = token; // setting it moves the caret
    if (this.edit.value !== edit) this.edit.value = edit;
  }

  show(at: { branch: number; step: number }, shown: Shown[], { forks, unforkable = "" }: { forks: boolean; unforkable?: string }): void {
    this.at = at;
    this.without.textContent = forks || !unforkable ? "" : `No forks: ${unforkable}.`;
    this.without.classList.toggle("hidden", !this.without.textContent);
    this.form.classList.toggle("hidden", !forks);
    this.button.textContent = `Fork at step ${at.step}`;
    this.sides.classList.toggle("two", shown.length > 1);
    update(this.sides, ...shown.map((side) => this.side(side, forks)));
  }

  private side({ branch, name, step }: Shown, forks: boolean): HTMLElement {
    const heading = h("h4", { title: name }, `Step ${this.at.step}`, h("span", { class: "soft" }, step && step.entropy !== null ? ` · entropy ${compact(step.entropy)} nats` : "", ` · ${name}`));
    if (!step) return h("div", {}, heading, h("p", { class: "soft" }, "It has no such step."));
    const rows = step.top.some(([token, id]) => (id ?? token) === (step.id ?? step.token)) ? step.top : [...step.top, [step.token, step.id, step.chance] as const];
    const list = h("div", { class: "likely", role: "list", "aria-label": "Likely tokens" });
    for (const [token, id, chance] of rows) {
      const isChosen = (id ?? token) === (step.id ?? step.token);
      const share = Math.min(Math.max(chance ?? 0, 0), 1) * 100;
      const what = { branch, step: this.at.step, ...(id === null ? { token } : { id }) };
      list.append(
        h("button", { type: "button", role: "listitem", disabled: !forks || isChosen, class: isChosen && "chosen", "data-fork": forks && !isChosen && JSON.stringify(what), title: forks ? "Fork: go on with this one" : null, "aria-label": `${visible(token)}, ${chance === null ? "unknown" : compact(chance)}${isChosen ? ", chosen" : forks ? ": fork with it" : ""}` }, visible(token) || "∅", isChosen ? " ✓" : ""),
        h("div", { class: "track", "aria-hidden": "true" }, h("i", { style: `width:${share.toFixed(1)}%` })),
        h("span", { class: "soft number", "aria-hidden": "true" }, chance === null ? "" : compact(chance)),
      );
    }
    return h("div", {}, heading, list);
  }

  private async ask(fork: Fork): Promise<void> {
    replace(this.news, h("span", { class: "soft" }, "asking the kernel …"));
    const late = setTimeout(() => replace(this.news, h("div", { class: "trouble" }, "The kernel has not answered: it is busy without a thread for views, or it is gone.")), PATIENCE_MS);
    try {
      await this.asks.fork(fork);
      replace(this.news);
      this.write({});
      this.asks.draft({}, false);
    } catch (error) {
      replace(this.news, error instanceof Refused ? trouble(error) : h("div", { class: "trouble" }, GONE));
    } finally {
      clearTimeout(late);
    }
  }
}
