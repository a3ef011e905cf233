/** The tensors of a cache: a table of those in sight, and a map and a histogram of the chosen one. */
import { h, replace, visible } from "../kit/dom";
import { exporting } from "../kit/export";
import { Heatmap } from "../kit/heatmap";
import { Endings } from "../kit/host";
import { latest } from "../kit/requests";
import { Rows } from "../kit/rows";
import { root, speaker } from "../kit/sheet";
import { bytes, compact, tableBehind } from "../kit/table";
import { trouble } from "../kit/trouble";
import { type Page, Pages, type Row } from "./cache_pages";
import { BINS, bins, histogram, type Spread } from "./histogram";

export type { Page, Row };

/** What of the shared selection a tensor is of. */
export interface Of {
  layer?: number | null;
  step?: number | null;
}

/** What came to a cache while it is shown: how much there is now, and rows, those that changed first. */
export interface News {
  count: number;
  size: number;
  rows: Row[];
  /** Whether more rows changed than are told. */
  rest: boolean;
  /** Tensors whose numbers are out of date; null for all. */
  stale: number[] | null;
}

export interface Numbers {
  nan: number;
  inf: number;
  mean: number | null;
  std: number | null;
  min: number | null;
  max: number | null;
  zeros: number | null;
  apart?: { largest: number | null; relative: number | null; cosine: number | null } | null;
}

export interface Picture {
  name: string;
  shape: number[];
  leading: number[];
  picture: number[];
  part: [number, number, number, number];
  note: string;
  low: number;
  high: number;
  values: Float32Array;
  counts: Float32Array;
}

export interface Wanted {
  which: number;
  at?: number[];
  rows?: [number, number];
  columns?: [number, number];
}

export interface Asks {
  rows(first: number, end: number, words: string): Promise<Page>;
  numbers(which: number[]): Promise<Record<string, Numbers>>;
  hunt(start: number): Promise<{ found: number | null; next: number | null }>;
  picture(wanted: Wanted): Promise<Picture>;
  /** A tensor was gone to; and what is to be selected by that, where the user did. */
  choose(which: number, of: Of | null): void;
  /** The tensor of a layer and a step that stands where the chosen one does; null where there is none. */
  place(layer: number | null, step: number | null, chosen: number | null): Promise<number | null>;
}

export interface CacheInspectorView {
  /** With the first rows, where they are there already. */
  show(title: string, count: number, size: number, compares: boolean, first?: Page): void;
  /** More has come, at the end; what is chosen and where the list stands stay. */
  grow(news: News): void;
  /** Whether a pass still fills it. */
  setGrowing(isGrowing: boolean): void;
  /** Goes to a tensor by its number. */
  setChosen(number: number | null): void;
  /** Goes to the tensor of a layer and a step that were selected elsewhere. */
  follow(of: Of): void;
  end(): void;
}

const HEIGHT = 24;
const LIST_MAX = 264;
const SHEET = `
.insitu-cache_inspector .list{margin-bottom:8px}
.insitu-cache_inspector .row,.insitu-cache_inspector .headings{display:grid;gap:10px;align-items:center;white-space:nowrap;padding:0 8px;
grid-template-columns:minmax(8rem,2.4fr) minmax(8rem,1.4fr) 5rem repeat(var(--numbers),4.6rem)}
.insitu-cache_inspector{container-type:inline-size}
.insitu-cache_inspector .row code{direction:rtl;text-align:left}
@container (max-width:820px){.insitu-cache_inspector .row,.insitu-cache_inspector .headings{gap:6px;
grid-template-columns:minmax(6rem,2fr) minmax(5rem,1.4fr) 3.6rem repeat(var(--numbers),3.9rem)}}
.insitu-cache_inspector .row>*{overflow:hidden;text-overflow:ellipsis}
.insitu-cache_inspector .row:hover{background:var(--tint)}
.insitu-cache_inspector .row[aria-selected=true]{background:var(--tint);box-shadow:inset 3px 0 var(--blue)}
.insitu-cache_inspector .headings{color:var(--soft);font-size:11.5px}
.insitu-cache_inspector .bad{color:var(--bad);font-weight:600}
.insitu-cache_inspector .sides{display:grid;grid-template-columns:minmax(0,1fr) 260px;gap:14px;margin-top:8px}
.insitu-cache_inspector .places{display:flex;flex-wrap:wrap;gap:4px 14px;margin:6px 0}
.insitu-cache_inspector .places label{display:flex;gap:6px;align-items:center}
@container (max-width:640px){.insitu-cache_inspector .sides{grid-template-columns:1fr}}
`;
const NUMBERS = ["mean", "std", "min", "max"] as const;
const APART = [["largest", "apart"], ["relative", "relative"], ["cosine", "cosine"]] as const;

