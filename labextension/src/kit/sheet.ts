/** The look of every view; the same colours as the static twins (src/insitu/twins/style.py). */
import { h } from "./dom";

export const SHEET = `
.insitu-view{--ink:var(--jp-content-font-color1,var(--vscode-editor-foreground,#20262d));
--soft:var(--jp-content-font-color2,var(--vscode-descriptionForeground,#5b6570));
--rule:var(--jp-border-color2,var(--vscode-panel-border,#e1e5ea));
--paper:var(--jp-layout-color0,var(--vscode-editor-background,#fff));
--tint:var(--jp-layout-color2,var(--vscode-editor-inactiveSelectionBackground,#eef1f4));
--mono:var(--jp-code-font-family,ui-monospace,SFMono-Regular,Menlo,Consolas,monospace);
--blue:#3b78b8;--orange:#d9822b;
--link:color-mix(in srgb,#3b78b8 62%,var(--ink));--bad:color-mix(in srgb,#d93025 68%,var(--ink));
color:var(--ink);background:var(--paper);box-sizing:border-box;padding:6px 8px;position:relative;
font:13px/1.5 var(--jp-content-font-family,system-ui,-apple-system,"Segoe UI",sans-serif);
font-variant-numeric:tabular-nums;max-width:72rem}
@media (prefers-color-scheme:dark){.insitu-view{
--ink:var(--jp-content-font-color1,var(--vscode-editor-foreground,#e4e7eb));
--soft:var(--jp-content-font-color2,var(--vscode-descriptionForeground,#a0a9b3));
--rule:var(--jp-border-color2,var(--vscode-panel-border,#353b42));
--paper:var(--jp-layout-color0,var(--vscode-editor-background,#16191d));
--tint:var(--jp-layout-color2,var(--vscode-editor-inactiveSelectionBackground,#252a30))}}
.insitu-view *{box-sizing:border-box}
.insitu-view .bar{display:flex;flex-wrap:wrap;gap:6px 10px;align-items:center;margin:0 0 6px}
.insitu-view .bar b{font-weight:600}.insitu-view .grow{flex:1}
.insitu-view code,.insitu-view .mono{font:12px/1.5 var(--mono);background:none;color:inherit;padding:0;border:0;white-space:pre}
.insitu-view .soft{color:var(--soft)}
.insitu-view button,.insitu-view select,.insitu-view input{font:inherit;font-size:12px;color:inherit;background:var(--paper);
border:1px solid var(--rule);border-radius:4px;padding:2px 8px;min-height:24px}
.insitu-view button{cursor:pointer}.insitu-view button:hover:not(:disabled){background:var(--tint)}
.insitu-view button:disabled{opacity:.5;cursor:default}
.insitu-view button[aria-pressed=true]{border-color:var(--blue);box-shadow:inset 0 0 0 1px var(--blue)}
.insitu-view input[type=range]{padding:0;border:0}.insitu-view input[type=search]{min-width:12rem}
.insitu-view :focus-visible{outline:2px solid var(--blue);outline-offset:1px}
.insitu-view table{color:inherit;font:inherit;font-size:12.5px;border-collapse:collapse;border:0;margin:0;table-layout:auto}
.insitu-view th,.insitu-view td{border:0;border-bottom:1px solid var(--rule);padding:2px 14px 2px 0;text-align:left;
white-space:nowrap;background:none;font-weight:400}
.insitu-view thead th{color:var(--soft);font-size:11.5px}
.insitu-view .number{text-align:right}
.insitu-view .scroll{overflow:auto;max-height:420px;border:1px solid var(--rule);border-radius:4px}
.insitu-view progress[value]{appearance:none;height:8px;border:1px solid var(--rule);border-radius:4px;background:var(--tint);overflow:hidden}
.insitu-view progress[value]::-webkit-progress-bar{background:var(--tint)}
.insitu-view progress[value]::-webkit-progress-value{background:var(--blue)}.insitu-view progress[value]::-moz-progress-bar{background:var(--blue)}
.insitu-view .trouble{border-left:3px solid var(--orange);padding:4px 10px;margin:6px 0;white-space:pre-wrap}
.insitu-view .placed{position:absolute;left:0;right:0}
.insitu-view .hidden{display:none}
.insitu-view .spoken{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap}
`;

/** The root of a view inside what the host gives, with its sheet and a place for spoken news. */
export function root(el: HTMLElement, name: string, sheet = ""): HTMLElement {
  const view = h("div", { class: `insitu-view insitu-${name}` });
  el.replaceChildren(h("style", {}, SHEET + sheet), view);
  return view;
}

/** A line that screen readers speak when it changes. */
export function speaker(view: HTMLElement): (words: string) => void {
  const line = h("div", { class: "spoken", role: "status", "aria-live": "polite" });
  view.append(line);
  return (words) => {
    line.textContent = words;
  };
}
