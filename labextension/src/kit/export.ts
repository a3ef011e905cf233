/** Taking a view's picture and data away: PNG, SVG, CSV and text files, made in the page. */
import { h } from "./dom";

/** What a view can give; a picture or text that is not there yet is null. Without a canvas, the PNG is the SVG's. */
export interface Exports {
  name: string;
  canvas?: () => HTMLCanvasElement | null;
  /** In place of one that cannot be drawn: why. */
  svg?: () => SVGSVGElement | string | null;
  rows?: () => (string | number)[][];
  text?: () => string;
}

/** A PNG has twice the pixels of its SVG, or fewer where a side would be longer than browsers draw. */
const [SCALE, SIDE_MAX, PATIENCE_MS] = [2, 16_000, 4000];

export function csv(rows: (string | number)[][]): string {
  const cell = (value: string | number): string => {
    const text = String(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return rows.map((row) => row.map(cell).join(",")).join("\r\n");
}

/** Buttons for what a view can give. */
export function exporting(given: Exports): HTMLElement {
  const { canvas, svg, rows, text } = given;
  const news = h("span", { class: "soft", role: "status" });
  const button = (kind: string, what: string, make: () => Promise<Blob | string | null>): HTMLElement => {
    const click = (): void =>
      void make()
        .catch(() => null)
        .then((made) => (made instanceof Blob ? save(made, `${given.name}.${kind.toLowerCase()}`) : tell(made ?? "nothing to save")));
    return h("button", { type: "button", title: `Save ${what}`, click }, kind);
  };
  const tell = (words: string): void => {
    news.textContent = words;
    setTimeout(() => (news.textContent = ""), PATIENCE_MS);
  };
  const png = async (): Promise<Blob | null> => {
    const drawing = canvas?.();
    if (drawing?.width && drawing.height) return pixels(onPaper(drawing, element.closest(".insitu-view")));
    const picture = svg?.();
    return picture && typeof picture !== "string" ? rastered(picture) : null;
  };
  const drawing = async (): Promise<Blob | string | null> => {
    const picture = svg?.();
    return picture && typeof picture !== "string" ? new Blob([drawn(picture)], { type: "image/svg+xml" }) : (picture ?? null);
  };
  const element = h(
    "span",
    { role: "group", "aria-label": `Export ${given.name}` },
    (canvas || svg) && button("PNG", "the picture", png),
    " ",
    svg && button("SVG", "the picture", drawing),
    " ",
    rows && button("CSV", "the data", async () => new Blob([csv(rows())], { type: "text/csv" })),
    " ",
    text && button("TXT", "the text", async () => new Blob([text()], { type: "text/plain" })),
    news,
  );
  return element;
}

/** A drawing on the paper of its view: its ink is light where that is dark. */
function onPaper(drawing: HTMLCanvasElement, view: Element | null): HTMLCanvasElement {
  const { width, height } = drawing;
  const canvas = h("canvas", { width, height });
  const pen = canvas.getContext("2d");
  if (!pen) return drawing;
  pen.fillStyle = (view && getComputedStyle(view).backgroundColor) || "#fff";
  pen.fillRect(0, 0, width, height);
  pen.drawImage(drawing, 0, 0);
  return canvas;
}

function drawn(picture: SVGSVGElement): string {
  return new XMLSerializer().serializeToString(picture).replace(/\p{Surrogate}/gu, "\ufffd");
}

function pixels(canvas: HTMLCanvasElement): Promise<Blob | null> {
  return new Promise((done) => canvas.toBlob(done));
}

/** The pixels of a picture, on white: its ink is black where it follows the page's. */
async function rastered(picture: SVGSVGElement): Promise<Blob | null> {
  const [width, height] = ["width", "height"].map((side) => Number(picture.getAttribute(side)) || 300) as [number, number];
  const scale = Math.min(SCALE, SIDE_MAX / Math.max(width, height));
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(drawn(picture))}`;
  await image.decode();
  const canvas = h("canvas", { width: Math.ceil(width * scale), height: Math.ceil(height * scale) });
  const pen = canvas.getContext("2d");
  if (!pen) return null;
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(image, 0, 0, canvas.width, canvas.height);
  return pixels(canvas);
}

export function save(blob: Blob, name: string): void {
  const address = URL.createObjectURL(blob);
  h("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}
