"""The look shared by everything shown in HTML: one small sheet, inside each output.

    page(style.CARD, body)      # '<div class="insitu"><style>…</style>…</div>'

Colours are JupyterLab's own variables, then VS Code's; where neither exists (nbviewer, an exported
page) they follow `prefers-color-scheme`, and bring their own background, so that ink and paper
always match. Blue and orange stay apart for every kind of colour vision, and no meaning hangs on
them alone. The class is written three times because JupyterLab's own table styles weigh two.

A notebook that is not trusted loses the sheet. JupyterLab then keeps inline styles of literal
values (no `var()`), GitHub not even those. So what reading needs is in the markup: words apart,
lists nested, `align`; and what the look needs most (sides of text, bars) is inline.
"""

BLUE, ORANGE = "#3b78b8", "#d9822b"
"""Without the block, and with it."""

BASE = """
&{--ink:var(--jp-content-font-color1,var(--vscode-editor-foreground,#20262d));\
--soft:var(--jp-content-font-color2,var(--vscode-descriptionForeground,#5b6570));\
--rule:var(--jp-border-color2,var(--vscode-panel-border,#e1e5ea));\
--paper:var(--jp-layout-color0,var(--vscode-editor-background,#fff));\
--tint:var(--jp-layout-color2,var(--vscode-editor-inactiveSelectionBackground,#eef1f4));\
--mono:var(--jp-code-font-family,ui-monospace,SFMono-Regular,Menlo,Consolas,monospace);\
color:var(--ink);background:var(--paper);max-width:60rem;padding:2px 0 6px 9px;\
font:13px/1.5 var(--jp-content-font-family,system-ui,-apple-system,"Segoe UI",sans-serif);\
font-variant-numeric:tabular-nums}
@media (prefers-color-scheme:dark){&{\
--ink:var(--jp-content-font-color1,var(--vscode-editor-foreground,#e4e7eb));\
--soft:var(--jp-content-font-color2,var(--vscode-descriptionForeground,#a0a9b3));\
--rule:var(--jp-border-color2,var(--vscode-panel-border,#353b42));\
--paper:var(--jp-layout-color0,var(--vscode-editor-background,#16191d));\
--tint:var(--jp-layout-color2,var(--vscode-editor-inactiveSelectionBackground,#252a30))}}
& .soft{color:var(--soft)}& .right{text-align:right}
& code{font:12px/1.5 var(--mono);background:none;color:inherit;padding:0;border:0;white-space:pre}
"""

CARD = """
& .head{margin:0 0 6px}& .head b{font-weight:600}
& .tokens{margin:0 0 3px;line-height:1.9;overflow-wrap:anywhere}
& .tokens code{background:var(--tint);border-radius:3px;padding:2px 4px;margin:0;\
white-space:pre-wrap}
& .wide{overflow-x:auto;margin:10px 0 0 -9px}
& table{color:inherit;font:inherit;border-collapse:collapse;border:0;margin:0;\
font-size:12.5px;width:auto;table-layout:auto}
& caption{padding:0 0 3px 9px;color:var(--soft);font-size:11.5px}
& tr,& tr:nth-child(odd),& tr:hover{background:none}
& th,& td{border:0;border-bottom:1px solid var(--rule);padding:3px 18px 3px 0;\
vertical-align:baseline;white-space:nowrap;background:none;color:inherit;font-weight:400}
& thead th{color:var(--soft);font-size:11.5px;vertical-align:bottom}
& tbody tr:last-child>*{border-bottom:0}
& tr>:first-child{padding-left:9px}
& .wrote>:first-child{box-shadow:inset 3px 0 #d9822b}
& .flag{border:1px solid currentColor;border-radius:3px;padding:0 4px;font-size:11px;\
font-weight:600;white-space:nowrap}
& .track{border-radius:2px;background:var(--tint);overflow:hidden}
& .fold{margin:6px 0 0}& .fold>summary{cursor:pointer;color:var(--soft);font-size:12px}
& p{margin:8px 0 0;font-size:12.5px;max-width:46rem}
"""


def page(sheet: str, body: str) -> str:
    """A fragment of HTML with its style, ready for a cell's output."""
    rules = (BASE + sheet).strip().replace("&", ".insitu.insitu.insitu")
    return f'<div class="insitu"><style>{rules}</style>{body}</div>'
