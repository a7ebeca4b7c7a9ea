// The report of compare: a page that shows what each method made of a model at each ratio.
import path from 'node:path';
import { reportedScore } from '../evaluation/scores.js';
import {
    formatBytes,
    formatDuration,
    formatFactor,
    formatFixed,
    formatNumber,
    formatScore,
    formatShare
} from '../format.js';
import { formatBlock, SkipSet, type Block } from '../runtime/blocks.js';
import { version } from '../version.js';
import { layerMaps, lineChart, removedAxis, scoreChart, series, type Point } from './charts.js';
import {
    comparedColumns,
    comparedRows,
    decidingPerplexity,
    formatRowName,
    isBest,
    type ComparedColumn,
    type ComparedMethod,
    type ComparedModel,
    type ComparedRow,
    type Comparison,
    type Cost
} from './comparison.js';
import { markup, type Html } from './markup.js';
import { verdictsOf } from './comparison-verdict.js';
import { page, type Fact, type Figure, type LegendItem, type Table } from './page.js';

/** A page that shows how methods of pruning compare, as one HTML file that needs nothing else. */
export async function comparisonReport(comparison: Comparison): Promise<string> {
    const { calibration, text, dense } = comparison;
    const overview = overviewOf(comparison);
    const { methods, ratios } = overview;
    const figures = [perplexityFigure(overview, 'the calibration text', dense.calibration, (row) => row.calibration)];
    if (text !== null) {
        figures.push(perplexityFigure(overview, text, dense.text!.perplexity, (row) => row.text!.perplexity));
    }
    for (const index of dense.tasks.keys()) {
        figures.push(taskFigure(overview, index));
    }
    figures.push(...tradeFigures(overview));
    figures.push(removedFigure(overview));
    return page({
        title: path.basename(comparison.model),
        lead: `${methods.length} methods of pruning, compared at ${formatShares(ratios)}`,
        facts: factsOf(overview),
        figures: await Promise.all(figures),
        table: wholeTable(comparison),
        advice: { title: 'Which to take', paragraphs: verdictsOf(comparison) },
        details: [
            ['Model', path.basename(comparison.model)],
            ['Calibration', `${calibration.name}: ${calibration.sequences} × ${calibration.context} tokens`],
            ['Time', formatDuration(comparison.seconds)],
            ['Made by', `blockpruner ${version}`]
        ]
    });
}

/** A comparison, and what all its figures need of it. */
interface Overview {
    comparison: Comparison;
    /** The rows of the pruned models, with the names that they have in the page. */
    rows: (ComparedRow & { name: string })[];
    /** The methods that there are results of; a method's index is that of its colour and shape. */
    methods: ComparedMethod[];
    /** The ratios that there are results of, ascending. */
    ratios: number[];
}

function overviewOf(comparison: Comparison): Overview {
    const { pruned } = comparison;
    return {
        comparison,
        rows: comparedRows(comparison)
            .filter(({ ratio }) => ratio > 0)
            .map((row) => ({ ...row, name: nameOf(row) })),
        methods: [...new Set(pruned.map(({ method }) => method))],
        ratios: [...new Set(pruned.map(({ ratio }) => ratio))].sort((a, b) => a - b)
    };
}

const DENSE = 'the model as it is';

function nameOf(row: ComparedRow): string {
    return row.method !== 'dense' ? formatRowName(row) : row.quantized === null ? DENSE : `${DENSE}, ${row.quantized}`;
}

function formatShares(shares: readonly number[]): string {
    return shares.map((share) => formatShare(share)).join(', ');
}

/** The row of a ratio with the lowest value. */
function lowestAt({ rows }: Overview, ratio: number, value: (row: ComparedRow) => number): Overview['rows'][number] {
    return rows.filter((row) => row.ratio === ratio).reduce((a, b) => (value(b) < value(a) ? b : a));
}

function factsOf(overview: Overview): Fact[] {
    const before = formatNumber(overview.comparison.dense.calibration);
    return overview.ratios.map((ratio) => {
        const best = lowestAt(overview, ratio, (row) => row.calibration);
        return {
            name: `${formatShare(ratio)} removed, lowest perplexity`,
            value: best.name,
            detail: `${before} → ${formatNumber(best.calibration)}, calibration text`
        };
    });
}

/** A model with more than this many times the perplexity is destroyed. It would press all else in a chart together. */
const CEILING = 100;

/**
 * @param what the text that the perplexity is measured on
 * @param before the perplexity of the model as it is
 * @param value the perplexity of a pruned one
 */
