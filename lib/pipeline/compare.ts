import crypto from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import { bare, type Block, type BlockSelection } from '../runtime/blocks.js';
import { loadCalibration, type Calibration, type CalibrationOptions } from '../calibration/calibration.js';
import { collapse, withCollapsed } from '../methods/collapse.js';
import { checkInteger, checkNumber } from '../check.js';
import { BlockprunerError, messageOf, MethodError, option } from '../errors.js';
import { measurePerplexity, perplexityOf, textSequences } from '../evaluation/perplexity.js';
import { PrefixEvaluator } from '../search/prefix.js';
import { scoreTasks } from '../evaluation/scores.js';
import type { Task } from '../evaluation/tasks.js';
import type { Host } from '../export/host.js';
import { chooseHost } from '../export/choose-host.js';
import { formatMerges } from '../export/write.js';
import { readGguf } from '../runtime/gguf.js';
import { Model, shareOf, type BlockInfo, type LoadOptions } from '../runtime/model.js';
import { resolveModel } from '../runtime/resolve.js';
import { checkWritable, isPartial, writeText } from '../output.js';
import { comparisonReport } from '../report/index.js';
import {
    comparedMethods,
    comparisonCsv,
    comparisonSchema,
    comparisonTable,
    type ComparedMethod,
    type ComparedModel,
    type Comparison,
    type Quality
} from '../report/results.js';
import { searchOrder, type SearchMode } from '../search/greedy.js';
import { describeSequences, differences, Journal, searchInputs } from '../search/journal.js';
import { isLaco, type LacoMethod } from '../methods/laco.js';
import { movesOf, type GreedyMethod } from '../methods/index.js';
import { checkConfidence, DEFAULT_CONFIDENCE } from '../search/race.js';
import { nameOf } from '../calibration/text.js';

/** How one of them searches for what to remove next. */
function searchOf(compared: Exclude<ComparedMethod, LacoMethod>): { method: GreedyMethod; selection: BlockSelection } {
    switch (compared) {
        case 'blockpruner-attn':
            return { method: 'blockpruner', selection: 'attn' };
        case 'blockpruner-ffn':
            return { method: 'blockpruner', selection: 'ffn' };
        default:
            return { method: compared, selection: 'all' };
    }
}

