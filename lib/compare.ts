import crypto from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import { stringify } from 'csv-stringify/sync';
import { z } from 'zod';
import type { Block, BlockSelection, Move } from './blocks.js';
import { loadCalibration, readSamples, type CalibrationOptions } from './calibration/index.js';
import { collapse, withCollapsed } from './collapse.js';
import { BlockprunerError, messageOf } from './errors.js';
import { perplexityOf, textPerplexity } from './evaluation/perplexity.js';
import { PrefixEvaluator } from './evaluation/prefix.js';
import { scoreTask, type Score } from './evaluation/scores.js';
import type { Task } from './evaluation/tasks.js';
import { chooseHost } from './export/hosts.js';
import { formatMerges, version } from './export/write.js';
import { hashGguf, readGguf } from './gguf.js';
import { Model, resolveModel, shareOf, type LoadOptions } from './model.js';
import { comparisonReport } from './report/index.js';
import { searchOrder, type SearchMode } from './search/blockpruner.js';
import { differences, Journal, type JournalInputs } from './search/journal.js';
import { isLaco, type LacoMethod } from './search/laco.js';
import { methods, movesOf, type GreedyMethod } from './search/methods.js';
import { checkConfidence, DEFAULT_CONFIDENCE } from './search/race.js';

/** The methods, and BlockPruner limited to blocks of one kind, as in the paper's ablation (section 5.2). */
export const comparedMethods = [...methods, 'blockpruner-attn', 'blockpruner-ffn'] as const;
export type ComparedMethod = (typeof comparedMethods)[number];

/** How one of them searches for what to remove next. */
function searchOf(compared: Exclude<ComparedMethod, LacoMethod>): { method: GreedyMethod; selection: BlockSelection } {
    switch (compared) {
        case 'blockpruner-attn': return { method: 'blockpruner', selection: 'attn' };
        case 'blockpruner-ffn': return { method: 'blockpruner', selection: 'ffn' };
        default: return { method: compared, selection: 'all' };
    }
}

export interface CompareOptions extends Pick<LoadOptions, 'device' | 'gpuLayers' | 'threads'> {
    /** The folder for report.html, table.md, table.csv and results.json, made if it isn't there; they are written anew after each result. */
    output: string;
    /** Go on with the results in the folder. Default: false, which refuses a folder with anything in it. */
    resume?: boolean | undefined;
    /** Shares of the parameters to remove, 0 … 1. */
    ratios: readonly number[];
    /** Default: all. */
    methods?: readonly ComparedMethod[] | undefined;
    /** `random` is run with so many seeds, and reported as their mean. Default: 3. */
    seeds?: number | undefined;
    tasks?: readonly Task[] | undefined;
    /** The first so many questions of each task. Default: all. */
    limit?: number | undefined;
    /** A text on which perplexity and divergence from the dense model are measured too. */
    text?: string | undefined;
    /** The first so many sequences of the text. Default: all. */
    textSamples?: number | undefined;
    calibration?: CalibrationOptions | undefined;
    /** How the methods that compare perplexities do. Default: `race`. */
    search?: SearchMode | undefined;
    /** `race`: the probability that a removal is the one that `exact` makes. Default: 0.999. */
    confidence?: number | undefined;
    /** Memory on each device for the residual stream that candidates start from, in bytes. Default: 2 GiB. */
    keepBytes?: number | undefined;
    signal?: AbortSignal | undefined;
    onProgress?: ((what: string) => void) | undefined;
}

const blockSchema = z.object({ kind: z.enum(['attn', 'ffn']), layer: z.number().int().nonnegative() });
const scoreSchema = z.object({ value: z.number(), stderr: z.number().nullable() });
const qualitySchema = z.object({
    /** perplexity on the calibration text */
    calibration: z.number(),
    /** on the text, if one is given; against the dense model: mean KL divergence in nats, share of equal top-1 tokens */
    text: z.object({ perplexity: z.number(), divergence: z.number(), sameTop: z.number() }).nullable(),
    tasks: z.array(z.object({ task: z.string(), questions: z.number(), acc: scoreSchema, acc_norm: scoreSchema.nullable() }))
});
const method = z.enum(comparedMethods);
/** of `random` */
const seed = z.number().int().nullable();

