// The charts of the reports: what they show, as Vega-Lite's specifications, drawn to SVG here, so that a page needs no library and
// no network.
//
// What stands for a value is a mark with a text, its `label`: a screen reader says it, and the page's script shows it.
// All else (axes, lines, numbers in cells) is hidden from screen readers. Colours are CSS variables of the page, which has them for
// light and dark. Of what a user gives, names, nothing is ever in a place that Vega takes for an expression.
import type { TopLevelSpec } from 'vega-lite' with { 'resolution-mode': 'import' };
import type { Block } from '../runtime/blocks.js';
import type { Score } from '../evaluation/scores.js';
import { Html, html } from './page.js';

/** The width of a telephone's page: there, charts are drawn as large as they are designed. */
const WIDTH = 336;

const config = {
    font: 'system-ui, sans-serif',
    view: { stroke: null },
    axis: {
        aria: false,
        labelColor: 'var(--muted)',
        titleColor: 'var(--muted)',
        gridColor: 'var(--line)',
        domainColor: 'var(--line)',
        tickColor: 'var(--line)',
        labelFontSize: 12,
        titleFontSize: 12,
        titleFontWeight: 'normal',
        labelLimit: 400,
        titleLimit: 400
    },
    line: { aria: false },
    rule: { aria: false },
    text: { aria: false, fontSize: 12, fill: 'var(--ink)' }
};

/** Categories' colours and shapes, told apart in either way; as many as there are methods to compare. The glyphs are the shapes, for legends. */
export const series = [
    { colour: 'var(--s0)', shape: 'circle', glyph: '●' },
    { colour: 'var(--s1)', shape: 'square', glyph: '■' },
    { colour: 'var(--s2)', shape: 'triangle-up', glyph: '▲' },
    { colour: 'var(--s3)', shape: 'diamond', glyph: '◆' },
    { colour: 'var(--s4)', shape: 'cross', glyph: '✚' },
    { colour: 'var(--s5)', shape: 'triangle-down', glyph: '▼' },
    { colour: 'var(--s6)', shape: 'triangle-right', glyph: '▶' },
    { colour: 'var(--s7)', shape: 'triangle-left', glyph: '◀' },
    { colour: 'var(--s8)', shape: 'M-1,-.3H1V.3H-1Z', glyph: '▬' },
    {
        colour: 'var(--s9)',
        shape: 'M0,-1L.29,-.4L.95,-.31L.48,.15L.59,.81L0,.5L-.59,.81L-.48,.15L-.95,-.31L-.29,-.4Z',
        glyph: '★'
    }
];

/** Takes a quarter of a second: only where a report is written. */
async function loadLibrary() {
    return { vega: await import('vega'), vegaLite: await import('vega-lite') };
}
let library: ReturnType<typeof loadLibrary> | undefined;

/** @param label says what the chart is */
async function draw(spec: object, label: string, fluid = false): Promise<Html> {
    const { vega, vegaLite } = await (library ??= loadLibrary());
    const compiled = vegaLite.compile({
        background: null,
        padding: 3,
        config,
        ...spec
    } as unknown as TopLevelSpec).spec;
    const view = new vega.View(vega.parse(compiled), { renderer: 'none', logLevel: vega.Error });
    const svg = await view.toSVG().finally(() => view.finalize());
    const short = svg.replace(/ (?:d|transform)="[^"]*"/g, (attribute) => attribute.replace(/(\.\d\d)\d+/g, '$1'));
    return html`<svg role="graphics-document" aria-label="${label}" class="${fluid ? 'fluid' : 'fixed'}"${new Html(short.replace(/^<svg\b(?:(?! width=)[^>])*/, ''))}`;
}

export interface Point {
    series: number;
    x: number;
    y: number;
    label: string;
}