async function perplexityFigure(
    overview: Overview,
    what: string,
    before: number,
    value: (row: ComparedRow) => number
): Promise<Figure> {
    const { rows } = overview;
    const chart = () =>
        lineChart(perplexityPoints(overview, before, value), {
            y: 'perplexity',
            x: removedAxis,
            label:
                `Line chart: perplexity on ${what}, ` +
                'by the share of the parameters that is removed, for each method'
        });
    return {
        title: `Perplexity on ${what}`,
        caption: perplexityCaption(overview, before, value),
        charts: rows.length === 0 ? [] : [await chart()],
        legend: methodLegend(overview),
        table: {
            caption: `Perplexity on ${what}`,
            head: ['Method', 'Ratio', 'Parameters removed', 'Perplexity'],
            rows: [
                [DENSE, '', formatShare(0), formatNumber(before)],
                ...rows.map((row) => [
                    row.name,
                    formatShare(row.ratio),
                    formatShare(row.removed),
                    formatNumber(value(row))
                ])
            ]
        }
    };
}

/** The glyphs and colours of the methods, and what a dashed line is. */
function methodLegend({ methods, rows }: Overview): LegendItem[] {
    return [
        ...methods.map((name, i) => ({ name, colour: series[i]!.colour, glyph: series[i]!.glyph })),
        ...(rows.some(isRepaired) ? [{ name: 'repaired (dashed)', colour: 'var(--muted)', glyph: '┅' }] : [])
    ];
}

function isRepaired({ repair }: ComparedRow): boolean {
    return repair !== 'none';
}

/** The lines of each method, without and with repair, each from the model as it is on; nothing above the ceiling. */
function perplexityPoints(overview: Overview, before: number, value: (row: ComparedRow) => number): Point[] {
    const start = { x: 0, y: before, label: `${DENSE}: perplexity ${formatNumber(before)}` };
    return methodPoints(overview, start, (row) => {
        const found = `perplexity ${formatNumber(value(row))}`;
        const removed = `${formatShare(row.removed)} of the parameters removed`;
        return {
            x: row.removed,
            y: value(row),
            label: `${nameOf(row)} at ${formatShare(row.ratio)}: ${found}, ${removed}`
        };
    });
}

type Place = Omit<Point, 'series' | 'dashed'>;

/** @param start where the lines begin, the model as it is */
function methodPoints({ rows, methods }: Overview, start: Place, place: (row: ComparedRow) => Place): Point[] {
    const lines = methods.flatMap((method, i) =>
        [false, true].map((dashed) => {
            const ofLine = rows.filter((row) => row.method === method && isRepaired(row) === dashed);
            return ofLine.length === 0
                ? []
                : [start, ...ofLine.map(place)].map((one): Point => ({ series: i, dashed, ...one }));
        })
    );
    return lines.flat().filter(({ y }) => y <= CEILING * start.y);
}

/** What a perplexity is paid with. */
interface CostAxis {
    title: string;
    /** What the column of the cost is called. */
    column: string;
    x: { title: string; format: string; zero: boolean };
    /** What a model costs, as a number of the axis and in words. */
    of: (cost: Cost) => { x: number; text: string };
    caption: string;
}

const sizeAxis: CostAxis = {
    title: 'Perplexity by the size of the file',
    column: 'Size',
    x: { title: 'MiB', format: ',.4~r', zero: false },
    of: ({ bytes }) => ({ x: bytes / 2 ** 20, text: formatBytes(bytes) }),
    caption: 'Further left and down is better.'
};
const speedAxis: CostAxis = {
    title: 'Perplexity by the speed of reading a prompt',
    column: 'Speed',
    x: { title: 'times the speed of the model as it is', format: '.2f', zero: false },
    of: ({ speed }) => ({ x: speed!.prompt, text: `${formatFactor(speed!.prompt)} as fast` }),
    caption:
        'In the stock runtime, as a multiple of the model as it is, in turns with it. Further right and down is better.'
};

/** What the perplexity is paid with: the size of the file, and the speed, where it was measured. */
function tradeFigures(overview: Overview): Promise<Figure>[] {
    const axes = overview.comparison.dense.cost.speed === null ? [sizeAxis] : [sizeAxis, speedAxis];
    return axes.map((axis) => tradeFigure(overview, axis));
}

/** The figures of a comparison that set pruning beside quantization, to be shown without the rest of the report. */
export function tradePicture(comparison: Comparison): Promise<Figure[]> {
    return Promise.all(tradeFigures(overviewOf(comparison)));
}