/** What results.json holds. */
const comparisonSchema = z.object({
    model: z.string(),
    calibration: z.object({ name: z.string(), sequences: z.number(), context: z.number() }),
    /** the text's name */
    text: z.string().nullable(),
    /** all that the model has, in the order of the residual stream */
    blocks: z.array(blockSchema),
    /** what searches depend on, by its name in messages */
    searchedWith: z.record(z.string(), z.string()),
    /** what the evaluations of their results depend on */
    evaluatedWith: z.record(z.string(), z.string()),
    dense: qualitySchema,
    /** each method's order of removal, up to the highest ratio that it was asked for, or can reach; not of laco, which has none */
    searches: z.array(z.object({
        method, seed, ratio: z.number(),
        steps: z.array(z.object({ removed: z.array(blockSchema), perplexity: z.number(), evaluations: z.number(), seconds: z.number() }))
    })),
    /** by ratio */
    pruned: z.array(qualitySchema.extend({
        method, seed,
        /** as asked for */
        ratio: z.number(),
        /** share of the parameters that is gone: the fewest blocks that are at least the ratio */
        removedShare: z.number(),
        removed: z.array(blockSchema),
        /** of laco: what the weights of layers became */
        merged: z.array(z.string()).optional()
    })),
    /** of all runs that made it */
    seconds: z.number()
});
export type Comparison = z.infer<typeof comparisonSchema>;
/** How good a model without some blocks is. */
export type Quality = z.infer<typeof qualitySchema>;
export type ComparedModel = Comparison['pruned'][number];

/**
 * Prunes a model by several methods at several ratios, and evaluates what is left, as the paper's tables 1 and 2 do. No model is
 * written: a pruned file computes what its skip set computes. A method's order is found once, for the highest ratio.
 *
 * Results are written as they come, and searches have journals, so that a run that was stopped can go on; a run with other
 * texts or tasks has the searches already.
 * @throws BlockprunerError for wrong arguments, before the long work
 */