/** Lines over shares of the parameters. */
export async function lines(points: readonly Point[], { y, label }: { y: string; label: string }): Promise<Html> {
    const values = points.map((point) => point.y);
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const log = high / low > 8;
    return draw(
        {
            width: WIDTH,
            height: 250,
            autosize: { type: 'fit', contains: 'padding' },
            data: { values: points },
            encoding: {
                x: {
                    field: 'x',
                    type: 'quantitative',
                    title: 'parameters removed',
                    axis: { format: '.0%', tickCount: 5 }
                },
                y: {
                    field: 'y',
                    type: 'quantitative',
                    title: log ? `${y} (log scale)` : y,
                    scale: log ? { type: 'log', nice: false } : { zero: false },
                    axis: {
                        titleAlign: 'left',
                        titleAnchor: 'start',
                        titleAngle: 0,
                        titleX: 0,
                        titleY: -12,
                        ...(log ? { values: ticks(low, high), format: '~g' } : { tickCount: 5 })
                    }
                },
                color: {
                    field: 'series',
                    type: 'nominal',
                    scale: { domain: series.map((_, i) => i), range: series.map(({ colour }) => colour) },
                    legend: null
                },
                shape: {
                    field: 'series',
                    type: 'nominal',
                    scale: { domain: series.map((_, i) => i), range: series.map(({ shape }) => shape) },
                    legend: null
                }
            },
            layer: [
                { mark: { type: 'line', strokeWidth: 2 }, encoding: { shape: null } },
                {
                    mark: { type: 'point', filled: true, size: 64, opacity: 1, ariaRoleDescription: 'value' },
                    encoding: { description: { field: 'label' } }
                }
            ]
        },
        label,
        true
    );
}

/** 1, 2, 5, 10 … within a range, or its ends' powers of ten where they are many. */
function ticks(low: number, high: number): number[] {
    const decades = Array.from(
        { length: Math.ceil(Math.log10(high)) - Math.floor(Math.log10(low)) + 1 },
        (_, i) => 10 ** (Math.floor(Math.log10(low)) + i)
    );
    const fine = decades.flatMap((ten) => [ten, 2 * ten, 5 * ten]).filter((value) => value >= low && value <= high);
    return fine.length <= 8 ? fine : decades.filter((value) => value >= low && value <= high);
}

export interface Cell {
    column: string;
    row: string;
    /** of a scale's classes; null: none */
    class: number | null;
    label: string;
    text?: string;
    /** with a dot in it */
    dot?: boolean;
}

/**
 * Cells in rows and columns.
 * @param scale the name of the classes' CSS variables, `--h0` … of `h`; those of texts in them are `--h0-ink` …
 */
export async function cells(
    all: readonly Cell[],
    {
        scale,
        classes,
        cellWidth,
        cellHeight,
        columns,
        rows,
        columnTitle,
        label
    }: {
        scale: string;
        classes: number;
        cellWidth: number;
        cellHeight: number;
        columns: readonly string[];
        rows: readonly string[];
        columnTitle?: string;
        label: string;
    }
): Promise<Html> {
    const domain = Array.from({ length: classes }, (_, i) => i);
    const gap = cellWidth > 12 && cellHeight > 12 ? 2 : 1;
    // numbers as there is room for
    const needed = columnTitle === undefined ? 1 : (String(columns.length).length * 8) / cellWidth;
    const every = [1, 2, 5, 10].find((n) => n >= needed) ?? 20;
    return draw(
        {
            width: { step: cellWidth },
            height: { step: cellHeight },
            data: { values: all.map((cell) => ({ text: '', dot: false, ...cell, class: cell.class ?? -1 })) },
            encoding: {
                x: {
                    field: 'column',
                    type: 'nominal',
                    title: columnTitle ?? null,
                    scale: { domain: columns, paddingInner: gap / cellWidth, paddingOuter: 0 },
                    axis: {
                        orient: 'top',
                        labelAngle: 0,
                        domain: false,
                        ticks: false,
                        values: columns.filter((_, i) => (i + 1) % every === 0 || (i === 0 && every > 2)),
                        labelOverlap: false
                    }
                },
                y: {
                    field: 'row',
                    type: 'nominal',
                    title: null,
                    scale: { domain: rows, paddingInner: gap / cellHeight, paddingOuter: 0 },
                    axis: { domain: false, ticks: false, labelPadding: 4, labelOverlap: false }
                }
            },
            layer: [
                {
                    mark: { type: 'rect', cornerRadius: gap, ariaRoleDescription: 'block' },
                    encoding: {
                        description: { field: 'label' },
                        fill: {
                            field: 'class',
                            type: 'ordinal',
                            scale: {
                                domain: [-1, ...domain],
                                range: ['var(--none)', ...domain.map((i) => `var(--${scale}${i})`)]
                            },
                            legend: null
                        }
                    }
                },
                {
                    transform: [{ filter: { field: 'text', valid: true } }],
                    mark: { type: 'text', baseline: 'middle', dy: 0.5 },
                    encoding: {
                        text: { field: 'text' },
                        color: {
                            field: 'class',
                            type: 'ordinal',
                            scale: {
                                domain: [-1, ...domain],
                                range: ['var(--muted)', ...domain.map((i) => `var(--${scale}${i}-ink)`)]
                            },
                            legend: null
                        }
                    }
                },
                {
                    transform: [{ filter: 'datum.dot' }],
                    mark: {
                        type: 'circle',
                        aria: false,
                        size: Math.min(36, (Math.min(cellWidth, cellHeight) / 2) ** 2),
                        fill: 'var(--dot)',
                        stroke: 'var(--dot-edge)',
                        strokeWidth: 1,
                        opacity: 1
                    }
                }
            ],
            resolve: { scale: { fill: 'independent', color: 'independent' } }
        },
        label
    );
}