export interface CompareOptions extends Pick<LoadOptions, 'device' | 'gpuLayers' | 'threads'> {
    /**
     * The folder for report.html, table.md, table.csv and results.json, made if it isn't there; they are written anew after each result.
     * Journals of the searches are there too, and may be deleted when no higher ratio is to come.
     */
    output: string;
    /** Go on with the results in the folder. Default: false, which refuses a folder with anything in it. */
    resume?: boolean | undefined;
    /** With `resume`: measure all results anew, with other tasks or another text; the searches hold. Default: false, which refuses these. */
    remeasure?: boolean | undefined;
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

/**
 * Prunes a model by several methods at several ratios, and evaluates what is left, as the paper's tables 1 and 2 do. No model is
 * written: a pruned file computes what its skip set computes. A method's order is found once, for the highest ratio.
 *
 * Results are written as they come, and searches have journals, so that a run that was stopped can go on; a run with other
 * texts or tasks has the searches already.
 * @throws BlockprunerError for wrong arguments, before the long work
 */
export async function compare(uri: string, options: CompareOptions): Promise<Comparison> {
    const {
        output,
        resume = false,
        remeasure = false,
        seeds = 3,
        tasks = [],
        limit,
        text,
        textSamples,
        search = 'race',
        confidence = DEFAULT_CONFIDENCE,
        keepBytes,
        device,
        gpuLayers,
        threads,
        signal,
        onProgress
    } = options;
    const ratios = [...new Set(options.ratios)],
        chosen = [...new Set(options.methods ?? comparedMethods)];
    const started = performance.now();
    for (const ratio of ratios) {
        if (!(ratio > 0 && ratio < 1)) {
            throw new BlockprunerError('ARGUMENT', `a ratio must be above 0 and below 1, not ${ratio}`);
        }
    }
    const unknown = chosen.find((name) => !comparedMethods.includes(name));
    if (unknown !== undefined) {
        throw new BlockprunerError(
            'ARGUMENT',
            `there is no method '${unknown}': there are ${comparedMethods.join(', ')}`
        );
    }
    checkInteger('seeds', seeds, { least: 1 });
    checkInteger('limit', limit, { least: 1 });
    checkInteger('textSamples', textSamples, { least: 1 });
    checkNumber('keepBytes', keepBytes, { least: 0 });
    checkConfidence(confidence);
    const previous = await checkFolder(output, resume);
    const file = await resolveModel(uri, { signal });
    const gguf = await readGguf(file, signal);
    const host = await chooseHost(gguf, signal);
    const models = await Model.loadOnEach(file, { device, gpuLayers, threads, signal });
    const model = models[0]!;
    try {
        const blocks = await model.blocks(signal);
        const calibration = await loadCalibration(model, options.calibration, signal);
        const sequences =
            text === undefined
                ? undefined
                : await textSequences(model, text, {
                      samples: textSamples,
                      context: calibration.length,
                      field: options.calibration?.field,
                      signal
                  });
        const searchedWith = await searchInputs(model, calibration, search, confidence, signal);
        const evaluatedWith = {
            text: sequences ? describeSequences(sequences) : 'none',
            tasks:
                tasks.length === 0
                    ? 'none'
                    : `${tasks.map(({ name }) => name).join(', ')}, ${limit ?? 'all'} questions, SHA-256 ${crypto.createHash('sha256').update(JSON.stringify(tasks)).digest('hex')}`
        };
        const other = previous && differences(previous.searchedWith, searchedWith);
        if (other) {
            throw new BlockprunerError(
                'RESUME',
                `the results in ${output} are of searches with another ${other}: give the same, or another folder`
            );
        }
        const measured = previous && differences(previous.evaluatedWith, evaluatedWith);
        if (measured && !remeasure) {
            throw new BlockprunerError(
                'RESUME',
                `the results in ${output} were measured with different ${measured}: give the same, or measure all of them anew by ${option('remeasure', true)}`
            );
        }
        const known = measured ? undefined : previous;

        const evaluate = async (pruned: Model, skip: readonly Block[], calibrated?: number): Promise<Quality> => {
            const scores = await scoreTasks(pruned, tasks, { skip, limit, signal }); // first: a question that can't be scored is found soon
            const onText = sequences && (await measurePerplexity(pruned, sequences, { skip, dense: model, signal }));
            return {
                calibration: finite(calibrated ?? (await perplexityOf(pruned, calibration, { skip, signal }))),
                text: onText
                    ? {
                          perplexity: finite(onText.perplexity),
                          divergence: finite(onText.dense!.divergence),
                          sameTop: onText.dense!.sameTop
                      }
                    : null,
                tasks: scores
            };
        };

        fs.mkdirSync(output, { recursive: true });
        onProgress?.('the model as it is');
        const comparison: Comparison = {
            model: uri,
            calibration: {
                name: calibration.name,
                sequences: calibration.tokens.length / calibration.length,
                context: calibration.length
            },
            text: text === undefined ? null : nameOf(text),
            blocks: bare(blocks),
            searchedWith,
            evaluatedWith,
            dense: known?.dense ?? (await evaluate(model, [])),
            searches: previous?.searches ?? [],
            pruned: known?.pruned ?? [],
            seconds: 0
        };
        const save = async () => {
            comparison.seconds = (previous?.seconds ?? 0) + (performance.now() - started) / 1000;
            comparison.pruned.sort(
                (a, b) => a.ratio - b.ratio || comparedMethods.indexOf(a.method) - comparedMethods.indexOf(b.method)
            );
            const write = (name: string, content: string) =>
                writeText(path.join(output, name), content, { force: true });
            write('results.json', JSON.stringify(comparison, null, 1) + '\n');
            write('table.md', comparisonTable(comparison));
            write('table.csv', comparisonCsv(comparison));
            write('report.html', await comparisonReport(comparison));
        };
        await save();

        const run: Run = {
            models,
            blocks,
            host,
            calibration,
            ratios,
            search,
            confidence,
            keepBytes,
            output,
            comparison,
            save,
            evaluate,
            signal,
            onProgress
        };
        for (const method of chosen) {
            if (isLaco(method)) {
                await compareLaco(run, method);
            } else {
                for (const seed of method === 'random' ? Array.from({ length: seeds }, (_, i) => i) : [null]) {
                    await compareSearch(run, method, seed);
                }
            }
        }
        return comparison;
    } finally {
        models.forEach((copy) => copy.dispose());
    }
}

/** What the methods work with. */
interface Run
    extends
        Required<Pick<CompareOptions, 'output' | 'ratios' | 'search' | 'confidence'>>,
        Pick<CompareOptions, 'keepBytes' | 'signal' | 'onProgress'> {
    /** copies of one */
    models: readonly Model[];
    blocks: readonly BlockInfo[];
    host: Host;
    calibration: Calibration;
    /** what was found so far; save() writes it */
    comparison: Comparison;
    save: () => Promise<void>;
    /** @param calibrated the perplexity on the calibration text, if it is known */
    evaluate: (pruned: Model, skip: readonly Block[], calibrated?: number) => Promise<Quality>;
}

/** Each ratio has a search of its own, and a model with other weights. */
async function compareLaco(run: Run, method: LacoMethod): Promise<void> {
    const {
        models: [model],
        blocks,
        host,
        calibration,
        output,
        evaluate,
        signal,
        onProgress
    } = run;
    for (const ratio of missingRatios(run, method, null)) {
        onProgress?.(`${method} at ${ratio}`);
        const context = {
            method,
            host,
            blocks,
            calibration,
            folder: output,
            isEnough: (removed: readonly Block[]) => share(run, removed) >= ratio,
            signal
        };
        let found: Omit<ComparedModel, 'removedShare'>;
        try {
            const { removed, merges } = await collapse(model!, context);
            const quality = await withCollapsed(model!, context, { removed, merges }, (collapsed) =>
                evaluate(collapsed, [])
            );
            found = { method, seed: null, ratio, removed, merged: formatMerges(merges), ...quality };
        } catch (error) {
            // what it needs beside other methods, room and memory for a copy of the model, may not be there
            if (!(error instanceof BlockprunerError)) {
                throw error;
            }
            onProgress?.(error.message);
            continue;
        }
        await add(run, found);
    }
}

/** One search, whose first removals are those of lower ratios. */
async function compareSearch(
    run: Run,
    compared: Exclude<ComparedMethod, LacoMethod>,
    seed: number | null
): Promise<void> {
    const {
        models: [model],
        blocks,
        ratios,
        comparison,
        save,
        evaluate,
        onProgress
    } = run;
    const name = seed === null ? compared : `${compared}-${seed}`;
    const { selection } = searchOf(compared);
    const reachable = share(
        run,
        blocks.filter(({ kind }) => selection === 'all' || kind === selection)
    );
    const highest = Math.max(0, ...ratios.filter((ratio) => ratio < reachable));
    const isOurs = (one: { method: ComparedMethod; seed: number | null }) =>
        one.method === compared && one.seed === seed;
    let steps = highest === 0 ? [] : comparison.searches.find((one) => isOurs(one) && one.ratio >= highest)?.steps;
    if (!steps) {
        onProgress?.(`${name}: what goes`);
        steps = await findSteps(run, compared, seed, highest, name);
        comparison.searches = [
            ...comparison.searches.filter((one) => !isOurs(one)),
            { method: compared, seed, ratio: highest, steps }
        ];
        await save();
    }
    const removedAfter = (count: number) => steps.slice(0, count).flatMap(({ removed }) => removed);
    for (const ratio of missingRatios(run, compared, seed)) {
        const last = steps.findIndex((_, i) => share(run, removedAfter(i + 1)) >= ratio);
        if (last < 0) {
            onProgress?.(`${name} can't remove ${ratio}`);
            continue;
        }
        onProgress?.(`${name} at ${ratio}: perplexity and tasks`);
        const removed = removedAfter(last + 1);
        await add(run, {
            method: compared,
            seed,
            ratio,
            removed,
            ...(await evaluate(model!, removed, steps[last]!.perplexity))
        });
    }
}

/** What a method removes until a ratio is reached; it goes on where a search with the same inputs was stopped, or had enough. */
async function findSteps(
    run: Run,
    compared: Exclude<ComparedMethod, LacoMethod>,
    seed: number | null,
    ratio: number,
    name: string
): Promise<Comparison['searches'][number]['steps']> {
    const { models, host, blocks, calibration, search, confidence, keepBytes, output, comparison, signal, onProgress } =
        run;
    const { method, selection } = searchOf(compared);
    const moves = await movesOf(method, {
        model: models[0]!,
        host,
        blocks,
        calibration,
        selection,
        seed: seed ?? undefined,
        signal
    });
    const evaluator = await PrefixEvaluator.create(models, calibration, { keepBytes, signal });
    const journal = Journal.open(
        evaluator,
        path.join(output, `${name}.journal`),
        { ...comparison.searchedWith, method: name },
        true
    );
    const steps: Comparison['searches'][number]['steps'] = [];
    await searchOrder(journal, {
        onStep: ({ removed, perplexity, evaluations, seconds }) =>
            steps.push({ removed: [...removed], perplexity, evaluations, seconds }),
        mode: search,
        confidence,
        moves: (removed) => (share(run, removed) >= ratio ? [] : moves(removed))
    })
        .catch((error: unknown) => {
            if (!(error instanceof MethodError)) {
                throw error;
            }
            onProgress?.(`${name}: ${error.message}`); // lower ratios may be reached
        })
        .finally(() => {
            journal.close();
            evaluator.dispose();
        });
    return steps;
}

function missingRatios({ ratios, comparison }: Run, method: ComparedMethod, seed: number | null): number[] {
    return ratios.filter(
        (ratio) => !comparison.pruned.some((one) => one.method === method && one.seed === seed && one.ratio === ratio)
    );
}

async function add(run: Run, pruned: Omit<ComparedModel, 'removedShare'>): Promise<void> {
    const { method, seed, ratio, removed, ...rest } = pruned;
    run.comparison.pruned.push({ method, seed, ratio, removedShare: share(run, removed), removed, ...rest });
    await run.save();
}

function share({ blocks, models }: Run, removed: readonly Block[]): number {
    return shareOf(blocks, removed, models[0]!.parameters);
}

/** What overflowed in a broken model is as bad as can be. */
function finite(value: number): number {
    return Number.isNaN(value) ? Infinity : value;
}

/** The results that are in a folder. Nothing else may be there: it is ours, empty or new. */
async function checkFolder(folder: string, resume: boolean): Promise<Comparison | undefined> {
    if (folder === '') {
        throw new BlockprunerError('OUTPUT', 'the output has no name: give a folder');
    }
    let names: string[];
    try {
        names = fs.readdirSync(folder);
    } catch (error) {
        const { code } = error as NodeJS.ErrnoException;
        if (code !== 'ENOENT') {
            throw new BlockprunerError(
                'OUTPUT',
                `the output ${folder} ${code === 'ENOTDIR' ? 'is no folder' : `can't be read: ${messageOf(error)}`}`
            );
        }
        await checkWritable(path.dirname(path.resolve(folder)));
        return undefined;
    }
    await checkWritable(folder);
    if (names.length === 0) {
        return undefined;
    }
    const results = path.join(folder, 'results.json');
    if (!names.includes('results.json')) {
        throw new BlockprunerError('OUTPUT', `the folder ${folder} holds other files: choose another name`);
    }
    if (!resume) {
        throw new BlockprunerError(
            'RESUME',
            `the folder ${folder} isn't empty: go on with what is there by ${option('resume', true)}, or choose another name`
        );
    }
    let comparison: Comparison;
    try {
        comparison = comparisonSchema.parse(JSON.parse(fs.readFileSync(results, 'utf8')));
    } catch {
        throw new BlockprunerError(
            'INPUT',
            `${results} holds no results of a comparison by this version: choose another folder`
        );
    }
    names.filter(isPartial).forEach((name) => fs.rmSync(path.join(folder, name), { force: true })); // of a run that was killed
    return comparison;
}
