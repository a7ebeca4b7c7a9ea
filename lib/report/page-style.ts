// The style sheet of a page. A backslash at the end of a line only keeps lines short here; it is not in the page.

// The scales of the heat map (h) are YlGnBu of ColorBrewer, which colour-blind people can read. On dark they go the
// other way round, so that the same values stand out. The colours of series (s) have a contrast of at least 4.5 to the
// page.
const light = `--paper:#fbfbf9;--card:#fff;--ink:#1b1f24;--muted:#57606a;--line:#dcdfe3;--none:#eceef0;\
--accent:#0a5fb4;--before:#6e7781;--focus:#c2185b;--dot:#c2185b;--dot-edge:#fff;
--s0:#0a5fb4;--s1:#b3400a;--s2:#06735a;--s3:#8034b5;--s4:#7a5b00;--s5:#57606a;--s6:#b51e6b;--s7:#0b6f88;--s8:#3b2a1d;\
--s9:#3f6f00;--s10:#9a1b1b;
--h0:#e3f2c0;--h1:#c0e4b5;--h2:#86cfbb;--h3:#46b2c4;--h4:#2290be;--h5:#2362a9;--h6:#26399a;--h7:#0b1f5e;
--w0:#0b3f80;--w1:#1f6fc0;--w2:#7db4ea;--w3:#c3def7;--w0-ink:#fff;--w1-ink:#fff;--w2-ink:#10243a;--w3-ink:#10243a;`;
const dark = `--paper:#0f1318;--card:#171c23;--ink:#e8ebef;--muted:#a4adb8;--line:#333b46;--none:#262d36;\
--accent:#63b0ff;--before:#98a2ae;--focus:#ff7bac;--dot:#ff4f93;--dot-edge:#0f1318;
--s0:#63b0ff;--s1:#ff9a66;--s2:#45cfa4;--s3:#d0a3ff;--s4:#e0b640;--s5:#a4adb8;--s6:#ff8fc0;--s7:#5fd0e6;--s8:#f3dcc6;\
--s9:#a8d84f;--s10:#ff7a7a;
--h0:#2a3a78;--h1:#2553a0;--h2:#2477b5;--h3:#2f9bc2;--h4:#5bbcbc;--h5:#93d4b6;--h6:#c9e8b3;--h7:#f6fbbd;
--w0:#a9d4ff;--w1:#5aa5f0;--w2:#2b6cb5;--w3:#1d4272;--w0-ink:#0f1d2e;--w1-ink:#0f1d2e;--w2-ink:#fff;--w3-ink:#fff;`;

export const style = `
:root{color-scheme:light dark;${light}}
@media (prefers-color-scheme:dark){:root{${dark}}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:70rem;padding:1.5rem .75rem 3rem;background:var(--paper);color:var(--ink);\
font:1rem/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1,h2,p,dl,dd,figure,ul{margin:0;padding:0}
h1{font-size:1.7rem;line-height:1.2;letter-spacing:-.01em}
h3{font-size:.85rem;margin:0 0 .2rem;font-weight:600}
h2{font-size:1.1rem;line-height:1.3;margin-bottom:.35rem}
.brand{color:var(--accent);font-weight:600;font-size:.9rem}
.lead{color:var(--muted);margin-top:.25rem}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,9.5rem),1fr));gap:.75rem;margin:1.25rem 0}
.facts>div{border-top:3px solid var(--accent);padding-top:.5rem}
.facts dt,.facts dd{font-size:.85rem;color:var(--muted)}
.facts .value{font-size:1.4rem;line-height:1.3;font-weight:650;color:var(--ink);font-variant-numeric:tabular-nums}
.figures{display:grid;grid-template-columns:minmax(0,1fr);gap:2.25rem 1rem;align-items:start}
.figures>section{padding-top:1rem;border-top:1px solid var(--line)}
figcaption{color:var(--muted);font-size:.9rem;max-width:46rem}
.charts{display:flex;flex-wrap:wrap;gap:1rem 1.5rem;margin-top:.9rem;align-items:flex-start}
.chart{max-width:100%;max-height:80vh;overflow:auto}
.chart:has(.fluid){width:100%;max-width:32rem;max-height:none}
svg{display:block;overflow:visible}
svg.fluid{width:100%;height:auto}
svg text{font-family:inherit}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.15rem .9rem;margin-top:.7rem;font-size:.8rem;\
color:var(--muted)}
.swatch{display:inline-block;width:.8rem;height:.8rem;border-radius:2px;vertical-align:-.08em}
.follow{display:block;width:fit-content;margin-top:.6rem;font-size:.9rem}
.hint{font-size:.85rem;color:var(--muted);margin-bottom:1.25rem}
.tip{position:fixed;z-index:1;width:max-content;max-width:min(20rem,calc(100vw - 1rem));padding:.35rem .6rem;\
border-radius:6px;background:var(--ink);color:var(--paper);font-size:.8rem;line-height:1.35;pointer-events:none;\
font-variant-numeric:tabular-nums}
[role=graphics-symbol]:focus,[role=graphics-symbol]:hover{stroke:var(--focus);stroke-width:3px;paint-order:normal}
:focus-visible{outline:3px solid var(--focus);outline-offset:2px}
[role=graphics-symbol]:focus-visible{outline:none}
details{margin-top:.75rem;font-size:.9rem}
summary{cursor:pointer;color:var(--accent);padding:.25rem 0;width:fit-content}
.scroll{overflow:auto;max-height:80vh;margin-top:.5rem}
table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums;overflow-wrap:normal}
caption{text-align:left;color:var(--muted);padding-bottom:.4rem}
th,td{padding:.25rem .6rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th:first-child{text-align:left;position:sticky;left:0;background:var(--paper)}
thead th{color:var(--muted);font-weight:600;vertical-align:bottom}
tbody th{font-weight:500}
.details{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,16rem),1fr));gap:.6rem 1.5rem;\
font-size:.9rem}
.details dt{color:var(--muted);font-size:.8rem}
@media (min-width:48rem){
body{padding:2.5rem 2rem 4rem}
h1{font-size:2.2rem}
.facts .value{font-size:1.6rem}
svg.fixed{zoom:1.25}
.figures{grid-template-columns:repeat(2,minmax(0,1fr));gap:1.25rem}
.figures>section{padding:1.25rem 1.4rem;border:1px solid var(--line);border-radius:10px;background:var(--card);\
height:100%}
.wide{grid-column:1/-1}
.facts{gap:1.25rem;margin:1.75rem 0}
th:first-child{background:var(--card)}
}
@media print{.hint,.tip,details:not([open]){display:none}}
`;
