// The report of prune: a page that shows what was removed from a model, and what that cost and gained.
import path from 'node:path';
import { reportedScore } from '../evaluation/scores.js';
import {
    formatBytes,
    formatChange,
    formatDuration,
    formatNumber,
    formatParameters,
    formatScore,
    formatShare
} from '../format.js';
import { formatBlock, formatMove, type Block } from '../runtime/blocks.js';
import { shareOf } from '../runtime/model.js';
import { formatStep, movesAfter } from '../search/greedy.js';
import type { Speed } from '../stock/stock.js';
import { version } from '../version.js';
import { barChart, layerMaps, lineChart, removedAxis, scoreChart, type Bar } from './charts.js';
import { importanceFigure } from './importance-figure.js';
import { page, type Detail, type Fact, type Figure, type LegendItem } from './page.js';
import { formatQuantized, formatRepair, unrepairedPerplexity, type PruneResult } from './prune-result.js';

/**
 * A page that shows what came of pruning a model, as one HTML file that needs nothing else: perplexity against
 * parameters removed, which blocks went and when, the importance of every block at every step, task scores, size and
 * speed.
 */
export async function pruneReport(result: PruneResult): Promise<string> {
    const figures = await Promise.all([
        perplexityFigure(result),
        layerFigure(result),
        importanceFigure(result),
        taskFigure(result),
        sizeFigure(result)
    ]);
    return page({
        title: path.basename(result.model),
        lead: `${result.removed.length} of ${result.blocks.length} blocks removed`,
        facts: factsOf(result),
        figures: figures.filter((figure) => figure !== undefined),
        details: detailsOf(result)
    });
}

/** A value of the model as it is, and of the pruned one. */
interface Pair {
    dense: number;
    pruned: number;
}

function formatPair(format: (value: number) => string, { dense, pruned }: Pair): string {
    return `${format(dense)} → ${format(pruned)}`;
}

function formatPairChange({ dense, pruned }: Pair): string {
    return formatChange(pruned / dense - 1);
}

function formatSpeed(tokens: number): string {
    return `${formatNumber(tokens)} tokens a second`;
}

function factsOf({ parameters, bytes, perplexity, speed }: PruneResult): Fact[] {
    const fact = (name: string, values: Pair, detail: string): Fact => ({
        name,
        value: formatPairChange(values),
        detail
    });
    const facts = [
        fact('Parameters', parameters, formatPair(formatParameters, parameters)),
        fact('File size', bytes, formatPair(formatBytes, bytes)),
        fact('Perplexity', perplexity, `${formatPair(formatNumber, perplexity)}, calibration text`)
    ];
    if (speed) {
        const generation = {
            dense: Math.max(...speed.dense.map((round) => round.generation)),
            pruned: Math.max(...speed.pruned.map((round) => round.generation))
        };
        const detail = `${formatNumber(generation.dense)} → ${formatSpeed(generation.pruned)}`;
        facts.push(fact('Generation speed', generation, detail));
    }
    return facts;
}

function detailsOf(result: PruneResult): Detail[] {
    const { calibration, merged, speed } = result;
    const details: Detail[] = [
        ['Model', path.basename(result.model)],
        ['Result', path.basename(result.output)],
        ['Architecture', `${result.architecture}, written as ${result.host}`],
        ['Method', result.method ?? 'a given order']
    ];
    if (merged) {
        details.push(['Merged', merged.join('; ')]);
    }
    details.push(['Repair', formatRepair(result.repair)]);
    if (result.quantized) {
        details.push(['Quantized', formatQuantized(result.quantized)]);
    }
    details.push(['Calibration', `${calibration.name}: ${calibration.sequences} × ${calibration.context} tokens`]);
    if (speed) {
        const threads = `${speed.threads} ${speed.threads === 1 ? 'thread' : 'threads'}`;
        details.push([
            'Speed',
            `${speed.dense.length} rounds in turns in the stock runtime, ${speed.device}, ${threads}: ` +
                `a prompt of ${speed.tokens} tokens, then as many generated`
        ]);
    }
    details.push(['Time', formatDuration(result.seconds)], ['Made by', `blockpruner ${version}`]);
    return details;
}

