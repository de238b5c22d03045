"""
The style of a report page. Colours are variables, so that charts and tables suit a light screen, a dark one, and paper.

c0 is the colour of the control, c1 to c6 are those of the candidates. They are from Okabe & Ito (2008), as in plots.py;
on a dark screen they have lighter colours of the same hues.

On a phone a row of a verdict's table takes two lines: what and whether it is shown, and the numbers below.

A backslash at the end of a line joins it with the next: the page gets one line.
"""

LIGHT = """--bg:#fff;--ink:#1b1f24;--soft:#59636e;--rule:#d8dee4;--card:#f6f8fa;\
--good:#1a7f37;--bad:#c02020;--open:#8a6100;
--c0:#4d4d4d;--c1:#d55e00;--c2:#0072b2;--c3:#009e73;--c4:#b8608f;--c5:#b37b00;--c6:#2f8fc9"""
DARK = """--bg:#14171b;--ink:#e6e9ed;--soft:#a0a9b4;--rule:#363c45;--card:#1d2127;\
--good:#4cc26b;--bad:#ff7b72;--open:#e3b341;
--c0:#c9ced6;--c1:#ff8a3d;--c2:#5aaeea;--c3:#34c99f;--c4:#e59ac4;--c5:#ecb43c;--c6:#92d2f7"""

STYLE = f"""
:root{{color-scheme:light dark;{LIGHT}}}
@media (prefers-color-scheme:dark){{:root{{{DARK}}}}}
*{{box-sizing:border-box}}
body{{margin:0;background:var(--bg);color:var(--ink);\
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}}
main{{max-width:1160px;margin:0 auto;padding:24px 20px 60px}}
h1{{font-size:24px;margin:0;overflow-wrap:anywhere}}
h2{{font-size:18px;margin:36px 0 8px;padding-bottom:4px;border-bottom:1px solid var(--rule)}}
h3{{font-size:15px;margin:18px 0 4px;overflow-wrap:anywhere}}
p{{margin:4px 0;overflow-wrap:anywhere}}
.soft{{color:var(--soft)}}
.verdict{{background:var(--card);border-left:5px solid var(--v);border-radius:4px;padding:10px 14px;margin:12px 0}}
.answer{{font-size:17px}}
.badge{{display:inline-block;color:var(--bg);background:var(--v);border-radius:4px;\
padding:0 8px;font-size:15px;font-weight:600}}
.promote{{--v:var(--good)}}.optional{{--v:var(--c2)}}.reject{{--v:var(--bad)}}\
.inconclusive{{--v:var(--open)}}.no-verdict{{--v:var(--soft)}}
.charts{{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,350px),1fr));gap:14px 24px}}
figure{{margin:6px 0}}figcaption{{color:var(--soft)}}figcaption b{{color:var(--ink)}}
.legend span{{display:inline-block;margin-right:18px}}
.swatch{{width:30px;height:8px;vertical-align:middle}}
.wide{{overflow-x:auto}}
table{{border-collapse:collapse;font-variant-numeric:tabular-nums;margin:6px 0}}
th,td{{padding:3px 8px;text-align:right;border-bottom:1px solid var(--rule)}}td{{white-space:nowrap}}\
td.t{{white-space:normal}}
th{{color:var(--soft);font-weight:600;vertical-align:bottom}}
.t{{text-align:left}}
td.good{{color:var(--good);font-weight:600}}td.bad{{color:var(--bad);font-weight:600}}\
td.open{{color:var(--open);font-weight:600}}
dl{{display:grid;grid-template-columns:max-content 1fr;gap:2px 18px;margin:6px 0}}
dt{{color:var(--soft)}}dd{{margin:0;overflow-wrap:anywhere}}
code{{background:var(--card);font-size:.9em;overflow-wrap:anywhere}}
pre{{background:var(--card);border-radius:4px;padding:10px 12px;font-size:15px;\
white-space:pre-wrap;overflow-wrap:anywhere}}
figure>svg{{width:100%;max-width:480px;height:auto;display:block;font-size:15px}}
text{{fill:var(--ink)}}.tick,.label{{fill:var(--soft)}}.name{{font-weight:600}}\
.name,.value{{white-space:pre;paint-order:stroke;stroke:var(--bg);stroke-width:5px}}
.grid{{stroke:var(--rule)}}.axis{{stroke:var(--soft)}}.zero{{stroke:var(--ink);stroke-width:1.3}}
.margin{{stroke:var(--bad);stroke-width:1.5;stroke-dasharray:5 4}}.beyond{{fill:var(--bad);opacity:.08}}
polyline{{fill:none;stroke:var(--c);stroke-linejoin:round}}.thin{{stroke-width:1;opacity:.5}}.thick{{stroke-width:2.6}}
.dot{{fill:var(--c)}}.seed{{opacity:.65}}.bar{{stroke:var(--c);stroke-width:2.4}}\
.mean{{fill:var(--c);stroke:var(--bg);stroke-width:1.2}}
.c0{{--c:var(--c0)}}.c1{{--c:var(--c1)}}.c2{{--c:var(--c2)}}.c3{{--c:var(--c3)}}\
.c4{{--c:var(--c4)}}.c5{{--c:var(--c5)}}.c6{{--c:var(--c6)}}
@media (max-width:600px){{main{{padding:14px 12px 40px}}th,td{{padding:3px 5px}}.verdict{{padding:8px}}\
.verdict tr{{display:grid;grid-template-columns:2fr 3fr 3fr;border-bottom:1px solid var(--rule)}}\
.verdict td,.verdict th{{white-space:normal;border:0;align-self:end;text-align:left}}\
.verdict tr>:first-child{{grid-column:1/3;grid-row:1}}.verdict tr>:last-child{{grid-column:3;grid-row:1}}\
dl{{grid-template-columns:1fr}}dd{{margin-bottom:6px}}}}
@media print{{:root{{color-scheme:light;{LIGHT}}}article,figure,tr{{break-inside:avoid}}h2,h3{{break-after:avoid}}
main{{max-width:none;padding:0}}.charts{{grid-template-columns:1fr 1fr}}
.verdict,.badge,.swatch{{print-color-adjust:exact}}table{{font-size:9px}}th,td{{padding:2px 4px}}pre{{font-size:9px}}}}
"""
