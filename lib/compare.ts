import fs from 'node:fs/promises';
import path from 'node:path';
import type { Block } from './blocks.js';
import { loadCalibration, readSamples, type CalibrationOptions } from './calibration/index.js';
import { BlockprunerError } from './errors.js';
import { perplexityOf, textPerplexity } from './evaluation/perplexity.js';
import { PrefixEvaluator } from './evaluation/prefix.js';
import { scoreTask, type Score, type TaskScores } from './evaluation/scores.js';
import type { Task } from './evaluation/tasks.js';
import { chooseHost } from './export/hosts.js';
import { readGguf } from './gguf.js';
import { Model, resolveModel, shareOf, type LoadOptions } from './model.js';
import { searchOrder, type SearchMode, type Step } from './search/blockpruner.js';
import { methods as allMethods, movesOf, type Method } from './search/methods.js';

export interface CompareOptions extends Pick<LoadOptions, 'device' | 'gpuLayers' | 'threads'> {
    /** Shares of the parameters to remove, 0 … 1. */
    ratios: readonly number[];
    /** Default: all. */
    methods?: readonly Method[] | undefined;
    /** `random` is run with so many seeds, and reported as their mean. Default: 3. */
    seeds?: number | undefined;
    tasks?: readonly Task[] | undefined;
    /** The first so many questions of each task. Default: all. */
    limit?: number | undefined;
    /** A text whose perplexity is measured too. */
    text?: string | undefined;
    calibration?: CalibrationOptions | undefined;
    /** How the methods that compare perplexities do. Default: `race`. */
    search?: SearchMode | undefined;
    signal?: AbortSignal | undefined;
    onProgress?: ((what: string) => void) | undefined;
}

/** How good a model without some blocks is. */
export interface Quality {
    /** on the calibration text */
    calibration: number;
    /** on the text, if one is given */
    text: number | null;
    tasks: TaskScores[];
}

export interface ComparedModel extends Quality {
    method: Method;
    /** of `random` */
    seed: number | null;
    /** as asked for */
    ratio: number;
    /** share of the parameters that is gone: the fewest blocks that are at least the ratio */
    removedShare: number;
    removed: Block[];
}

export interface Comparison {
    model: string;
    calibration: { name: string; sequences: number; context: number };
    text: string | null;
    dense: Quality;
    /** by ratio, then by method */
    pruned: ComparedModel[];
    seconds: number;
}

/**
 * Prunes a model by several methods at several ratios, and evaluates what is left, as the paper's tables 1 and 2 do. Nothing is
 * written: a pruned file computes what its skip set computes. A method's order is found once, for the highest ratio.
 */
export async function compare(uri: string, options: CompareOptions): Promise<Comparison> {
    const { seeds = 3, tasks = [], limit, text, search = 'race', device, gpuLayers, threads, signal, onProgress } = options;
    const ratios = [...new Set(options.ratios)], methods = [...new Set(options.methods ?? allMethods)];
    const started = performance.now();
    for (const ratio of ratios) {
        if (!(ratio > 0 && ratio < 1)) {
            throw new BlockprunerError(`a ratio must be above 0 and below 1, not ${ratio}`);
        }
    }
    const file = await resolveModel(uri, { signal });
    const host = await chooseHost(await readGguf(file, signal), signal);
    if (text !== undefined) {
        await readSamples(text, options.calibration?.field); // before the long work
    }
    const model = await Model.load(file, { device, gpuLayers, threads, signal });
    try {
        const blocks = await model.blocks(signal);
        const calibration = await loadCalibration(model, options.calibration, signal);
        const share = (removed: readonly Block[]) => shareOf(blocks, removed, model.parameters);
        const evaluate = async (skip: readonly Block[], perplexity: number): Promise<Quality> => {
            const scores: TaskScores[] = [];
            for (const task of tasks) {
                scores.push(await scoreTask(model, task, { skip, limit, signal }));
            }
            return {
                calibration: perplexity,
                text: text === undefined ? null : (await textPerplexity(model, text, { skip, signal, context: calibration.length, field: options.calibration?.field })).perplexity,
                tasks: scores
            };
        };

        onProgress?.('the model as it is');
        const dense = await evaluate([], await perplexityOf(model, calibration, { signal }));
        const pruned: ComparedModel[] = [];
        const highest = Math.max(...ratios);
        for (const method of methods) {
            for (const seed of method === 'random' ? Array.from({ length: seeds }, (_, i) => i) : [null]) {
                const name = seed === null ? method : `${method}, seed ${seed}`;
                onProgress?.(`${name}: what goes`);
                const moves = await movesOf(method, { model, host, blocks, calibration, seed: seed ?? undefined, signal });
                const evaluator = new PrefixEvaluator([model], calibration, { signal });
                evaluator.remove([]); // forgets what the last method left
                const steps: Step[] = [];
                await searchOrder(evaluator, {
                    onStep: (step) => steps.push(step),
                    mode: search,
                    moves: (removed) => (share(removed) >= highest ? [] : moves(removed))
                });
                for (const ratio of ratios) {
                    const removedAfter = (count: number) => steps.slice(0, count).flatMap((step) => step.removed);
                    const last = steps.findIndex((_, i) => share(removedAfter(i + 1)) >= ratio);
                    if (last < 0) {
                        onProgress?.(`${name} can't remove ${ratio}`);
                        continue;
                    }
                    onProgress?.(`${name} at ${ratio}: perplexity and tasks`);
                    const removed = removedAfter(last + 1);
                    pruned.push({ method, seed, ratio, removedShare: share(removed), removed, ...await evaluate(removed, steps[last]!.perplexity) });
                }
            }
        }
        pruned.sort((a, b) => a.ratio - b.ratio);
        return {
            model: uri, calibration: { name: calibration.name, sequences: calibration.tokens.length / calibration.length, context: calibration.length },
            text: text === undefined ? null : path.basename(text), dense, pruned, seconds: (performance.now() - started) / 1000
        };
    } finally {
        model.dispose();
    }
}

