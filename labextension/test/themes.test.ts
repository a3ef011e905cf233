/** Colours follow the theme of the page, which may be another than that of the desktop: dark Jupyter on a light one. */
import { expect, test } from "vitest";
import { SHEET } from "../src/kit/sheet";
import { attentionView } from "../src/views/attention_view";
import { cacheInspector } from "../src/views/cache_inspector";
import { denoisingView } from "../src/views/denoising_view";
import { generationView } from "../src/views/generation_view";
import { jobDock } from "../src/views/job_dock";
import { lensGrid } from "../src/views/lens_grid";
import { lintFixes } from "../src/views/lint_fixes";
import { moduleTree } from "../src/views/module_tree";
import { patchMap } from "../src/views/patch_map";
import { remoteLog } from "../src/views/remote_log";
import { runLedger } from "../src/views/run_ledger";
import { sourceBrowser } from "../src/views/source_browser";
import { stepper } from "../src/views/stepper";

const views = { attentionView, cacheInspector, denoisingView, generationView, jobDock, lensGrid, lintFixes, moduleTree, patchMap, remoteLog, runLedger, sourceBrowser, stepper };

test.each(Object.entries(views))("%s does not ask for the theme by itself: the desktop's is not the page's", (_, view) => {
  const el = document.createElement("div");
  document.body.replaceChildren(el);
  const { end } = (view as unknown as (el: HTMLElement, asks: object) => { end(): void })(el, {});
  const own = (el.querySelector("style")?.textContent ?? "").replace(SHEET, "");
  end();
  expect(own.length).toBeGreaterThan(10);
  expect(own).not.toMatch(/prefers-color-scheme|data-jp-theme|vscode-(dark|light)/);
});

/** A colour of the sheet, mixed as a browser does. */
function mixed(name: string, ink: string): number[] {
  const [, colour, share] = SHEET.match(new RegExp(`--${name}:color-mix\\(in srgb,(#[0-9a-f]{6}) (\\d+)%,var\\(--ink\\)\\)`)) ?? [];
  const parts = (hex: string): number[] => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  return parts(colour as string).map((part, at) => (part * Number(share) + (parts(ink)[at] as number) * (100 - Number(share))) / 100);
}

function contrast(one: number[], other: number[]): number {
  const light = (colour: number[]): number => {
    const [r = 0, g = 0, b = 0] = colour.map((part) => (part / 255 <= 0.04045 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const [low, high] = [light(one), light(other)].sort((a, b) => a - b) as [number, number];
  return (high + 0.05) / (low + 0.05);
}

test.each([["light", "#20262d", 255], ["dark", "#e4e7eb", 0x16], ["Jupyter's light", "#000000", 255], ["Jupyter's dark", "#ffffff", 0x11]])("links and warnings can be read on %s paper, whatever the desktop's", (_, ink, paper) => {
  for (const name of ["link", "bad"]) expect(contrast(mixed(name, ink), [paper, paper, paper])).toBeGreaterThan(4.5);
});
