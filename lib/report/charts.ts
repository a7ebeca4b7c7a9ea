// The charts of the reports. Each is a specification for Vega-Lite, which is drawn to SVG here, so that a page needs no
// library and no network.
//
// Every value is a mark with a text, its `label`: a screen reader says it, and the page's script shows it. All else
// (axes, lines, numbers in cells) is hidden from screen readers. Colours are CSS variables of the page, which defines
// them for light and for dark. Names that a user gave never stand where Vega reads an expression.
import type { TopLevelSpec } from 'vega-lite' with { 'resolution-mode': 'import' };
import type { Block } from '../runtime/blocks.js';
import type { Score } from '../evaluation/scores.js';
import { Html, markup } from './markup.js';

/**
 * The width of a chart, in pixels: that of a page on a telephone, where charts appear as large as they are designed.
 */
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

/**
 * The colour and the shape of each series, as many as there are methods to compare. Series can be told apart by either.
 * Glyphs stand for the shapes in legends.
 */
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
    },
    { colour: 'var(--s10)', shape: 'M0,-1L.95,-.31L.59,.81L-.59,.81L-.95,-.31Z', glyph: '⬟' }
];

/**
 * Draws a specification as an SVG element.
 * @param label what the chart is, for screen readers
 * @param options `fluid`: the chart is as wide as its place, not as wide as it is specified
 */
async function draw(spec: object, label: string, { fluid = false } = {}): Promise<Html> {
    const vega = await import('./vega.mjs'); // takes a moment, which only the writing of a report should cost
    const compiled = vega.compile({
        background: null,
        padding: 3,
        config,
        ...spec
    } as unknown as TopLevelSpec).spec;
    const view = new vega.View(vega.parse(compiled), { renderer: 'none', logLevel: vega.LOG_ERRORS });
    const svg = await view.toSVG().finally(() => view.finalize());
    const rounded = svg.replace(/ (?:d|transform)="[^"]*"/g, (attribute) => attribute.replace(/(\.\d\d)\d+/g, '$1'));
    const rest = new Html(rounded.replace(/^<svg\b(?:(?! width=)[^>])*/, ''));
    return markup`<svg role="graphics-document" aria-label="${label}" class="${fluid ? 'fluid' : 'fixed'}"${rest}`;
}

/** An encoding that gives each value of a field a colour or a shape. A chart's legend is HTML beside it, not in it. */
function coded(field: string, domain: readonly (number | string)[], range: readonly string[]): object {
    return { field, type: 'nominal', scale: { domain, range }, legend: null };
}

export interface Point {
    /** The index of its colour and shape in {@link series}; −1 for the model as it is. */
    series: number;
    /** The line of a series that it is on: the first, or the dashed one. */
    dashed: boolean;
    x: number;
    y: number;
    label: string;
}

/** The axis of the share of the parameters that is removed. */
export const removedAxis = { title: 'parameters removed', format: '.0%', zero: true };

/** Two lines for each series, the second one dashed. The scale of y is logarithmic where it must be. */
export async function lineChart(
    points: readonly Point[],
    { x, y, label }: { x: { title: string; format: string; zero: boolean }; y: string; label: string }
): Promise<Html> {
    const domain = [-1, ...series.map((_, i) => i)];
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
                    title: x.title,
                    scale: { zero: x.zero },
                    axis: { format: x.format, tickCount: 5 }
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
                color: coded('series', domain, ['var(--before)', ...series.map(({ colour }) => colour)]),
                shape: coded('series', domain, ['circle', ...series.map(({ shape }) => shape)])
            },
            layer: [
                {
                    mark: { type: 'line', strokeWidth: 2 },
                    encoding: {
                        shape: null,
                        strokeDash: {
                            field: 'dashed',
                            type: 'nominal',
                            scale: {
                                domain: [false, true],
                                range: [
                                    [1, 0],
                                    [5, 3]
                                ]
                            },
                            legend: null
                        }
                    }
                },
                {
                    mark: { type: 'point', filled: true, size: 64, opacity: 1, ariaRoleDescription: 'value' },
                    encoding: { description: { field: 'label' } }
                }
            ]
        },
        label,
        { fluid: true }
    );
}

/** The ticks 1, 2, 5, 10 … that lie within a range, or only the powers of ten where these would be many. */
function ticks(low: number, high: number): number[] {
    const [first, last] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
    const powers = Array.from({ length: last - first + 1 }, (_, i) => 10 ** (first + i));
    const isShown = (value: number) => value >= low && value <= high;
    const fine = powers.flatMap((power) => [power, 2 * power, 5 * power]).filter(isShown);
    return fine.length <= 8 ? fine : powers.filter(isShown);
}