/** What the methods give for a cost, beside what quantization gives for it. */
async function tradeFigure(overview: Overview, { title, column, x, of, caption }: CostAxis): Promise<Figure> {
    const { comparison, rows } = overview;
    const [dense, ...others] = comparedRows(comparison);
    const quantized = others.filter((row) => row.quantized !== null);
    const place = (row: ComparedRow): Place => {
        const cost = of(row.cost);
        const ratio = row.ratio > 0 ? ` at ${formatShare(row.ratio)}` : '';
        const label = `${nameOf(row)}${ratio}: ${cost.text}, perplexity ${formatNumber(decidingPerplexity(row))}`;
        return { x: cost.x, y: decidingPerplexity(row), label };
    };
    const start = place(dense!);
    const points = [
        ...[dense!, ...quantized].map((row): Point => ({ series: -1, dashed: false, ...place(row) })),
        ...methodPoints(overview, start, place)
    ].filter(({ y }) => y <= CEILING * start.y);
    const chart = () => lineChart(points, { x, y: 'perplexity', label: `Line chart: ${title.toLowerCase()}` });
    return {
        title,
        caption: `On ${comparison.text ?? 'the calibration text'}. ${caption}`,
        charts: rows.length + quantized.length === 0 ? [] : [await chart()],
        legend: [
            { name: quantized.length > 0 ? 'only quantized' : DENSE, colour: 'var(--before)', glyph: '●' },
            ...methodLegend(overview)
        ],
        table: {
            caption: title,
            head: ['Model', 'Ratio', column, 'Perplexity'],
            rows: [dense!, ...quantized, ...rows].map((row) => [
                nameOf(row),
                row.ratio === 0 ? '' : formatShare(row.ratio),
                of(row.cost).text,
                formatNumber(decidingPerplexity(row))
            ])
        }
    };
}

function perplexityCaption(overview: Overview, before: number, value: (row: ComparedRow) => number): string {
    const { rows, methods, ratios } = overview;
    const best = ratios.map((ratio) => {
        const row = lowestAt(overview, ratio, value);
        return `at ${formatShare(ratio)}: ${formatNumber(value(row))} by ${row.name}`;
    });
    const ceiling = CEILING * before;
    const beyond = methods.flatMap((method) => {
        const above = rows.filter((row) => row.method === method && value(row) > ceiling);
        return above.length === 0 ? [] : [`${above[0]!.name} at ${formatShares(above.map(({ ratio }) => ratio))}`];
    });
    return [
        `${formatNumber(before)} as the model is. Lowest ${best.join('; ')}. Lower is better.`,
        ...(beyond.length > 0 ? [`Above ${formatNumber(ceiling)}, and not in the chart: ${beyond.join('; ')}.`] : [])
    ].join(' ');
}

async function taskFigure(overview: Overview, index: number): Promise<Figure> {
    const { comparison, rows, methods, ratios } = overview;
    const { task, questions, ...scores } = comparison.dense.tasks[index]!;
    const before = reportedScore(scores);
    const best = ratios.map((ratio) => {
        const row = lowestAt(overview, ratio, ({ tasks }) => -tasks[index]!.value);
        return `at ${formatShare(ratio)}: ${formatScore(row.tasks[index]!)} by ${row.name}`;
    });
    const chart = () =>
        scoreChart(
            ratios.map((ratio) => ({
                heading: `${formatShare(ratio)} removed`,
                marks: rows
                    .filter((row) => row.ratio === ratio)
                    .map((row) => ({
                        name: row.name,
                        ...row.tasks[index]!,
                        series: methods.findIndex((method) => method === row.method),
                        label: `${row.name} at ${formatShare(ratio)}: ${formatScore(row.tasks[index]!)}`
                    }))
            })),
            { label: `Dot chart: scores of ${task} by ratio and method, with standard errors`, reference: before }
        );
    return {
        title: `Task scores: ${task}`,
        caption:
            `Share of right answers of ${questions} questions; ${formatScore(before)} as the model is ` +
            `(the dashed line). Highest ${best.join('; ')}. Bars are standard errors; higher is better.`,
        charts: rows.length === 0 ? [] : [await chart()],
        table: {
            caption: `Scores of ${task}`,
            head: ['Method', 'Ratio', 'Score'],
            rows: [
                [DENSE, '', formatScore(before)],
                ...rows.map((row) => [row.name, formatShare(row.ratio), formatScore(row.tasks[index]!)])
            ]
        }
    };
}

