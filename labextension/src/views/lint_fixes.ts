/** What the linter found in a cell: three lines each, what to write instead, and a button that does it. */
import { h, replace } from "../kit/dom";
import { Endings } from "../kit/host";
import { root, speaker } from "../kit/sheet";
import type { Outcome } from "../kit/cells";

export interface Item {
  rule: string;
  line: number;
  what: string;
  why: string;
  next: string;
  /** Signs and lines: what goes, what comes, and a little of what is between. */
  change: [string, string][];
  /** The whole cell as it is to be; empty where there is no repair. */
  fixed: string;
}

export interface Acts {
  /** Puts a text in the cell's place. */
  fix(text: string): Outcome;
  copy(text: string): Promise<void>;
}

export interface LintFixesView {
  show(items: Item[]): void;
  end(): void;
}

const SHEET = `
.insitu-lint_fixes{max-width:60rem}
.insitu-lint_fixes ol{list-style:none;margin:0;padding:0}
.insitu-lint_fixes li{border-left:3px solid var(--orange);padding:0 0 2px 10px;margin:6px 0 8px}
.insitu-lint_fixes p{margin:0}
.insitu-lint_fixes .change{background:var(--tint);border-radius:3px;padding:3px 6px;margin:4px 0}
.insitu-lint_fixes .change>div{display:grid;grid-template-columns:1.2rem minmax(0,1fr)}
.insitu-lint_fixes .gone,.insitu-lint_fixes .kept{color:var(--soft)}
.insitu-lint_fixes .come code{font-weight:600}
.insitu-lint_fixes .change code{white-space:pre-wrap;overflow-wrap:anywhere}
.insitu-lint_fixes .acts{display:flex;gap:8px;align-items:center;min-height:26px}
`;

const SIGNS: Record<string, string> = { "−": "gone", "+": "come", " ": "kept" };

export function lintFixes(el: HTMLElement, acts: Acts): LintFixesView {
  const endings = new Endings();
  const view = root(el, "lint_fixes", SHEET);
  const say = speaker(view);
  const head = h("div", { class: "bar" });
  const list = h("ol", { "aria-label": "Findings of the linter" });
  view.append(head, list);

  function finding(item: Item): HTMLElement {
    const told = h("span", { class: "soft" });
    const tell = (words: string): void => {
      told.textContent = words;
      say(words);
    };
    const copy = (words: string): void => {
      acts.copy(item.fixed).then(
        () => tell(words),
        () => tell("It could not be copied either; the lines above are what to write."),
      );
    };
    const fix = (): void => {
      const outcome = acts.fix(item.fixed);
      if (outcome === "changed") {
        tell("The cell is changed; run it again.");
        list.querySelectorAll<HTMLButtonElement>("button").forEach((button) => (button.disabled = true));
      } else if (outcome === "other") copy("The cell reads otherwise by now, and is left as it is; the repaired one was copied.");
      else copy("This page does not let a view change cells; the repaired cell was copied: paste it.");
    };
    return h(
      "li",
      {},
      h("p", {}, h("b", {}, `Line ${item.line}: `), item.what),
      h("p", { class: "soft" }, item.why),
      h("p", {}, item.next),
      item.fixed && h("div", { class: "change" }, ...item.change.map(([sign, line]) => h("div", { class: SIGNS[sign] }, h("span", { class: "mono" }, sign), h("code", {}, line || " ")))),
      item.fixed &&
        h(
          "div",
          { class: "acts" },
          h("button", { type: "button", title: "Change the cell above", click: fix }, "Fix"),
          h("button", { type: "button", title: "Copy the repaired cell", click: () => copy("The repaired cell was copied.") }, "Copy"),
          told,
        ),
    );
  }

  return {
    show(items) {
      const many = `${items.length} finding${items.length === 1 ? "" : "s"} before the run`;
      replace(head, h("b", {}, many), h("span", { class: "soft" }, "--no-lint switches them off"));
      replace(list, ...items.map(finding));
    },
    end: () => endings.run(),
  };
}