export function cacheInspector(el: HTMLElement, asks: Asks): CacheInspectorView {
  const endings = new Endings();
  const view = root(el, "cache_inspector", SHEET);
  const say = speaker(view);
  let compares = false;
  const known = new Map<number, Numbers>();
  let [count, chosen] = [0, -1];
  let isGrowing = false;
  let wanted: Wanted = { which: -1 };
  let picture: Picture | null = null;

  const title = h("b");
  const told = h("span", { class: "soft" });
  const search = h("input", { type: "search", placeholder: "Search names", "aria-label": "Search tensors by name" });
  const hunting = h("button", { type: "button", title: "Go to the next tensor with a NaN or an infinity" }, "Find NaN or ∞");
  const headings = h("div", { class: "headings", "aria-hidden": "true" });
  const rows = new Rows(HEIGHT, draw, endings, { role: "listbox", tabindex: "0", "aria-label": "Tensors" });
  rows.element.classList.add("list");
  const place = h("div");
  const about = h("div", { class: "hidden" });
  view.append(h("div", { class: "bar" }, title, told, h("span", { class: "grow" }), search, hunting), headings, rows.element, place, about);

  const heading = h("div", { class: "bar" });
  const places = h("div", { class: "places" });
  const chart = h("div");
  const spread = (): Spread => ({ counts: picture?.counts ?? new Float32Array(), low: picture?.low ?? 0, high: picture?.high ?? 0 });
  const chartPane = h("div", {}, chart, h("div", { class: "bar" }, exporting({ name: "histogram", svg: () => chart.querySelector("svg"), rows: () => [BINS, ...bins(spread())] })), tableBehind("Spread of its numbers", BINS, () => bins(spread()), "Histogram as a table"));
  const map = new Heatmap({ label: "The chosen tensor", rowsName: "row", columnsName: "column", cell: { min: 1, max: 24, height: 20 }, brush: zoom }, endings);
  const behind = tableBehind("Numbers of the picture", ["row", "column", "value"], () => {
    const [[, ...columns] = [], ...rows] = map.rows();
    return rows.flatMap(([name = "", ...values]) => values.map((value, column) => [name, columns[column] ?? "", value]));
  });
  about.append(heading, places, h("div", { class: "sides" }, h("div", {}, map.element, behind), chartPane));

  // The table -------------------------------------------------------------------------------------

  const pages = new Pages(asks.rows, () => search.value.trim(), (isOther) => {
    if (isOther) rows.setCount(pages.total), tellNone();
    else rows.refresh();
    arrive();
    fetchNumbers();
  }, (error) => failed(error));
  const row = (index: number): Row | undefined => pages.row(index);

  function tellNone(): void {
    const why = count ? "No name holds these words." : isGrowing ? "Nothing was kept yet: the pass goes on." : "This cache is empty: nothing was kept.";
    replace(place, pages.total ? null : h("p", { class: "soft" }, why));
  }

  function resize(howMany: number, size: number): void {
    count = howMany;
    rows.setHeight(Math.min(LIST_MAX, Math.max(howMany, 2) * HEIGHT + 4));
    summary = `${compact(howMany)} tensors, ${bytes(size)}`;
    told.textContent = `${summary}${isGrowing ? " · more to come" : ""}`;
  }

  function grow({ count: now, size, rows: came, rest, stale }: News): void {
    resize(now, size);
    if (stale === null) known.clear();
    else stale.forEach((number) => known.delete(number));
    pages.grow(now, came, rest, seen);
    rows.setCount(pages.total);
    tellNone();
    fetchNumbers();
    if (chosen >= 0 && (stale === null || stale.includes(chosen))) open(wanted);
  }

  let counting = false;
  function fetchNumbers(): void {
    if (counting) return;
    const inSight = shown.map((index) => row(index)?.[0]).filter((number): number is number => number !== undefined && !known.has(number));
    if (!inSight.length) return;
    counting = true;
    asks.numbers(inSight.slice(0, 40)).then((given) => {
      const before = known.size;
      for (const [number, numbers] of Object.entries(given)) known.set(Number(number), numbers);
      counting = false;
      if (known.size === before) return;
      rows.refresh();
      fetchNumbers();
    }, (error: unknown) => {
      counting = false;
      failed(error);
    });
  }

  let [shown, seen]: [number[], number[]] = [[], []];
  let soon = 0;
  function draw(index: number): HTMLElement {
    if (!shown.length) {
      clearTimeout(soon);
      soon = window.setTimeout(() => (fetchNumbers(), ([seen, shown] = [shown, []])), 30);
    }
    shown.push(index);
    const it = row(index);
    if (!it) {
      pages.want(index);
      return h("div", { class: "row soft", role: "option" }, "…");
    }
    const [number, name, , shape, kind, size] = it;
    const numbers = known.get(number);
    const bad = numbers && numbers.nan + numbers.inf > 0;
    const cells: [string, number | null | undefined][] = compares ? APART.map(([key, name]) => [name, numbers?.apart?.[key]]) : NUMBERS.map((key) => [key, numbers?.[key]]);
    const broken = bad && [numbers.nan && `${compact(numbers.nan)} NaN`, numbers.inf && `${compact(numbers.inf)} ∞`].filter(Boolean).join(" ");
    // The headings stand outside of the list: a row says itself what its numbers are.
    const words = [visible(name), [kind, shape.join(" by ")].filter(Boolean).join(" "), bytes(size), ...(numbers ? [...cells.map(([named, value]) => `${named} ${worded(value)}`), broken || "no NaN and no infinity"] : [])];
    return h(
      "div",
      { class: "row", role: "option", id: `${key}-${index}`, "aria-selected": String(number === chosen), "aria-label": words.join(", "), click: () => choose(index) },
      h("code", { title: name }, h("bdi", { dir: "ltr" }, visible(name))), // a path that is too long is cut off at its start
      h("span", { class: "soft mono" }, `${kind}[${shape.join(", ")}]`),
      h("span", { class: "soft number" }, bytes(size)),
      ...cells.map(([, value]) => h("span", { class: "number" }, numbers ? worded(value, "–") : "…")),
      h("span", { class: bad ? "bad number" : "soft number" }, numbers ? broken || "none" : "…"),
    );
  }

  /** Go to a tensor; the user's own choice is selected in every view. */
  function choose(index: number, isOwn = true, isFar = false): void {
    const it = row(index);
    if (!it) return;
    [chosen, going] = [it[0], -1];
    rows.element.setAttribute("aria-activedescendant", `${key}-${index}`);
    rows.show(index, isFar);
    const of: Of = { ...(it[2] !== null && { step: it[2] }), ...(it[6] !== null && { layer: it[6] }) };
    if (isOwn) followed = { ...followed, ...of };
    asks.choose(chosen, isOwn ? of : null);
    open({ which: chosen });
    say(`${it[1]}, ${it[4]} ${it[3].join(" by ")}`);
  }

  async function hunt(): Promise<void> {
    let start = chosen + 1;
    for (;;) {
      const { found, next } = await asks.hunt(start);
      if (found !== null) {
        goTo(found, true);
        break;
      }
      if (next === null) {
        say("no NaN and no infinity after this one");
        told.textContent = `${summary} · no NaN and no ∞ ${chosen >= 0 ? "after this one" : "anywhere"}`;
        break;
      }
      told.textContent = `${summary} · searched ${compact(next)} of ${compact(count)}`;
      start = next;
    }
  }

  let going = -1; // what is to be chosen once its row is here
  let isAsked = false; // by the user

  function goTo(number: number, isOwn = false): void {
    [going, isAsked] = [number, isOwn];
    if (search.value.trim()) {
      search.value = "";
      pages.reset();
    }
    pages.want(number);
    arrive();
  }

  function arrive(): void {
    if (going >= 0 && row(going)) choose(going, isAsked, true);
  }

  // One tensor ------------------------------------------------------------------------------------

  const latestPicture = latest();
  function open(next: Wanted): void {
    wanted = next;
    latestPicture(asks.picture(wanted)).then(drawPicture, failed);
  }

  function drawPicture(given: Picture): void {
    picture = given;
    about.classList.remove("hidden");
    const { part, shape, leading } = given;
    const isPart = part[0] > 0 || part[2] > 0 || part[1] < (shape.length > 1 ? (shape[shape.length - 2] ?? 1) : 1) || part[3] < (shape[shape.length - 1] ?? 1);
    replace(
      heading,
      h("b", { class: "mono" }, visible(given.name)),
      h("span", { class: "soft" }, `[${shape.join(", ")}]${given.note ? ` · ${given.note}` : ""}${isPart ? ` · rows ${part[0]}–${part[1] - 1}, columns ${part[2]}–${part[3] - 1}` : ""}`),
      h("span", { class: "grow" }),
      isPart && h("button", { type: "button", click: () => open({ which: wanted.which, at: wanted.at }) }, "Whole"),
      exporting({ name: "tensor", canvas: () => map.canvas, svg: () => map.svg(), rows: () => map.rows() }),
    );
    replace(places, ...leading.map((size, dimension) => {
      const at = wanted.at?.[dimension] ?? 0;
      const input = h("input", { type: "range", min: 0, max: Math.max(size - 1, 0), value: at, "aria-label": `Place on dimension ${dimension}`, input: () => {
        const next = leading.map((_, other) => wanted.at?.[other] ?? 0);
        next[dimension] = Number(input.value);
        open({ ...wanted, at: next });
      } });
      return size > 1 && h("label", { class: "soft" }, `dim ${dimension}`, input, `${at} of ${size}`);
    }));
    const [high = 0, wide = 0] = given.picture;
    const label = (first: number, last: number, count: number) => (_: unknown, index: number) => String(first + Math.floor((index * (last - first)) / (count || 1)));
    map.show({ rows: Array.from({ length: high }, label(part[0], part[1], high)), columns: Array.from({ length: wide }, label(part[2], part[3], wide)), values: given.values });
    replace(chart, histogram(spread()));
    for (const fold of [behind, ...chartPane.querySelectorAll("details")]) fold.open = false;
    const focused = places.querySelector("input");
    if (focused && document.activeElement === document.body) focused.focus();
  }

  function zoom(cells: { row: number; column: number }[]): void {
    const [from, to] = [cells[0], cells[cells.length - 1]];
    if (!picture || !from || !to || cells.length < 4) return;
    const { part, picture: [high = 1, wide = 1] } = picture;
    const between = (first: number, last: number, count: number, at: number): number => first + Math.floor((at * (last - first)) / count);
    open({
      ...wanted,
      rows: [between(part[0], part[1], high, from.row), Math.max(between(part[0], part[1], high, to.row + 1), between(part[0], part[1], high, from.row) + 1)],
      columns: [between(part[2], part[3], wide, from.column), Math.max(between(part[2], part[3], wide, to.column + 1), between(part[2], part[3], wide, from.column) + 1)],
    });
  }

  const latestPlace = latest();
  let followed: Of | null = null; // what was selected last; nothing before the first word of it
  function follow(of: Of): void {
    const isNews = followed === null ? chosen < 0 && going < 0 : of.layer !== followed.layer || of.step !== followed.step;
    followed = of;
    const [layer, step] = [of.layer ?? null, of.step ?? null];
    if (!isNews || (layer === null && step === null) || search.value.trim()) return;
    latestPlace(asks.place(layer, step, chosen < 0 ? null : chosen)).then((to) => to !== null && to !== chosen && goTo(to), () => undefined);
  }

  const failed = (error: unknown): void => replace(place, trouble(error));
  let summary = "";
  let typing = 0;
  endings.listen(search, "input", () => {
    clearTimeout(typing);
    typing = window.setTimeout(() => pages.reset(), 120);
  });
  endings.listen(hunting, "click", () => {
    hunting.disabled = true;
    void hunt().catch(failed).then(() => (hunting.disabled = false));
  });
  endings.listen(rows.element, "keydown", (event) => {
    const index = Math.max(-1, [...Array(pages.total).keys()].findIndex((at) => row(at)?.[0] === chosen));
    const steps: Record<string, number> = { ArrowDown: index + 1, ArrowUp: index - 1, Home: 0, End: pages.total - 1, PageDown: index + 10, PageUp: index - 10 };
    const next = steps[(event as KeyboardEvent).key];
    if (next === undefined || !pages.total) return;
    event.preventDefault();
    const to = Math.min(Math.max(next, 0), pages.total - 1);
    if (row(to)) choose(to);
    else rows.show(to);
  });

  return {
    show(named, howMany, size, withOther, first) {
      compares = withOther;
      title.textContent = named;
      resize(howMany, size);
      view.style.setProperty("--numbers", String((compares ? APART.length : NUMBERS.length) + 1));
      replace(headings, h("span", {}, "tensor"), h("span", {}, "kind"), h("span", { class: "number" }, "bytes"), ...(compares ? APART.map(([, name]) => name) : [...NUMBERS]).map((name) => h("span", { class: "number" }, name)), h("span", { class: "number" }, "NaN, ∞"));
      chosen = -1;
      known.clear();
      about.classList.add("hidden");
      pages.reset(first?.total === howMany ? first : undefined);
    },
    grow,
    setGrowing(given) {
      isGrowing = given;
      told.textContent = `${summary}${isGrowing ? " · more to come" : ""}`;
      tellNone();
    },
    setChosen(number) {
      if (number !== null && number !== chosen && number < count) goTo(number);
    },
    follow,
    end: () => endings.run(),
  };
}

function worded(value: number | null | undefined, none = "none"): string {
  return value === null || value === undefined ? none : compact(value);
}

const key = `cache${Math.random().toString(36).slice(2, 8)}`;