async function removedFigure({ comparison, ratios }: Overview): Promise<Figure> {
    const { blocks, pruned } = comparison;
    const runs = runsOf(pruned);
    const classes = Math.min(4, ratios.length);
    const classOf = (ratio: number) => Math.floor((ratios.indexOf(ratio) * classes) / ratios.length);
    const maps = await Promise.all(runs.map((run) => runMaps(run, blocks, classes, classOf)));
    // a higher ratio of other methods removes what a lower one does and more; LaCo merges layers anew for each ratio
    const isMerged = pruned.some(({ merged }) => merged);
    return {
        title: 'Which blocks each method removed',
        wide: true,
        caption: [
            `${runs.map(formatCounts).join('; ')} (attention + feed-forward blocks).`,
            'The numbers are the lowest ratio, in percent, at which a block is gone.',
            ...(isMerged ? ['LaCo searches each ratio anew: at a higher one, a block may be back.'] : [])
        ].join(' '),
        charts: maps.flat(),
        legend: [
            ...ratios.map((ratio) => ({ name: `gone at ${formatShare(ratio)}`, colour: `var(--w${classOf(ratio)})` })),
            { name: 'stays', colour: 'var(--none)' }
        ],
        table: {
            caption: 'The lowest ratio at which a block is gone',
            head: ['Block', ...runs.map(({ name }) => name)],
            rows: blocks.map((block) => [
                formatBlock(block),
                ...runs.map((run) => {
                    const ratio = lowestRatio(run, block);
                    return ratio === undefined ? '' : formatShare(ratio);
                })
            ])
        }
    };
}

/** A method, with one seed where it has seeds, and what it removed at each ratio, ascending. */
interface MethodRun {
    name: string;
    removals: { ratio: number; removed: SkipSet }[];
}

function runsOf(pruned: readonly ComparedModel[]): MethodRun[] {
    const runs = new Map<string, MethodRun>();
    for (const { method, seed, ratio, removed } of pruned.filter(({ repair }) => repair === 'none')) {
        const name = seed === null ? method : `${method}, seed ${seed}`;
        const run = runs.get(name) ?? { name, removals: [] };
        run.removals.push({ ratio, removed: new SkipSet(removed) });
        runs.set(name, run);
    }
    for (const { removals } of runs.values()) {
        removals.sort((a, b) => a.ratio - b.ratio);
    }
    return [...runs.values()];
}

/** The lowest ratio at which a block is gone; undefined for one that always stays. */
function lowestRatio({ removals }: MethodRun, block: Block): number | undefined {
    return removals.find(({ removed }) => removed.has(block))?.ratio;
}

/** How many attention and FFN blocks, and linear ones if any, went at the highest ratio: `shortgpt 2 + 2 at 20 %`. */
function formatCounts({ name, removals }: MethodRun): string {
    const { ratio, removed } = removals.at(-1)!;
    const count = (kind: Block['kind']) => [...removed].filter((block) => block.kind === kind).length;
    const linear = count('linear') > 0 ? ` + ${count('linear')} linear` : '';
    return `${name} ${count('attn')} + ${count('ffn')}${linear} at ${formatShare(ratio)}`;
}

async function runMaps(
    run: MethodRun,
    blocks: readonly Block[],
    classes: number,
    classOf: (ratio: number) => number
): Promise<Html[]> {
    const maps = await layerMaps(
        blocks,
        (block) => {
            const ratio = lowestRatio(run, block);
            const name = `${run.name}, ${formatBlock(block)}`;
            return ratio === undefined
                ? { class: null, label: `${name}: stays` }
                : {
                      class: classOf(ratio),
                      text: String(Math.round(100 * ratio)),
                      label: `${name}: gone at ${formatShare(ratio)}`
                  };
        },
        { scale: 'w', classes, label: `Layer map: blocks that ${run.name} removed`, rows: Infinity, small: true }
    );
    return maps.map((map) => markup`<h3>${run.name}</h3>${map}`);
}

/** The whole table of the comparison; the best value of a column at each ratio is marked. */
function wholeTable(comparison: Comparison): Table {
    const rows = comparedRows(comparison);
    const columns = comparedColumns(comparison);
    return {
        caption: 'All figures',
        head: ['Method', 'Ratio', 'Removed', ...columns.map(({ title }) => title)],
        rows: rows.map((row) => [
            nameOf(row),
            row.ratio === 0 ? '' : formatShare(row.ratio),
            formatShare(row.removed),
            ...columns.map((column) => ({ text: formatValue(column, row), best: isBest(column, row, rows) }))
        ])
    };
}

function formatValue({ unit, of }: ComparedColumn, row: ComparedRow): string {
    const score = of(row);
    switch (unit) {
        case 'perplexity':
            return formatNumber(score.value);
        case 'nats':
            return formatFixed(score.value, 3);
        case 'share':
            return formatScore(score);
        case 'bytes':
            return formatBytes(score.value);
        case 'factor':
            return formatFactor(score.value);
    }
}
