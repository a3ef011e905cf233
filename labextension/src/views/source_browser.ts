/** The text of a forward: each operation a button beside its line; a double step goes into it. */
import { h, replace } from "../kit/dom";
import { exporting } from "../kit/export";
import { Endings } from "../kit/host";
import { BLUE, linesPicture, ORANGE, SOFT } from "../kit/lines_picture";
import { root, speaker } from "../kit/sheet";
import { trouble } from "../kit/trouble";

export interface Listing {
  path: string;
  function: string;
  file: string;
  /** Line number, text, operations. */
  lines: [number, string, string[]][];
}

export interface Asks {
  select(operation: string): void;
  into(trail: string[]): Promise<Listing>;
}

export interface SourceBrowserView {
  show(title: string, listing: Listing): void;
  /** Marks the operation where a pass stands, and the line it is at. */
  stand(operation: string | null, line?: number | null): void;
  /** Goes to an operation, as it is written behind `.source.`. */
  setSelected(operation: string): void;
  end(): void;
}

const SHEET = `
.insitu-source_browser .text{max-height:440px;overflow:auto;border:1px solid var(--rule);border-radius:4px;padding:4px 0}
.insitu-source_browser .line{display:grid;grid-template-columns:minmax(9rem,16rem) 3.2rem minmax(0,1fr);gap:10px;padding:0 8px;align-items:start}
.insitu-source_browser .line:hover{background:var(--tint)}
.insitu-source_browser .line.at{background:var(--tint);box-shadow:inset 3px 0 var(--orange)}
.insitu-source_browser .names{display:flex;flex-wrap:wrap;gap:2px;justify-content:flex-end}
.insitu-source_browser .names button{font:11.5px/1.4 var(--mono);padding:0 5px;min-height:0;border-color:transparent;background:none;color:var(--link);overflow-wrap:anywhere;text-align:right}
.insitu-source_browser .names button:hover{border-color:var(--rule)}
.insitu-source_browser .line .names button[aria-pressed=true]{background:var(--blue);color:#fff;border-color:var(--blue)}
.insitu-source_browser .names button.stands::before{content:"▶ ";color:var(--orange)}
.insitu-source_browser .line code{white-space:pre-wrap;padding-left:calc((var(--in) + 4)*1ch);text-indent:calc((var(--in) + 4)*-1ch)}
.insitu-source_browser .chosen{display:flex;flex-wrap:wrap;gap:8px;align-items:center;min-height:30px;margin-top:6px}
`;