export async function compare(uri: string, options: CompareOptions): Promise<Comparison> {
    const { output, resume = false, seeds = 3, tasks = [], limit, text, textSamples, search = 'race', confidence = DEFAULT_CONFIDENCE, keepBytes, device, gpuLayers, threads, signal, onProgress } = options;
    const ratios = [...new Set(options.ratios)], chosen = [...new Set(options.methods ?? comparedMethods)];
    const started = performance.now();
    for (const ratio of ratios) {
        if (!(ratio > 0 && ratio < 1)) {
            throw new BlockprunerError(`a ratio must be above 0 and below 1, not ${ratio}`);
        }
    }
    const unknown = chosen.find((name) => !comparedMethods.includes(name));
    if (unknown !== undefined) {
        throw new BlockprunerError(`there is no method '${unknown}': there are ${comparedMethods.join(', ')}`);
    }
    checkConfidence(confidence);
    const previous = checkFolder(output, resume);
    const file = await resolveModel(uri, { signal });
    const gguf = await readGguf(file, signal);
    const host = await chooseHost(gguf, signal);
    const samples = text === undefined ? '' : await readSamples(text, options.calibration?.field, { signal }); // before the long work
    const models = await Model.loadOnEach(file, { device, gpuLayers, threads, signal });
    const model = models[0]!;
    try {
        const blocks = await model.blocks(signal);
        const calibration = await loadCalibration(model, options.calibration, signal);
        const share = (removed: readonly Block[]) => shareOf(blocks, removed, model.parameters);
        const searchedWith = {
            model: `SHA-256 ${await hashGguf(gguf, signal)}`,
            calibration: `${calibration.tokens.length / calibration.length} × ${calibration.length} tokens, SHA-256 ${sha256(calibration.tokens)}`,
            search: search === 'race' ? `race, confidence ${confidence}` : search,
            device: `${model.device}, ${gpuLayers ?? 'all'} layers`,
            version
        };
        const evaluatedWith = {
            text: text === undefined ? 'none' : `${textSamples ?? 'all'} × ${calibration.length} tokens, SHA-256 ${sha256(samples)}`,
            tasks: `${tasks.map(({ name }) => name).join(', ') || 'none'}, ${limit ?? 'all'} questions, SHA-256 ${sha256(JSON.stringify(tasks))}`
        };
        const other = previous && differences(previous.searchedWith, searchedWith);
        if (other) {
            throw new BlockprunerError(`the results in ${output} are of searches with another ${other}: give the same, or another folder`);
        }
        const known = previous && !differences(previous.evaluatedWith, evaluatedWith) ? previous : undefined;

        const evaluateText = async (other: Model, skip: readonly Block[]) => {
            const { perplexity, dense } = await textPerplexity(other, text!, { skip, dense: model, samples: textSamples, context: calibration.length, field: options.calibration?.field, signal });
            return { perplexity, divergence: dense!.divergence, sameTop: dense!.sameTop };
        };
        const evaluate = async (other: Model, skip: readonly Block[], perplexity?: number): Promise<Quality> => {
            const scores: Quality['tasks'] = [];
            for (const task of tasks) {
                scores.push(await scoreTask(other, task, { skip, limit, signal }));
            }
            return {
                calibration: perplexity ?? await perplexityOf(other, calibration, { skip, signal }),
                text: text === undefined ? null : await evaluateText(other, skip),
                tasks: scores
            };
        };

        fs.mkdirSync(output, { recursive: true });
        onProgress?.('the model as it is');
        const comparison: Comparison = {
            model: uri,
            calibration: { name: calibration.name, sequences: calibration.tokens.length / calibration.length, context: calibration.length },
            text: text === undefined ? null : path.basename(text),
            blocks: blocks.map(({ kind, layer }) => ({ kind, layer })),
            searchedWith, evaluatedWith,
            dense: known?.dense ?? await evaluate(model, []),
            searches: previous?.searches ?? [],
            pruned: known?.pruned ?? [],
            seconds: 0
        };
        const save = async () => {
            comparison.seconds = (previous?.seconds ?? 0) + (performance.now() - started) / 1000;
            comparison.pruned.sort((a, b) => a.ratio - b.ratio || comparedMethods.indexOf(a.method) - comparedMethods.indexOf(b.method));
            writeFile(path.join(output, 'results.json'), JSON.stringify(comparison, null, 1) + '\n');
            writeFile(path.join(output, 'table.md'), comparisonTable(comparison));
            writeFile(path.join(output, 'table.csv'), comparisonCsv(comparison));
            writeFile(path.join(output, 'report.html'), await comparisonReport(comparison));
        };
        await save();

        for (const compared of chosen) {
            for (const seed of compared === 'random' ? Array.from({ length: seeds }, (_, i) => i) : [null]) {
                const name = seed === null ? compared : `${compared}-${seed}`;
                const isOurs = (one: { method: ComparedMethod; seed: number | null }) => one.method === compared && one.seed === seed;
                const missing = ratios.filter((ratio) => !comparison.pruned.some((one) => isOurs(one) && one.ratio === ratio));
                const add = async (ratio: number, removed: Block[], quality: Quality, merged?: string[]) => {
                    comparison.pruned.push({ method: compared, seed, ratio, removedShare: share(removed), removed, ...(merged && { merged }), ...quality });
                    await save();
                };
                if (isLaco(compared)) {
                    for (const ratio of missing) {
                        onProgress?.(`${compared} at ${ratio}`);
                        const context = { method: compared, host, blocks, calibration, folder: output, isEnough: (removed: readonly Block[]) => share(removed) >= ratio, signal };
                        const collapsed = await collapse(model, context).catch((error: unknown) => {
                            if (!(error instanceof BlockprunerError) || signal?.aborted) {
                                throw error;
                            }
                            onProgress?.(error.message);
                        });
                        if (collapsed) {
                            await add(ratio, collapsed.removed, await withCollapsed(model, context, collapsed, (other) => evaluate(other, [])), formatMerges(collapsed.merges));
                        }
                    }
                    continue;
                }
                const { method, selection } = searchOf(compared);
                const reachable = share(blocks.filter(({ kind }) => selection === 'all' || kind === selection));
                const highest = Math.max(0, ...ratios.filter((ratio) => ratio < reachable));
                let found = comparison.searches.find((one) => isOurs(one) && one.ratio >= highest);
                if (!found) {
                    onProgress?.(`${name}: what goes`);
                    const moves = await movesOf(method, { model, host, blocks, calibration, selection, seed: seed ?? undefined, signal });
                    const evaluator = new PrefixEvaluator(models, calibration, { keepBytes, signal });
                    evaluator.remove([]); // forgets what the last method left
                    const journalFile = path.join(output, `${name}.journal`);
                    const steps: Comparison['searches'][number]['steps'] = [];
                    await withJournal(evaluator, journalFile, { ...searchedWith, method: name }, async (journal) => searchOrder(journal, {
                        onStep: ({ removed, perplexity, evaluations, seconds }) => steps.push({ removed: [...removed], perplexity, evaluations, seconds }),
                        mode: search, confidence,
                        moves: (removed): readonly Move[] => (share(removed) >= highest ? [] : moves(removed))
                    }));
                    found = { method: compared, seed, ratio: highest, steps };
                    comparison.searches = [...comparison.searches.filter((one) => !isOurs(one)), found];
                    await save();
                    fs.rmSync(journalFile, { force: true });
                }
                for (const ratio of missing) {
                    const removedAfter = (count: number) => found.steps.slice(0, count).flatMap((step) => step.removed);
                    const last = found.steps.findIndex((_, i) => share(removedAfter(i + 1)) >= ratio);
                    if (last < 0) {
                        onProgress?.(`${name} can't remove ${ratio}`);
                        continue;
                    }
                    onProgress?.(`${name} at ${ratio}: perplexity and tasks`);
                    await add(ratio, removedAfter(last + 1), await evaluate(model, removedAfter(last + 1), found.steps[last]!.perplexity));
                }
            }
        }
        return comparison;
    } finally {
        models.forEach((copy) => copy.dispose());
    }
}