async function perplexityFigure(result: PruneResult): Promise<Figure> {
    const { removed, perplexity, repair, linearGaps } = result;
    const models = modelsOf(result);
    const searched = { dense: perplexity.dense, pruned: models.at(-1)!.perplexity };
    const gone = formatShare(models.at(-1)!.share);
    const repaired = `${formatNumber(perplexity.pruned)} (${formatPairChange(perplexity)})`;
    const gained = repair.kind === 'none' ? '' : `, and the repair brought it to ${repaired}`;
    return {
        title: 'Perplexity against parameters removed',
        caption:
            `On the calibration text, the perplexity went from ${formatNumber(perplexity.dense)} to ` +
            `${formatNumber(searched.pruned)} (${formatPairChange(searched)}) while ${removed.length} blocks ` +
            `with ${gone} of the parameters were removed` +
            (linearGaps ? ', with a linear block in each gap, fitted to the model as it is' : '') +
            gained +
            '. Lower is better.',
        charts: [
            await lineChart(
                models.map((model, i) => {
                    const name = i === 0 ? 'the model as it is' : `${i}. without ${model.name}`;
                    const value = `perplexity ${formatNumber(model.perplexity)}`;
                    return {
                        series: 0,
                        dashed: false,
                        x: model.share,
                        y: model.perplexity,
                        label: `${name}: ${value}, ${formatShare(model.share)} of the parameters removed`
                    };
                }),
                {
                    x: removedAxis,
                    y: 'perplexity',
                    label:
                        'Line chart: perplexity on the calibration text, ' +
                        'by the share of the parameters that is removed'
                }
            )
        ],
        table: {
            caption: 'Perplexity after each removal',
            head: ['Removed', 'Parameters removed', 'Perplexity', 'Change'],
            rows: models.map((model, i) => [
                i === 0 ? 'nothing' : `${i}. ${model.name}`,
                formatShare(model.share),
                formatNumber(model.perplexity),
                i === 0 ? '' : formatPairChange({ dense: perplexity.dense, pruned: model.perplexity })
            ])
        }
    };
}

/** A model on the way from the dense to the pruned one. */
interface ModelOnTheWay {
    /** The blocks that went last. */
    name: string;
    /** The share of the parameters that is gone. */
    share: number;
    perplexity: number;
}

/** The model as it is, and what was left of it after each removal. */
function modelsOf(result: PruneResult): ModelOnTheWay[] {
    const { blocks, steps, removed, perplexity, parameters } = result;
    const share = (gone: readonly Block[]) => shareOf(blocks, gone, parameters.dense);
    const dense = { name: 'nothing', share: 0, perplexity: perplexity.dense };
    if (steps.length === 0) {
        return [dense, { name: formatMove(removed), share: share(removed), perplexity: unrepairedPerplexity(result) }];
    }
    const after = steps.map((step, i) => ({
        name: formatStep(step),
        share: share(movesAfter(steps.slice(0, i + 1)).flat()),
        perplexity: step.perplexity
    }));
    return [dense, ...after];
}

async function layerFigure({ blocks, steps, removed }: PruneResult): Promise<Figure> {
    const hasOrder = steps.length > 0;
    const moves = hasOrder ? movesAfter(steps) : [removed];
    const numbers = new Map(moves.flatMap((move, i) => move.map((block) => [formatBlock(block), i + 1])));
    const numberOf = (block: Block) => numbers.get(formatBlock(block));
    const fateOf = (block: Block) => {
        const number = numberOf(block);
        return number === undefined ? 'stays' : hasOrder ? `removed as number ${number}` : 'removed';
    };
    const hasLinear = blocks.some(({ kind }) => kind === 'linear');
    const linear = hasLinear ? `, ${formatCount(removed, blocks, 'linear')} linear blocks (linear)` : '';
    const classes = Math.min(4, moves.length);
    const classOf = (number: number) => Math.floor(((number - 1) * classes) / moves.length);
    const order = `The numbers say in which order, first ${formatMove(moves[0]!)}; empty blocks stay. `;
    return {
        title: hasOrder ? 'Which blocks went, and when' : 'Which blocks went',
        caption:
            `${formatCount(removed, blocks, 'attn')} attention blocks (attn)${linear} and ` +
            `${formatCount(removed, blocks, 'ffn')} feed-forward blocks (ffn) were removed. ` +
            `${hasOrder ? order : ''}Layer 0 is the one next to the input.`,
        charts: await layerMaps(
            blocks,
            (block) => {
                const number = numberOf(block);
                return {
                    class: number === undefined ? null : classOf(number),
                    text: number === undefined || !hasOrder ? '' : String(number),
                    label: `${formatBlock(block)}: ${fateOf(block)}`
                };
            },
            {
                scale: 'w',
                classes,
                label:
                    'Layer map: attention and feed-forward blocks by layer, ' +
                    (hasOrder ? 'with the order of removal' : 'removed or not')
            }
        ),
        legend: [
            ...Array.from({ length: classes }, (_, i): LegendItem => {
                const ofClass = moves.map((_, index) => index + 1).filter((number) => classOf(number) === i);
                const range = ofClass.length > 1 ? `${ofClass[0]} to ${ofClass.at(-1)}` : String(ofClass[0]);
                return { name: hasOrder ? range : 'removed', colour: `var(--w${i})` };
            }),
            { name: 'stays', colour: 'var(--none)' }
        ],
        table: {
            caption: 'Blocks',
            head: ['Block', 'Removed', 'Parameters', 'Bytes'],
            rows: blocks.map((block) => [
                formatBlock(block),
                fateOf(block),
                formatParameters(block.parameters),
                formatBytes(block.bytes)
            ])
        }
    };
}

/** How many blocks of a kind went: `3 of 12`. */
function formatCount(removed: readonly Block[], blocks: readonly Block[], kind: Block['kind']): string {
    const count = (all: readonly Block[]) => all.filter((block) => block.kind === kind).length;
    return `${count(removed)} of ${count(blocks)}`;
}