/** How wide a column can be where so many, with their rows' names, are to fit on a telephone; never too narrow to see. */
export function columnWidth(columns: number, names: readonly string[], most: number): number {
    const room = WIDTH - 10 - 7.5 * Math.max(...names.map(({ length }) => length));
    return Math.max(7, Math.min(most, Math.floor(room / columns)));
}

/** A map of layers: attention and feed-forward side by side, in pieces that are not too high. */
export async function layerMap(
    blocks: readonly Block[],
    cellOf: (block: Block) => Omit<Cell, 'row' | 'column'>,
    {
        scale,
        classes,
        label,
        rows = 24,
        small = false
    }: {
        scale: string;
        classes: number;
        label: string;
        rows?: number;
        small?: boolean;
    }
): Promise<Html[]> {
    const layers = [...new Set(blocks.map(({ layer }) => layer))];
    const pieces = Math.max(1, Math.ceil(layers.length / rows)),
        size = Math.ceil(layers.length / pieces);
    return Promise.all(
        Array.from({ length: pieces }, (_, piece) => {
            const shown = layers.slice(piece * size, (piece + 1) * size);
            return cells(
                blocks
                    .filter(({ layer }) => shown.includes(layer))
                    .map((block) => ({ ...cellOf(block), column: block.kind, row: String(block.layer) })),
                {
                    scale,
                    classes,
                    columns: ['attn', 'ffn'],
                    rows: shown.map(String),
                    cellWidth: small ? 28 : 52,
                    cellHeight: small ? 15 : 19,
                    label: pieces > 1 ? `${label}, layers ${shown[0]} to ${shown.at(-1)}` : label
                }
            );
        })
    );
}

export interface ScoreMark {
    name: string;
    value: number;
    stderr: number | null;
    series: number;
    label: string;
}

