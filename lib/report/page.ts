// The page of a report: one HTML file that loads nothing from elsewhere, and needs no script to be read.
import crypto from 'node:crypto';
import { Html, markup } from './markup.js';
import { followScript, script } from './page-script.js';
import { style } from './page-style.js';

export interface Page {
    title: string;
    /** A line under the title. */
    lead: string;
    /** The most important figures, shown large. */
    facts: readonly Fact[];
    /** What follows from the figures, in words: a heading and paragraphs under it. */
    advice?: { title: string; paragraphs: readonly string[] };
    figures: readonly Figure[];
    /** A table that is shown as it is, not folded away. */
    table?: Table;
    /** How the report was made: names and values. */
    details: readonly Detail[];
    /** Another page will take the place of this one, which is read again after so many seconds, if that is said. */
    unfinished?: { reload: number | undefined };
}

/** What only pages have that are not the last of their file, near the start. */
export const UNFINISHED = 'name="blockpruner" content="unfinished"';

export interface Fact {
    name: string;
    value: string;
    detail: string;
}

export type Detail = readonly [name: string, value: string];

export interface Figure {
    title: string;
    /** What the figure shows, in words and numbers. */
    caption: string;
    charts: readonly Html[];
    legend?: readonly LegendItem[];
    /** The figure's values, folded away. */
    table?: Table;
    /** Is the figure as wide as the page? Default: false. */
    wide?: boolean;
}

export interface LegendItem {
    name: string;
    /** A CSS colour. */
    colour: string;
    /** A character in that colour. Default: a square. */
    glyph?: string;
}

export interface Table {
    caption: string;
    head: readonly string[];
    /** The cells of each row; the first one is the row's name. */
    rows: readonly (readonly TableCell[])[];
}

export type TableCell = string | { text: string; best: boolean };

export function page({ title, lead, facts, advice, figures, table, details, unfinished }: Page): string {
    const watched = unfinished?.reload !== undefined;
    const scripts = watched ? [script, followScript] : [script];
    const hash = (one: string) => crypto.createHash('sha256').update(one).digest('base64');
    const hashes = scripts.map((one) => `'sha256-${hash(one)}'`);
    const mark = unfinished ? `<meta ${UNFINISHED}>\n` : '';
    const policy = [
        "default-src 'none'",
        "style-src 'unsafe-inline'",
        `script-src ${hashes.join(' ')}`,
        'img-src data:'
    ].join('; ');
    return markup`<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
${new Html(mark)}<meta http-equiv="Content-Security-Policy" content="${new Html(policy)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>${title}: ${lead}</title>
<style>${new Html(style)}</style>
</head>
<body${new Html(watched ? ` data-reload="${unfinished.reload}"` : '')}>
<header><p class="brand">blockpruner</p><h1>${title}</h1><p class="lead">${lead}</p></header>
<main>
<section aria-label="The most important figures"><dl class="facts">${facts.map(factItem)}</dl></section>
<div class="figures">
${advice && adviceSection(advice)}
${figures.map(figureSection)}
${table && tableSection(table)}
${detailSection(details)}
</div>
</main>
${scripts.map(
    (one) => markup`<script>${new Html(one)}</script>
`
)}</body>
</html>
`.text;
}

function factItem({ name, value, detail }: Fact): Html {
    return markup`<div><dt>${name}</dt><dd class="value">${value}</dd><dd>${detail}</dd></div>`;
}

function adviceSection({ title, paragraphs }: NonNullable<Page['advice']>): Html {
    const text = paragraphs.map((paragraph) => markup`<p>${paragraph}</p>`);
    return markup`<section class="wide" aria-labelledby="advice"><h2 id="advice">${title}</h2>${text}</section>`;
}

function figureSection({ title, caption, charts, legend = [], table, wide = false }: Figure, index: number): Html {
    const folded = table && markup`<details><summary>The same as a table</summary>${tableOf(table)}</details>`;
    return markup`<section aria-labelledby="figure-${index}"${new Html(wide ? ' class="wide"' : '')}>
<h2 id="figure-${index}">${title}</h2>
<figure><figcaption>${caption}</figcaption>
${charts.length === 0 ? '' : chartArea(charts, legend)}</figure>
${folded}
</section>`;
}

function chartArea(charts: readonly Html[], legend: readonly LegendItem[]): Html {
    return markup`${legend.length === 0 ? '' : markup`<ul class="legend">${legend.map(legendItem)}</ul>`}
<div class="charts">${charts.map((chart) => markup`<div class="chart">${chart}</div>`)}</div>`;
}

function legendItem({ name, colour, glyph }: LegendItem): Html {
    const sign = glyph
        ? markup`<span aria-hidden="true" style="color:${colour}">${glyph}</span>`
        : markup`<span aria-hidden="true" style="background:${colour}" class="swatch"></span>`;
    return markup`<li>${sign} ${name}</li>`;
}

function tableSection(table: Table): Html {
    const content = markup`<h2 id="table">${table.caption}</h2>${tableOf(table, { headed: true })}`;
    return markup`<section class="wide" aria-labelledby="table">${content}</section>`;
}

/** @param options `headed`: the caption stands as a heading above the table already */
function tableOf({ caption, head, rows }: Table, { headed = false } = {}): Html {
    const columns = head.map((name) => markup`<th scope="col">${name}</th>`);
    const content = markup`<table>${headed ? '' : markup`<caption>${caption}</caption>`}
<thead><tr>${columns}</tr></thead>
<tbody>${rows.map(tableRow)}</tbody></table>`;
    return markup`<div class="scroll" role="region" aria-label="Table: ${caption}" tabindex="0">${content}</div>`;
}

function tableRow([name, ...values]: readonly TableCell[]): Html {
    const cells = values.map((value) => markup`<td>${tableCell(value)}</td>`);
    return markup`<tr><th scope="row">${name && tableCell(name)}</th>${cells}</tr>\n`;
}

function tableCell(cell: TableCell): Html | string {
    if (typeof cell === 'string') {
        return cell;
    }
    return cell.best ? markup`<strong>${cell.text}</strong>` : cell.text;
}

function detailSection(details: readonly Detail[]): Html {
    const items = details.map(([name, value]) => markup`<div><dt>${name}</dt><dd>${value}</dd></div>`);
    const list = markup`<h2 id="details">How this was made</h2><dl class="details">${items}</dl>`;
    return markup`<section class="wide" aria-labelledby="details">${list}</section>`;
}