function sha256(data: string | Int32Array): string {
    return crypto.createHash('sha256').update(data).digest('hex');
}

/** The results that are in a folder. Nothing else may be there: it is ours, or new. */
function checkFolder(folder: string, resume: boolean): Comparison | undefined {
    const results = path.join(folder, 'results.json');
    let content: string;
    try {
        if (!fs.existsSync(path.dirname(path.resolve(folder)))) {
            throw new BlockprunerError(`can't write to the folder ${path.dirname(path.resolve(folder))}: there is no such folder`);
        }
        if (!fs.existsSync(folder)) {
            return undefined;
        }
        if (!resume && fs.readdirSync(folder).length > 0) {
            throw new BlockprunerError(`the folder ${folder} isn't empty: go on with what is there by --resume, or choose another name`);
        }
        if (!fs.existsSync(results)) {
            return undefined;
        }
        content = fs.readFileSync(results, 'utf8');
    } catch (error) {
        throw error instanceof BlockprunerError ? error : new BlockprunerError(`can't use ${folder} as the output: ${messageOf(error)}`);
    }
    try {
        return comparisonSchema.parse(JSON.parse(content));
    } catch {
        throw new BlockprunerError(`${results} holds no results of a comparison by this version: choose another folder`);
    }
}

/** Runs a search that goes on where one with the same inputs was stopped. */
async function withJournal<T>(evaluator: PrefixEvaluator, file: string, inputs: JournalInputs, work: (journal: Journal) => Promise<T>): Promise<T> {
    const journal = Journal.open(evaluator, file, inputs, true);
    return work(journal).finally(() => journal.close());
}

/** A file is complete, or as it was before. */
function writeFile(file: string, content: string): void {
    fs.writeFileSync(`${file}.partial`, content);
    fs.renameSync(`${file}.partial`, file);
}
/** A row of the table. */
export interface ComparedRow {
    method: ComparedMethod | 'dense';
    /** how many seeds it is the mean of */
    seeds: number;
    ratio: number;
    removed: number;
    calibration: number;
    text: Quality['text'];
    /** by task: the score that the paper reports, acc_norm where there is one */
    tasks: Score[];
}

