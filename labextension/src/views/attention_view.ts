/** Attention: heads small, side by side; one of them large; the text, shaded by what a token reads. */
import { css, inkOn, scale } from "../kit/colours";
import { clicks, h, replace, update, visible } from "../kit/dom";
import { exporting } from "../kit/export";
import { Heatmap } from "../kit/heatmap";
import { Endings } from "../kit/host";
import { latest } from "../kit/requests";
import { root, speaker } from "../kit/sheet";
import { compact, tableBehind } from "../kit/table";
import { trouble } from "../kit/trouble";

export interface Patterns {
  title: string;
  /** What layers and heads are; nothing for an axis that is missing. */
  names: string[];
  layers: string[];
  heads: string[];
  queries: string[];
  keys: string[];
  note: string;
  /** How many queries and keys there are; of very many only the first are named. */
  size: [number, number];
}

export interface Numbers {
  shape: number[];
  values: Float32Array;
}

export interface Asks {
  select(layer: number, head: number, token: number | null): void;
  heads(layer: number): Promise<Numbers>;
  tile(layer: number, head: number, rows: [number, number], columns: [number, number]): Promise<Numbers>;
  query(layer: number, head: number, query: number): Promise<Numbers>;
}

export interface AttentionViewView {
  /** Shows patterns; where others of the same layers, heads and size stood, what is chosen stays. */
  show(patterns: Patterns): void;
  /** Goes somewhere: null leaves an axis as it is, and what is nowhere leaves all. */
  mark(layer: number | null, head: number | null, token: number | null): void;
  end(): void;
}

const TOKENS_MAX = 600;
const LABELLED_MAX = 64;
const SHEET = `
.insitu-attention_view .heads:not(.hidden){display:flex;flex-wrap:wrap;gap:6px;margin:0 0 8px}
.insitu-attention_view .heads button{padding:3px;line-height:1;display:flex;flex-direction:column;gap:2px;align-items:center}
.insitu-attention_view .heads canvas{width:56px;height:56px;image-rendering:pixelated}
.insitu-attention_view .sides{display:grid;grid-template-columns:minmax(0,3fr) minmax(12rem,2fr);gap:14px}
.insitu-attention_view .tokens{line-height:2;overflow-wrap:anywhere;max-height:420px;overflow:auto}
.insitu-attention_view .tokens button{border:0;padding:1px 3px;margin:0;min-height:0;border-radius:3px;font:12px/1.5 var(--mono);white-space:pre}
.insitu-attention_view .tokens button[aria-pressed=true]{box-shadow:0 0 0 2px var(--orange);position:relative}
@media (max-width:640px){.insitu-attention_view .sides{grid-template-columns:1fr}}
`;