export function sourceBrowser(el: HTMLElement, asks: Asks): SourceBrowserView {
  const endings = new Endings();
  const view = root(el, "source_browser", SHEET);
  const say = speaker(view);
  let module = "";
  let trail: string[] = [];
  let first: Listing | null = null;
  let now: Listing | null = null;
  let chosen = "";
  let stands: string | null = null;
  let standsAt: number | null = null;

  const crumbs = h("nav", { class: "bar", "aria-label": "Where in the source", style: "margin:0" });
  const where = h("div", { class: "soft mono", style: "margin:0 0 4px;white-space:normal;overflow-wrap:anywhere" });
  const text = h("div", { class: "text", role: "list", "aria-label": "Lines of the function" });
  const below = h("div", { class: "chosen", "aria-live": "polite" });
  const exports = exporting({ name: "source", svg: picture, rows: operations, text: numbered });
  view.append(h("div", { class: "bar" }, crumbs, h("span", { class: "grow" }), exports), where, text, below);

  const whole = (name: string): string => [...trail, name].join(".source.");

  function draw(): void {
    if (!now) return;
    const crumb = (name: string, depth: number): HTMLElement => h("button", { type: "button", class: "mono", click: () => void go(trail.slice(0, depth)), disabled: depth === trail.length }, name);
    replace(crumbs, crumb(module, 0), ...trail.flatMap((name, index) => [h("span", { class: "soft" }, "›"), crumb(name, index + 1)]));
    where.textContent = `${now.function} · ${now.file}`;
    replace(
      text,
      ...now.lines.map(([number, line, names]) =>
        h(
          "div",
          { class: number === standsAt && !trail.length ? "line at" : "line", role: "listitem", "aria-current": number === standsAt && !trail.length ? "step" : null },
          h("span", { class: "names" }, ...names.map((name) => h("button", { type: "button", class: whole(name) === stands ? "stands" : "", "aria-pressed": String(whole(name) === chosen), title: whole(name) === stands ? "the pass stands here" : `${module}.${whole(name)}`, click: () => choose(name), dblclick: () => void go([...trail, name]) }, ...breakable(name)))),
          h("span", { class: "soft number mono" }, number),
          h("code", { style: `--in:${line.search(/\S|$/)}` }, line || " "), // what is too long goes on further in
        ),
      ),
    );
  }

  /** The function that is shown, whole: names, numbers and lines side by side. */
  function picture(): SVGSVGElement | null {
    if (!now) return null;
    const [lines, isFirst] = [now.lines, !trail.length];
    const room = Math.max(0, ...lines.map(([, , names]) => names.join(" ").length));
    const drawn = lines.map(([number, line, names]) => ({
      parts: [
        { text: " ".repeat(room - names.join(" ").length) },
        ...names.map((name, index) => ({ text: (index ? " " : "") + name, colour: whole(name) === stands ? ORANGE : BLUE })),
        { text: `  ${String(number).padStart(5)}  `, colour: SOFT },
        { text: line },
      ],
      isTinted: number === standsAt && isFirst,
    }));
    return linesPicture(`${now.function}, ${now.file}`, drawn);
  }

  function operations(): (string | number)[][] {
    const rows = (now?.lines ?? []).flatMap(([number, line, names]) => names.map((name) => [`${module}.${whole(name)}`, name, number, line.trim()]));
    return [["path", "operation", "line", "text"], ...rows];
  }

  function numbered(): string {
    const head = now ? [`${[module, ...trail].join(".source.")}`, `${now.function} · ${now.file}`, ""] : [];
    const lines = (now?.lines ?? []).map(([number, line, names]) => `${String(number).padStart(5)}  ${line}${names.length ? `  # ${names.join(" ")}` : ""}`);
    return `${[...head, ...lines].join("\n")}\n`;
  }

  function choose(name: string): void {
    chosen = whole(name);
    asks.select(chosen);
    text.querySelectorAll(".names button").forEach((button) => button.setAttribute("aria-pressed", String(button.textContent === name)));
    const path = `model.${dotted(module)}.${chosen}`;
    replace(
      below,
      h("code", {}, `${path}.output`),
      h("button", { type: "button", title: "Copy the path", click: () => void navigator.clipboard?.writeText(`${path}.output`) }, "Copy"),
      h("button", { type: "button", title: "Show the function that it calls", click: () => void go([...trail, name]) }, "Go into it"),
    );
    say(`${name}, line ${now?.lines.find(([, , names]) => names.includes(name))?.[0]}`);
  }

  async function go(next: string[]): Promise<void> {
    try {
      now = next.length ? await asks.into(next) : first;
      trail = next;
      replace(below);
      draw();
      text.scrollTop = 0;
    } catch (error) {
      replace(below, trouble(error));
    }
  }

  return {
    show(title, listing) {
      [module, first, now, trail, chosen] = [title, listing, listing, [], ""];
      replace(below, h("span", { class: "soft" }, "Click an operation to read it in a block; double click, or “Go into it”, opens the function it calls."));
      draw();
    },
    stand(operation, line = null) {
      [stands, standsAt] = [operation, line];
      draw();
      const at = text.querySelector<HTMLElement>(".line.at");
      if (at) text.scrollTop = at.offsetTop - text.offsetTop - text.clientHeight / 3;
    },
    setSelected(operation) {
      const names = operation.split(".source.");
      const name = names.pop() ?? "";
      if (!operation || operation === chosen || !now) return;
      const there = names.join() === trail.join() ? Promise.resolve() : go(names);
      void there.then(() => now?.lines.some(([, , all]) => all.includes(name)) && names.join() === trail.join() && choose(name));
    },
    end: () => endings.run(),
  };
}

/** `transformer.h.0.attn.source` as it is written in Python: `transformer.h[0].attn.source`. */
export function dotted(path: string): string {
  return path.replace(/\.(\d+)(?=\.|$)/g, "[$1]");
}

/** A name that is too long for its column goes on below after an underscore. */
function breakable(name: string): (string | HTMLElement)[] {
  return name.split(/(?<=_)(?=[^_])/).flatMap((part, index) => (index ? [h("wbr"), part] : [part]));
}