async function taskFigure({ tasks }: PruneResult): Promise<Figure | undefined> {
    if (tasks.dense.length === 0) {
        return undefined;
    }
    const pairs = tasks.dense.map((dense, i) => ({
        name: dense.task,
        questions: dense.questions,
        before: reportedScore(dense),
        after: reportedScore(tasks.pruned[i]!)
    }));
    const changes = pairs.map(({ name, before, after }) => `${name} ${formatScore(before)} → ${formatScore(after)}`);
    return {
        title: 'Task scores',
        caption:
            `Share of right answers before and after: ${changes.join('; ')}. ` +
            'Bars are standard errors; higher is better.',
        charts: [
            await scoreChart(
                pairs.map(({ name, questions, before, after }) => ({
                    heading: name,
                    marks: [
                        {
                            name: 'before',
                            ...before,
                            series: -1,
                            label: `${name} before: ${formatScore(before)}, ${questions} questions`
                        },
                        {
                            name: 'after',
                            ...after,
                            series: 0,
                            label: `${name} after: ${formatScore(after)}, ${questions} questions`
                        }
                    ]
                })),
                { label: 'Dot chart: task scores before and after, with standard errors' }
            )
        ],
        legend: [
            { name: 'before', colour: 'var(--before)', glyph: '●' },
            { name: 'after', colour: 'var(--accent)', glyph: '●' }
        ],
        table: {
            caption: 'Task scores',
            head: ['Task', 'Questions', 'Score', 'Before', 'After'],
            rows: tasks.dense.flatMap((dense, i) =>
                (['acc', 'acc_norm'] as const)
                    .filter((kind) => dense[kind])
                    .map((kind) => [
                        dense.task,
                        String(dense.questions),
                        kind,
                        formatScore(dense[kind]!),
                        formatScore(tasks.pruned[i]![kind]!)
                    ])
            )
        }
    };
}

/** Something that is measured of both files. */
interface Measure extends Pair {
    name: string;
    format: (value: number) => string;
    /** Single measurements, of which the best counts. */
    rounds: { dense: number[]; pruned: number[] };
}

async function sizeFigure(result: PruneResult): Promise<Figure> {
    const { speed } = result;
    const title = speed ? 'Size and speed' : 'Size';
    const measures = measuresOf(result);
    const changes = measures.map(
        (measure) => `${measure.name}: ${formatPair(measure.format, measure)} (${formatPairChange(measure)})`
    );
    return {
        title,
        caption: `${changes.join('; ')}.${speed ? ` ${speedCaption(measures, speed.dense.length)}` : ''}`,
        charts: [
            await barChart(
                measures.flatMap(barsOf),
                `Bar chart: ${title.toLowerCase()} before and after, as shares of before`
            )
        ],
        legend: [
            { name: 'before', colour: 'var(--before)' },
            { name: 'after', colour: 'var(--accent)' }
        ],
        table: {
            caption: title,
            head: ['Measure', 'Before', 'After', 'Change'],
            rows: measures.map((measure) => [
                measure.name,
                measure.format(measure.dense),
                measure.format(measure.pruned),
                formatPairChange(measure)
            ])
        }
    };
}

function measuresOf({ parameters, bytes, speed }: PruneResult): Measure[] {
    const none = { dense: [], pruned: [] };
    const measures: Measure[] = [
        { name: 'Parameters', format: formatParameters, ...parameters, rounds: none },
        { name: 'File size', format: formatBytes, ...bytes, rounds: none }
    ];
    if (speed) {
        const measure = (name: string, of: (round: Speed) => number): Measure => {
            const rounds = { dense: speed.dense.map(of), pruned: speed.pruned.map(of) };
            const best = { dense: Math.max(...rounds.dense), pruned: Math.max(...rounds.pruned) };
            return { name, format: formatSpeed, ...best, rounds };
        };
        measures.push(
            measure('Prompt', ({ prompt }) => prompt),
            measure('Generation', ({ generation }) => generation)
        );
    }
    return measures;
}

function barsOf({ name, format, dense, pruned, rounds }: Measure): Bar[] {
    return [
        {
            name,
            when: 'before',
            value: 1,
            rounds: rounds.dense.map((value) => value / dense),
            label: `${name} before: ${format(dense)}`
        },
        {
            name,
            when: 'after',
            value: pruned / dense,
            rounds: rounds.pruned.map((value) => value / dense),
            label: `${name} after: ${format(pruned)}, ${formatPairChange({ dense, pruned })}`
        }
    ];
}

function speedCaption(measures: readonly Measure[], count: number): string {
    const scatters = measures
        .flatMap(({ rounds }) => [rounds.dense, rounds.pruned])
        .filter((values) => values.length > 0)
        .map((values) => Math.max(...values) / Math.min(...values));
    return (
        `Speeds are the best of ${count} rounds each, since other work on the computer only slows them down; ` +
        `the ticks are the rounds, which differ by up to a factor of ${formatNumber(Math.max(...scatters))}.`
    );
}