function formatScore({ value, stderr }: Score): string {
    return (100 * value).toFixed(1) + (stderr === null ? '' : ` ± ${(100 * stderr).toFixed(1)}`);
}

export interface Row {
    method: string;
    ratio: number;
    removed: number;
    calibration: number;
    text: number | null;
    /** by task: the score that the paper reports, acc_norm where there is one */
    tasks: Score[];
}

/** One row for each method and ratio; the mean over the seeds of `random`. */
export function rowsOf({ dense, pruned }: Comparison): Row[] {
    const scores = ({ tasks }: Quality) => tasks.map(({ acc, acc_norm }) => acc_norm ?? acc);
    const groups = new Map<string, ComparedModel[]>();
    for (const one of pruned) {
        const key = `${one.ratio}/${one.method}`;
        groups.set(key, [...(groups.get(key) ?? []), one]);
    }
    const mean = (values: number[]) => values.reduce((sum, value) => sum + value, 0) / values.length;
    return [
        { method: 'dense', ratio: 0, removed: 0, calibration: dense.calibration, text: dense.text, tasks: scores(dense) },
        ...[...groups.values()].map((group) => ({
            method: group.length > 1 ? `${group[0]!.method} (mean of ${group.length})` : group[0]!.method,
            ratio: group[0]!.ratio,
            removed: mean(group.map(({ removedShare }) => removedShare)),
            calibration: mean(group.map(({ calibration }) => calibration)),
            text: group[0]!.text === null ? null : mean(group.map(({ text }) => text!)),
            tasks: dense.tasks.map((_, i) => ({
                value: mean(group.map((one) => scores(one)[i]!.value)),
                stderr: dense.tasks[i]!.acc.stderr === null ? null : mean(group.map((one) => scores(one)[i]!.stderr!))
            }))
        }))
    ];
}

/** The paper's table, in Markdown: of each ratio the best of a column is bold. */
export function comparisonTable(comparison: Comparison): string {
    const rows = rowsOf(comparison);
    const names = comparison.dense.tasks.map(({ task }) => task);
    const average = ({ tasks }: Row) => tasks.reduce((sum, { value }) => sum + value, 0) / tasks.length;
    const columns: { title: string; value: (row: Row) => number | null; text: (row: Row) => string; lower: boolean }[] = [
        { title: 'perplexity, calibration', value: (row) => row.calibration, text: (row) => row.calibration.toFixed(2), lower: true },
        ...(comparison.text === null ? [] : [{ title: `perplexity, ${comparison.text.replaceAll('|', '/')}`, value: (row: Row) => row.text, text: (row: Row) => row.text!.toFixed(2), lower: true }]),
        ...names.map((title, i) => ({
            title, lower: false,
            value: (row: Row) => row.tasks[i]!.value,
            text: (row: Row) => formatScore(row.tasks[i]!)
        })),
        ...(names.length > 1 ? [{ title: 'average', value: average, text: (row: Row) => (100 * average(row)).toFixed(1), lower: false }] : [])
    ];
    const cell = (row: Row, { value, text, lower }: (typeof columns)[number]) => {
        const rivals = rows.filter(({ ratio }) => ratio === row.ratio).map((other) => value(other)!);
        const best = lower ? Math.min(...rivals) : Math.max(...rivals);
        return row.ratio > 0 && rivals.length > 1 && value(row) === best ? `**${text(row)}**` : text(row);
    };
    return [
        `| ratio | removed | method | ${columns.map(({ title }) => title).join(' | ')} |`,
        `|---|---|---|${'---|'.repeat(columns.length)}`,
        ...rows.map((row) => `| ${row.ratio === 0 ? '' : row.ratio} | ${(100 * row.removed).toFixed(1)} % | ${row.method} | ${columns.map((column) => cell(row, column)).join(' | ')} |`)
    ].join('\n') + '\n';
}

/** The same as CSV, with scores and standard errors as shares. */
export function comparisonCsv(comparison: Comparison): string {
    const names = comparison.dense.tasks.map(({ task }) => task);
    const quote = (text: string) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
    return [
        ['method', 'ratio', 'removed', 'calibration_perplexity', 'text_perplexity', ...names.flatMap((name) => [name, `${name}_stderr`])],
        ...rowsOf(comparison).map(({ method, ratio, removed, calibration, text, tasks }) => [method, ratio, removed, calibration, text ?? '', ...tasks.flatMap(({ value, stderr }) => [value, stderr ?? ''])])
    ].map((fields) => fields.map((field) => quote(String(field))).join(',')).join('\n') + '\n';
}

/** Writes table.md, table.csv and results.json into a folder, which is made. */
export async function writeComparison(comparison: Comparison, folder: string): Promise<void> {
    await fs.mkdir(folder, { recursive: true });
    await fs.writeFile(path.join(folder, 'table.md'), comparisonTable(comparison));
    await fs.writeFile(path.join(folder, 'table.csv'), comparisonCsv(comparison));
    await fs.writeFile(path.join(folder, 'results.json'), JSON.stringify(comparison, null, 1) + '\n');
}
