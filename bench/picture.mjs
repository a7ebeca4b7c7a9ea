// Draws the picture of README.md from the results of a comparison: perplexity by what it is paid with, as one SVG file.
//
//     node bench/picture.mjs RESULTS.json OUTPUT.svg
import fs from 'node:fs';
import { createRequire } from 'node:module';

const require = createRequire(import.meta.url);
const { tradePicture } = require('../dist/report/comparison-report.js');
const { style } = require('../dist/report/page-style.js');

const [results, output] = process.argv.slice(2);
const figures = await tradePicture(JSON.parse(fs.readFileSync(results, 'utf8')));
const colours = style.slice(0, style.indexOf('*{')); // light, and dark
const gap = 24;
const top = 44;
const legendHeight = 30;

const charts = figures.map(({ title, charts: [chart] }) => {
    const [, width, height] = /width="(\d+)" height="(\d+)"/.exec(chart.text).map(Number);
    return { title, text: chart.text, width, height };
});
let right = gap;
const placed = charts.map(({ title, text, width, height }) => {
    const left = right;
    right += width + gap;
    const chart = text.replace('<svg ', `<svg x="${left}" y="${top}" `).replace(/ class="[^"]*"/, '');
    return { height, svg: `<text x="${left}" y="28" class="title">${title}</text>${chart}` };
});
const bottom = top + Math.max(...placed.map(({ height }) => height)) + legendHeight;
const items = figures[0].legend.map(
    ({ name, colour, glyph }) => `<tspan fill="${colour}">${glyph}</tspan> <tspan>${name}</tspan>`
);
const picture = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${right} ${bottom + gap / 2}">
<style>${colours}
text{font-family:system-ui,sans-serif;font-size:13px;fill:var(--ink)} .title{font-size:14px;font-weight:600}</style>
<rect width="100%" height="100%" fill="var(--card)"/>
${placed.map(({ svg }) => svg).join('\n')}
<text x="${gap}" y="${bottom - 6}">${items.join('<tspan dx="14"> </tspan>')}</text>
</svg>
`;
fs.writeFileSync(output, picture);
