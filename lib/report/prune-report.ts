// The report of prune: a page that shows what was removed from a model, and what that cost and gained.
import path from 'node:path';
import { reportedScore } from '../evaluation/scores.js';
import {
    formatBytes,
    formatDuration,
    formatNumber,
    formatPair,
    formatPairChange,
    formatParameters,
    formatScore,
    type Pair
} from '../format.js';
import type { Speed } from '../stock/stock.js';
import { version } from '../version.js';
import { barChart, scoreChart, type Bar } from './charts.js';
import { importanceFigure } from './importance-figure.js';
import { page, type Detail, type Fact, type Figure } from './page.js';
import { formatQuantized, formatRepair, formatSearched, type PruneResult } from './prune-result.js';
import { layerFigure, perplexityFigure } from './search-figures.js';

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
    if (result.searched) {
        details.push(['Searched', formatSearched(result.searched, result.linearGaps)]);
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
