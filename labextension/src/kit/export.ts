/** Taking a view's picture and data away: PNG, SVG, CSV and JSON files, made in the page. */
import { h } from "./dom";

export interface Exports {
  name: string;
  canvas?: () => HTMLCanvasElement;
  svg?: () => SVGSVGElement;
  rows?: () => (string | number)[][];
}

export function csv(rows: (string | number)[][]): string {
  const cell = (value: string | number): string => {
    const text = String(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return rows.map((row) => row.map(cell).join(",")).join("\r\n");
}

/** Buttons for what a view can give. */
export function exporting(given: Exports): HTMLElement {
  const { canvas, svg, rows } = given;
  return h(
    "span",
    { role: "group", "aria-label": "Export" },
    canvas && h("button", { type: "button", title: "Save the picture", click: () => canvas().toBlob((blob) => blob && save(blob, `${given.name}.png`)) }, "PNG"),
    " ",
    svg && h("button", { type: "button", title: "Save the picture", click: () => save(new Blob([drawn(svg())], { type: "image/svg+xml" }), `${given.name}.svg`) }, "SVG"),
    " ",
    rows && h("button", { type: "button", title: "Save the numbers", click: () => save(new Blob([csv(rows())], { type: "text/csv" }), `${given.name}.csv`) }, "CSV"),
  );
}

function drawn(picture: SVGSVGElement): string {
  return new XMLSerializer().serializeToString(picture);
}

export function save(blob: Blob, name: string): void {
  const address = URL.createObjectURL(blob);
  h("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}