export function attentionView(el: HTMLElement, asks: Asks): AttentionViewView {
  const endings = new Endings();
  const view = root(el, "attention_view", SHEET);
  const say = speaker(view);
  let patterns: Patterns = { title: "", names: ["layer", "head"], layers: [], heads: [], queries: [], keys: [], note: "", size: [0, 0] };
  let [layer, head] = [0, 0];
  let query: number | null = null;
  let window: { rows: [number, number]; columns: [number, number] } = { rows: [0, 0], columns: [0, 0] };
  let tile: Numbers = { shape: [0, 0], values: new Float32Array() };
  let read: Float32Array = new Float32Array();

  const title = h("b");
  const choice = h("select", { "aria-label": "Layer" });
  const note = h("span", { class: "soft" });
  const whole = h("button", { type: "button", class: "hidden" }, "Whole map");
  const heads = h("div", { class: "heads", role: "group", "aria-label": "Heads" });
  const tokens = h("div", { class: "tokens", role: "group", "aria-label": "Tokens" });
  const hint = h("div", { class: "soft" });
  const place = h("div");
  const map = new Heatmap(
    { label: "Queries by keys", rowsName: "query", columnsName: "key", cell: { min: 1, max: 26, height: 26 }, pick: (row) => choose(layer, head, first(row)), brush: zoom },
    endings,
  );
  const behind = tableBehind("Weights", ["query", "key", "weight"], () => [...tile.values].flatMap((value, index) => {
    const [row, column] = [Math.floor(index / (tile.shape[1] || 1)), index % (tile.shape[1] || 1)];
    return value > 0 ? [[named(first(row)), visible(patterns.keys[firstKey(column)] ?? `token ${firstKey(column)}`), value]] : [];
  }));
  view.append(
    h("div", { class: "bar" }, title, choice, note, h("span", { class: "grow" }), whole, exporting({ name: "attention", canvas: () => map.canvas, svg: () => map.svg(), rows: () => map.rows() })),
    heads, place, h("div", { class: "sides" }, map.element, h("div", {}, hint, tokens)), behind,
  );

  /** An axis and a place on it, in words; nothing for one that is missing. */
  const at_ = (axis: 0 | 1, label: string | undefined): string => (patterns.names[axis] ? `${patterns.names[axis]} ${label}` : "");
  const named = (at: number): string => visible(patterns.queries[at] ?? `token ${at}`);
  /** The first query, or key, that a pixel of the map stands for. */
  const first = (row: number): number => window.rows[0] + Math.floor((row * (window.rows[1] - window.rows[0])) / (tile.shape[0] || 1));
  const firstKey = (column: number): number => window.columns[0] + Math.floor((column * (window.columns[1] - window.columns[0])) / (tile.shape[1] || 1));

  const latestHeads = latest();
  const latestTile = latest();
  const latestQuery = latest();
  const failed = (error: unknown): void => replace(place, trouble(error));

  function open(): void {
    latestHeads(asks.heads(layer)).then(drawHeads, failed);
    fetchTile();
    readTokens();
  }

  function fetchTile(): void {
    latestTile(asks.tile(layer, head, window.rows, window.columns)).then((given) => {
      tile = given;
      drawMap();
    }, failed);
  }

  function drawHeads({ shape, values }: Numbers): void {
    const [, rows = 0, columns = 0] = shape;
    replace(place);
    update(heads, ...patterns.heads.map((name, index) =>
      h("button", { type: "button", "aria-pressed": String(index === head), "aria-label": at_(1, visible(name)), "data-at": index }, h("canvas", { width: columns || 1, height: rows || 1, "aria-hidden": "true" }), h("span", { class: "soft" }, visible(name)))));
    heads.querySelectorAll("canvas").forEach((canvas, index) => paint(canvas, values.subarray(index * rows * columns, (index + 1) * rows * columns), columns, rows));
  }

  function drawMap(): void {
    const [rows = 0, columns = 0] = tile.shape;
    const labelled = window.rows[1] - window.rows[0] <= LABELLED_MAX && window.columns[1] - window.columns[0] <= LABELLED_MAX;
    const label = (all: string[], at: number): string => (labelled && at < all.length ? visible(all[at] as string) : String(at));
    map.show({
      rows: Array.from({ length: rows }, (_, row) => label(patterns.queries, first(row))),
      columns: Array.from({ length: columns }, (_, column) => label(patterns.keys, firstKey(column))),
      values: tile.values,
      limits: [0, most(tile.values)],
      quantity: "weight",
    });
    const isPart = window.rows[1] - window.rows[0] < patterns.size[0] || window.columns[1] - window.columns[0] < patterns.size[1];
    whole.classList.toggle("hidden", !isPart);
    if (query !== null && query >= window.rows[0] && query < window.rows[1]) {
      const row = Math.min(rows - 1, Math.floor(((query - window.rows[0]) * rows) / (window.rows[1] - window.rows[0])));
      const weights = tile.values.subarray(row * columns, (row + 1) * columns);
      map.mark({ row, column: Math.max(weights.indexOf(weights.reduce((most, weight) => Math.max(most, weight), 0)), 0) }); // what it reads most
    }
  }

  function zoom(cells: { row: number; column: number }[]): void {
    const [from, to] = [cells[0], cells[cells.length - 1]];
    if (!from || !to || cells.length < 4) return;
    window = { rows: [first(from.row), Math.max(first(to.row + 1), first(from.row) + 1)], columns: [firstKey(from.column), Math.max(firstKey(to.column + 1), firstKey(from.column) + 1)] };
    fetchTile();
  }

  function choose(toLayer: number, toHead: number, toQuery: number | null): void {
    move(toLayer, toHead, toQuery);
    asks.select(layer, head, query);
  }

  function move(toLayer: number, toHead: number, toQuery: number | null): void {
    const moved = toLayer !== layer;
    const turned = moved || toHead !== head;
    [layer, head, query] = [toLayer, toHead, toQuery];
    choice.selectedIndex = layer;
    heads.querySelectorAll("button").forEach((button, index) => button.setAttribute("aria-pressed", String(index === head)));
    if (moved) open();
    else if (turned) fetchTile(), readTokens();
    else readTokens(), drawMap();
    say([at_(0, patterns.layers[layer]), at_(1, patterns.heads[head]), query === null ? "" : `token ${named(query)}`].filter(Boolean).join(", "));
  }

  function readTokens(): void {
    if (query === null) {
      read = new Float32Array();
      drawTokens();
    } else
      latestQuery(asks.query(layer, head, query)).then(({ values }) => {
        read = values;
        drawTokens();
      }, failed);
  }

  function drawTokens(): void {
    const shades = scale(read, [0, most(read)]);
    hint.textContent = query === null ? "Click a token, or a row of the map, to see what it reads." : `${named(query)} reads:`;
    update(tokens, ...patterns.keys.slice(0, TOKENS_MAX).map((token, index) => {
      const weight = read[index] ?? 0;
      const colour = shades.colour(weight);
      const style = query !== null && weight > 0.005 ? `background:${css(colour)};color:${inkOn(colour)}` : "";
      return h("button", { type: "button", style, title: query === null ? "" : weight.toFixed(4), "aria-pressed": String(index === query), "data-at": index }, visible(token));
    }), patterns.size[1] > TOKENS_MAX && h("span", { class: "soft" }, ` … and ${compact(patterns.size[1] - TOKENS_MAX)} tokens more`));
  }

  const all = (): typeof window => ({ rows: [0, patterns.size[0]], columns: [0, patterns.size[1]] });
  clicks(heads, "data-at", (at) => choose(layer, Number(at), query), endings);
  endings.listen(choice, "change", () => choose(choice.selectedIndex, head, query));
  clicks(tokens, "data-at", (at) => choose(layer, head, Number(at) < patterns.size[0] ? Number(at) : null), endings);
  endings.listen(whole, "click", () => {
    window = all();
    fetchTile();
  });

  return {
    show(given) {
      const isAlike = patterns.layers.length > 0 && (["layers", "heads", "size"] as const).every((name) => String(patterns[name]) === String(given[name]));
      patterns = given;
      if (!isAlike) {
        [layer, head, query] = [patterns.layers.length - 1, 0, patterns.size[0] ? patterns.size[0] - 1 : null];
        window = all();
      }
      title.textContent = patterns.title;
      note.textContent = patterns.note;
      replace(choice, ...patterns.layers.map((name) => h("option", {}, at_(0, visible(name)))));
      choice.setAttribute("aria-label", capital(patterns.names[0] || "layer"));
      heads.setAttribute("aria-label", `${capital(patterns.names[1] || "head")}s`);
      heads.classList.toggle("hidden", !patterns.names[1]);
      choice.selectedIndex = layer;
      choice.classList.toggle("hidden", patterns.layers.length < 2);
      if (patterns.layers.length && patterns.heads.length && patterns.size[0] && patterns.size[1]) open();
      else replace(place, h("p", { class: "soft" }, "There is no attention to show: no heads, or no tokens."));
    },
    mark(toLayer, toHead, token) {
      const next: [number, number, number | null] = [toLayer ?? layer, toHead ?? head, token ?? query];
      const isThere = next[0] < patterns.layers.length && next[1] < patterns.heads.length && (next[2] ?? 0) < patterns.size[0];
      if (isThere && (next[0] !== layer || next[1] !== head || next[2] !== query)) move(...next);
    },
    end: () => endings.run(),
  };
}

function capital(word: string): string {
  return word.charAt(0).toUpperCase() + word.slice(1);
}

/** The largest finite weight. */
function most(values: Float32Array): number {
  return values.reduce((most, value) => (Number.isFinite(value) && value > most ? value : most), 1e-9);
}

function paint(canvas: HTMLCanvasElement, values: Float32Array, width: number, height: number): void {
  const context = canvas.getContext("2d");
  if (!context || !width || !height) return;
  const shades = scale(values, [0, most(values)]);
  const picture = context.createImageData(width, height);
  values.forEach((value, index) => picture.data.set([...shades.colour(value), 255], index * 4));
  context.putImageData(picture, 0, 0);
}