/** One row for each method and ratio; the mean over the seeds of `random`. */
export function comparedRows({ dense, pruned }: Comparison): ComparedRow[] {
    const scores = ({ tasks }: Quality) => tasks.map(({ acc, acc_norm }) => acc_norm ?? acc);
    const groups = new Map<string, ComparedModel[]>();
    for (const one of pruned) {
        const key = `${one.ratio}/${one.method}`;
        groups.set(key, [...(groups.get(key) ?? []), one]);
    }
    const row = (method: ComparedRow['method'], ratio: number, group: readonly Quality[], removed: number): ComparedRow => {
        const mean = (value: (one: Quality) => number) => group.reduce((sum, one) => sum + value(one), 0) / group.length;
        return {
            method, ratio, removed, seeds: group.length,
            calibration: mean(({ calibration }) => calibration),
            text: dense.text && { perplexity: mean(({ text }) => text!.perplexity), divergence: mean(({ text }) => text!.divergence), sameTop: mean(({ text }) => text!.sameTop) },
            tasks: dense.tasks.map(({ acc }, i) => ({
                value: mean((one) => scores(one)[i]!.value),
                stderr: acc.stderr === null ? null : mean((one) => scores(one)[i]!.stderr!)
            }))
        };
    };
    return [
        row('dense', 0, [dense], 0),
        ...[...groups.values()].map((group) => row(group[0]!.method, group[0]!.ratio, group, group.reduce((sum, { removedShare }) => sum + removedShare, 0) / group.length))
    ];
}

/** The paper's table, in Markdown: of each ratio the best of a column is bold. */
export function comparisonTable(comparison: Comparison): string {
    const rows = comparedRows(comparison);
    const percent = (share: number) => (100 * share).toFixed(1);
    const average = ({ tasks }: ComparedRow) => tasks.reduce((sum, { value }) => sum + value, 0) / tasks.length;
    const columns: { title: string; value: (row: ComparedRow) => number; text?: (row: ComparedRow) => string; lower?: boolean }[] = [
        { title: 'perplexity, calibration', value: (row) => row.calibration, text: (row) => row.calibration.toFixed(2), lower: true },
        ...(comparison.text === null ? [] : [
            { title: `perplexity, ${comparison.text.replaceAll('|', '/')}`, value: (row: ComparedRow) => row.text!.perplexity, text: (row: ComparedRow) => row.text!.perplexity.toFixed(2), lower: true },
            { title: 'KL divergence', value: (row: ComparedRow) => row.text!.divergence, text: (row: ComparedRow) => row.text!.divergence.toFixed(3), lower: true },
            { title: 'equal top-1', value: (row: ComparedRow) => row.text!.sameTop }
        ]),
        ...comparison.dense.tasks.map(({ task }, i) => ({
            title: task.replaceAll('|', '/'),
            value: (row: ComparedRow) => row.tasks[i]!.value,
            text: ({ tasks }: ComparedRow) => percent(tasks[i]!.value) + (tasks[i]!.stderr === null ? '' : ` ± ${percent(tasks[i]!.stderr)}`)
        })),
        ...(comparison.dense.tasks.length > 1 ? [{ title: 'average', value: average }] : [])
    ];
    const cell = (row: ComparedRow, { value, text = (row) => percent(value(row)), lower }: (typeof columns)[number]) => {
        const rivals = rows.filter(({ ratio }) => ratio === row.ratio).map(value);
        const best = lower ? Math.min(...rivals) : Math.max(...rivals);
        return row.ratio > 0 && rivals.length > 1 && value(row) === best ? `**${text(row)}**` : text(row);
    };
    return [
        ['ratio', 'removed', 'method', ...columns.map(({ title }) => title)],
        Array(3 + columns.length).fill('---'),
        ...rows.map((row) => [row.ratio === 0 ? '' : row.ratio, `${percent(row.removed)} %`, row.seeds > 1 ? `${row.method} (mean of ${row.seeds})` : row.method, ...columns.map((column) => cell(row, column))])
    ].map((cells) => `| ${cells.join(' | ')} |`).join('\n') + '\n';
}

/** The same as CSV, with scores and standard errors as shares. */
export function comparisonCsv(comparison: Comparison): string {
    const names = comparison.dense.tasks.map(({ task }) => task);
    return stringify([
        ['method', 'seeds', 'ratio', 'removed', 'calibration_perplexity', 'text_perplexity', 'text_kl_divergence', 'text_same_top', ...names.flatMap((name) => [name, `${name}_stderr`])],
        ...comparedRows(comparison).map(({ method, seeds, ratio, removed, calibration, text, tasks }) =>
            [method, seeds, ratio, removed, calibration, text?.perplexity, text?.divergence, text?.sameTop, ...tasks.flatMap(({ value, stderr }) => [value, stderr])])
    ]);
}