export interface Cell {
    column: string;
    row: string;
    /** The index of its colour in the scale; null for a cell without a value. */
    class: number | null;
    label: string;
    /** Text in the cell. */
    text?: string;
    /** Is there a dot in the cell? */
    dot?: boolean;
}

/**
 * Coloured cells in rows and columns.
 * @param options `scale` is the letter of the colours' CSS variables, such as `--h0` … for `h`; texts in the cells have
 *   the colours `--h0-ink` …
 */
export async function cellChart(
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
    // as many columns are numbered as there is room for
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
                        fill: coded(
                            'class',
                            [-1, ...domain],
                            ['var(--none)', ...domain.map((i) => `var(--${scale}${i})`)]
                        )
                    }
                },
                {
                    transform: [{ filter: { field: 'text', valid: true } }],
                    mark: { type: 'text', baseline: 'middle', dy: 0.5 },
                    encoding: {
                        text: { field: 'text' },
                        color: coded(
                            'class',
                            [-1, ...domain],
                            ['var(--muted)', ...domain.map((i) => `var(--${scale}${i}-ink)`)]
                        )
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

/**
 * The width of a column with which a chart of cells fits on a telephone. It is never too narrow to see.
 * @param rows the names of the rows, which stand beside the cells
 * @param most the largest width that is wanted
 */
export function columnWidth(columns: number, rows: readonly string[], most: number): number {
    const room = WIDTH - 10 - 7.5 * Math.max(...rows.map(({ length }) => length));
    return Math.max(7, Math.min(most, Math.floor(room / columns)));
}

/**
 * Maps of the layers, each of at most `rows` layers, with attention and feed-forward blocks side by side, and linear
 * blocks between them where there are any.
 */
export async function layerMaps(
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
    const columns = blocks.some(({ kind }) => kind === 'linear') ? ['attn', 'linear', 'ffn'] : ['attn', 'ffn'];
    const pieces = Math.max(1, Math.ceil(layers.length / rows));
    const size = Math.ceil(layers.length / pieces);
    return Promise.all(
        Array.from({ length: pieces }, (_, piece) => {
            const shown = layers.slice(piece * size, (piece + 1) * size);
            return cellChart(
                blocks
                    .filter(({ layer }) => shown.includes(layer))
                    .map((block) => ({ ...cellOf(block), column: block.kind, row: String(block.layer) })),
                {
                    scale,
                    classes,
                    columns,
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
    /** The index of its colour and shape in {@link series}; −1 for the model as it is. */
    series: number;
    label: string;
}

/**
 * Scores with their standard errors, in a row each, in groups under their headings.
 * @param options `reference`: a score that a dashed line shows
 */
export async function scoreChart(
    groups: readonly { heading: string; marks: readonly ScoreMark[] }[],
    { label, reference }: { label: string; reference?: Score }
): Promise<Html> {
    // a row is named by its place too, because names may be alike
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
    const colour = coded('series', domain, ['var(--before)', ...series.map((one) => one.colour)]);
    const shape = coded('series', domain, ['circle', ...series.map((one) => one.shape)]);
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
                headings(
                    groups.map(({ heading: text }, i) => ({ text, row: `${i}//` })),
                    y
                )
            ]
        },
        label,
        { fluid: true }
    );
}

/** A layer with the headings of groups, each in a row of its own. */
function headings(values: readonly { text: string; row: string }[], y: object): object {
    return {
        data: { values },
        mark: { type: 'text', align: 'left', baseline: 'middle', dy: 2, fontWeight: 'bold', limit: WIDTH },
        encoding: { y, x: { value: 0 }, text: { field: 'text' } }
    };
}

export interface Bar {
    /** What is measured, which is the heading of the pair. */
    name: string;
    when: 'before' | 'after';
    /** The value as a share of the value before. */
    value: number;
    /** Single measurements, as shares of the value before too. */
    rounds: number[];
    label: string;
}

/** Values before and after, as shares of the value before, each pair under its heading. */
export async function barChart(all: readonly Bar[], label: string): Promise<Html> {
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
                        color: coded('when', ['before', 'after'], ['var(--before)', 'var(--accent)'])
                    }
                },
                {
                    data: { values: values.flatMap(({ row, rounds }) => rounds.map((value) => ({ row, value }))) },
                    mark: { type: 'tick', aria: false, thickness: 2, bandSize: 8, color: 'var(--ink)' },
                    encoding: { y, x: { field: 'value', type: 'quantitative' } }
                },
                headings(
                    names.map((text) => ({ text, row: `${text}|` })),
                    y
                )
            ]
        },
        label,
        { fluid: true }
    );
}
