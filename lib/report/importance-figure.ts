// The figure of a pruning report that shows how much the model needed each block, at every step of the search.
import { formatChange, formatNumber, formatPercent } from '../format.js';
import { formatMove, type Move } from '../runtime/blocks.js';
import type { Candidate } from '../search/contest.js';
import { cellChart, columnWidth, type Cell } from './charts.js';
import type { Html } from './markup.js';
import type { Figure, Table } from './page.js';
import { densePerplexity, type Removals } from './prune-result.js';

/** Undefined where all blocks went at once. */
export async function importanceFigure(result: Removals): Promise<Figure | undefined> {
    const { steps, method } = result;
    if (steps.length === 0) {
        return undefined;
    }
    const title = 'Importance of every block at every step';
    if (steps.every(({ candidates }) => candidates.length < 2)) {
        const caption =
            `The method ${method} does not compare blocks by their perplexity: ` +
            'at each step there was a single candidate.';
        return { title, wide: true, caption, charts: [] };
    }
    const importances = importancesOf(result);
    const panels = panelsOf(importances);
    const { bounds, classOf } = classesOf(importances.map(({ rise }) => rise));
    return {
        title,
        wide: true,
        caption: importanceCaption(importances),
        charts: await Promise.all(panels.map((panel) => heatMap(panel, steps.length, bounds.length + 1, classOf))),
        legend: [
            ...[...bounds, Infinity].map((bound, i) => ({ colour: `var(--h${i})`, name: formatClass(bounds, i) })),
            { colour: 'var(--dot)', glyph: '●', name: 'removed' }
        ],
        table: importanceTable(panels, steps.length)
    };
}

/** What the removal of a candidate at a step would have cost. */
interface Importance extends Candidate {
    /** The candidate's blocks. */
    name: string;
    /** The step, from 1. */
    step: number;
    /** The rise of the perplexity, as a share of the perplexity before the step. */
    rise: number;
    /** Is it the candidate that was removed? */
    won: boolean;
    /** The number of sequences of the calibration; the perplexity is an estimate where fewer were evaluated. */
    ofSequences: number;
}

function importancesOf(result: Removals): Importance[] {
    const { steps, calibration } = result;
    return steps.flatMap(({ candidates, removed }, i) => {
        const before = i === 0 ? densePerplexity(result) : steps[i - 1]!.perplexity;
        return candidates.map((candidate) => ({
            ...candidate,
            name: formatMove(candidate.move),
            step: i + 1,
            rise: (candidate.perplexity ?? Infinity) / before - 1,
            won: formatMove(candidate.move) === formatMove(removed),
            ofSequences: calibration.sequences
        }));
    });
}

function isEstimate({ sequences, ofSequences }: Importance): boolean {
    return sequences < ofSequences;
}

/**
 * Eight classes of rises. Their bounds go up in steps of 1, 2, 5, 10 …, and begin where the tenth of the blocks that
 * matter least ends.
 */
function classesOf(rises: readonly number[]): { bounds: number[]; classOf: (rise: number) => number } {
    const sorted = [...rises].sort((a, b) => a - b);
    const tenth = sorted[Math.floor(sorted.length / 10)]!;
    const all = Array.from({ length: 21 }, (_, i) => [1, 2, 5][i % 3]! * 10 ** (Math.floor(i / 3) - 4));
    const first = all.findIndex((bound) => bound >= tenth || bound === all.at(-1));
    const start = Math.min(first, all.length - 7);
    const bounds = all.slice(start, start + 7);
    return { bounds, classOf: (rise) => bounds.filter((bound) => rise >= bound).length };
}

function formatClass(bounds: readonly number[], index: number): string {
    const format = (bound: number) => formatPercent(bound, 2, { short: true, signed: true });
    if (index === bounds.length) {
        return `${format(bounds.at(-1)!)} and more`;
    }
    return `${index === 0 ? 'under' : 'to'} ${format(bounds[index]!)}`;
}

/** One heat map: the candidates of one kind. */
interface Panel {
    name: string;
    /** The candidates' names, in the order of the residual stream. */
    rows: string[];
    /** What the map shows in a row at a step; undefined where the candidate was gone. */
    at: (row: string, step: number) => Importance | undefined;
}