/** Scores with their standard errors, a row each, in groups under their headings. */
export async function scores(
    groups: readonly { heading: string; marks: readonly ScoreMark[] }[],
    { label, reference }: { label: string; reference?: Score }
): Promise<Html> {
    // a row is named by its place: names may be alike
    const marks = groups.flatMap(({ marks: ofGroup }, i) =>
        ofGroup.map((mark, j) => ({
            ...mark,
            row: `${i}/${j}/${mark.name}`,
            low: mark.value - (mark.stderr ?? 0),
            high: mark.value + (mark.stderr ?? 0)
        }))
    );
    const rows = groups.flatMap(({ marks: ofGroup }, i) => [
        `${i}//`,
        ...ofGroup.map(({ name }, j) => `${i}/${j}/${name}`)
    ]);
    const y = {
        field: 'row',
        type: 'nominal',
        title: null,
        scale: { domain: rows },
        axis: {
            domain: false,
            ticks: false,
            grid: false,
            labelOverlap: false,
            labelExpr: "slice(datum.value, lastindexof(datum.value, '/') + 1)"
        }
    };
    const domain = [-1, ...series.map((_, i) => i)];
    const colour = {
        field: 'series',
        type: 'nominal',
        scale: { domain, range: ['var(--before)', ...series.map((one) => one.colour)] },
        legend: null
    };
    const shape = {
        field: 'series',
        type: 'nominal',
        scale: { domain, range: ['circle', ...series.map((one) => one.shape)] },
        legend: null
    };
    return draw(
        {
            width: WIDTH,
            height: 40 + 20 * rows.length,
            autosize: { type: 'fit', contains: 'padding' },
            data: { values: marks },
            layer: [
                ...(reference
                    ? [
                          {
                              data: { values: [{ ...reference }] },
                              mark: { type: 'rule', strokeDash: [4, 3], stroke: 'var(--before)', strokeWidth: 1.5 },
                              encoding: { x: { field: 'value', type: 'quantitative' } }
                          }
                      ]
                    : []),
                {
                    mark: { type: 'rule', strokeWidth: 2 },
                    encoding: {
                        y,
                        x: {
                            field: 'low',
                            type: 'quantitative',
                            title: 'right answers',
                            scale: { zero: false },
                            axis: { format: '.0%', tickCount: 5 }
                        },
                        x2: { field: 'high' },
                        color: colour
                    }
                },
                {
                    mark: { type: 'point', filled: true, size: 64, opacity: 1, ariaRoleDescription: 'score' },
                    encoding: {
                        y,
                        x: { field: 'value', type: 'quantitative' },
                        color: colour,
                        shape,
                        description: { field: 'label' }
                    }
                },
                heading(
                    groups.map(({ heading: text }, i) => ({ text, row: `${i}//` })),
                    y
                )
            ]
        },
        label,
        true
    );
}

/** Headings of groups, in rows of their own, over the whole plot. */
function heading(values: readonly { text: string; row: string }[], y: object): object {
    return {
        data: { values },
        mark: { type: 'text', align: 'left', baseline: 'middle', dy: 2, fontWeight: 'bold', limit: WIDTH },
        encoding: { y, x: { value: 0 }, text: { field: 'text' } }
    };
}

export interface Bar {
    /** what is measured: its heading */
    name: string;
    when: 'before' | 'after';
    /** share of what it was before */
    value: number;
    /** single measurements, as shares too */
    rounds: number[];
    label: string;
}

/** Before and after, as shares of before, each pair under its heading. */
export async function bars(all: readonly Bar[], label: string): Promise<Html> {
    const names = [...new Set(all.map(({ name }) => name))];
    const rows = names.flatMap((name) => [`${name}|`, `${name}|before`, `${name}|after`]);
    const y = { field: 'row', type: 'nominal', title: null, axis: null, scale: { domain: rows, paddingInner: 0.15 } };
    const values = all.map((bar) => ({ ...bar, row: `${bar.name}|${bar.when}` }));
    return draw(
        {
            width: WIDTH,
            height: 34 + 17 * rows.length,
            autosize: { type: 'fit', contains: 'padding' },
            layer: [
                {
                    data: { values },
                    mark: { type: 'bar', cornerRadiusEnd: 3, ariaRoleDescription: 'value' },
                    encoding: {
                        y,
                        x: {
                            field: 'value',
                            type: 'quantitative',
                            title: 'of what it was before',
                            axis: { format: '.0%', tickCount: 5 }
                        },
                        description: { field: 'label' },
                        color: {
                            field: 'when',
                            type: 'nominal',
                            scale: { domain: ['before', 'after'], range: ['var(--before)', 'var(--accent)'] },
                            legend: null
                        }
                    }
                },
                {
                    data: { values: values.flatMap(({ row, rounds }) => rounds.map((value) => ({ row, value }))) },
                    mark: { type: 'tick', aria: false, thickness: 2, bandSize: 8, color: 'var(--ink)' },
                    encoding: { y, x: { field: 'value', type: 'quantitative' } }
                },
                heading(
                    names.map((text) => ({ text, row: `${text}|` })),
                    y
                )
            ]
        },
        label,
        true
    );
}