function panelsOf(importances: readonly Importance[]): Panel[] {
    const moves = new Map(importances.map(({ name, move }) => [name, move]));
    const inStream = [...moves.keys()].sort((a, b) => compareMoves(moves.get(a)!, moves.get(b)!));
    const byPlace = new Map(importances.map((one) => [`${one.step}/${one.name}`, one]));
    const panel = (name: string, isShown: (move: Move) => boolean): Panel => ({
        name,
        rows: inStream.filter((row) => isShown(moves.get(row)!)),
        at: (row, step) => byPlace.get(`${step}/${row}`)
    });
    return [
        panel('Attention blocks', (move) => move.length === 1 && move[0]!.kind === 'attn'),
        panel('Feed-forward blocks', (move) => move.length === 1 && move[0]!.kind === 'ffn'),
        panel('Linear blocks', (move) => move.length === 1 && move[0]!.kind === 'linear'),
        panel('Blocks that go together', (move) => move.length > 1)
    ].filter(({ rows }) => rows.length > 0);
}

/** Orders removals by where their first block is in the residual stream. */
function compareMoves([a]: Move, [b]: Move): number {
    return a!.layer - b!.layer || a!.kind.localeCompare(b!.kind);
}

function importanceCaption(importances: readonly Importance[]): string {
    const first = importances.filter(({ step }) => step === 1).sort((a, b) => a.rise - b.rise);
    const [least, most] = [first[0]!, first.at(-1)!];
    const estimates = importances.filter(isEstimate).length;
    return [
        'How much the perplexity rises at a step without a block:',
        'the stronger the colour, the more the model needs it.',
        `At step 1, from ${formatChange(least.rise)} without ${least.name} to ${formatChange(most.rise)} without`,
        `${most.name}. A dot marks what was removed.`,
        estimates === 0
            ? 'All values are measured on all sequences.'
            : `${estimates} of the ${importances.length} values are estimates: ` +
              'the search stops a block once it is clear that others matter less.'
    ].join(' ');
}

function heatMap(
    { name, rows, at }: Panel,
    steps: number,
    classes: number,
    classOf: (rise: number) => number
): Promise<Html> {
    const columns = Array.from({ length: steps }, (_, i) => String(i + 1));
    const shown = rows.flatMap((row) => columns.map((column) => at(row, Number(column))));
    return cellChart(
        shown
            .filter((one) => one !== undefined)
            .map((one): Cell => ({
                column: String(one.step),
                row: one.name,
                class: classOf(one.rise),
                dot: one.won,
                label: importanceLabel(one)
            })),
        {
            scale: 'h',
            classes,
            columns,
            rows,
            cellWidth: columnWidth(columns.length, rows, 30),
            cellHeight: 17,
            columnTitle: 'step',
            label: `Heat map: ${name.toLowerCase()} by step, with the rise of the perplexity without each`
        }
    );
}

function importanceLabel(one: Importance): string {
    const value =
        one.perplexity === null
            ? 'no finite perplexity'
            : `perplexity ${formatNumber(one.perplexity)}, ${formatChange(one.rise)}`;
    const estimate = ` (estimate from ${one.sequences} of ${one.ofSequences} sequences)`;
    return `${one.name}, step ${one.step}: ${value}${one.won ? ', removed' : ''}${isEstimate(one) ? estimate : ''}`;
}

function importanceTable(panels: readonly Panel[], steps: number): Table {
    const numbers = Array.from({ length: steps }, (_, i) => i + 1);
    const format = (one: Importance | undefined) => {
        if (one === undefined) {
            return '';
        }
        return one.perplexity === null ? '∞' : `${isEstimate(one) ? '~' : ''}${formatNumber(one.perplexity)}`;
    };
    return {
        caption: 'Perplexity without each block, by step; ~ marks estimates',
        head: ['Block', ...numbers.map((number) => `Step ${number}`)],
        rows: panels.flatMap(({ rows, at }) =>
            rows.map((row) => [row, ...numbers.map((number) => format(at(row, number)))])
        )
    };
}
