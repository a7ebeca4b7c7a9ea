import fs from 'node:fs';
import path from 'node:path';
import type { Device } from '../runtime/device.js';
import {
    bare,
    formatBlock,
    layersOf,
    sameBlock,
    without,
    type Block,
    type BlockSelection,
    type Move
} from '../runtime/blocks.js';
import { collapse, withCollapsed } from '../methods/collapse.js';
import { loadCalibration, type Calibration, type CalibrationOptions } from '../calibration/calibration.js';
import { checkInteger, checkNumber } from '../check.js';
import { BlockprunerError, option } from '../errors.js';
import { meanNll, perplexityOf } from '../evaluation/perplexity.js';
import { PrefixEvaluator } from '../search/prefix.js';
import { scoreTasks, type TaskOptions } from '../evaluation/scores.js';
import type { Task } from '../evaluation/tasks.js';
import { architectureOf, type Host } from '../export/host.js';
import { chooseHost } from '../export/choose-host.js';
import { stockNll, stockSpeed } from '../stock/stock.js';
import { formatMerges, writePruned, type Merges } from '../export/write.js';
import { countParameters, readGguf } from '../runtime/gguf.js';
import { Model, shareOf, type BlockInfo, type LoadOptions } from '../runtime/model.js';
import { resolveModel } from '../runtime/resolve.js';
import { checkOutput, writeText } from '../output.js';
import { pruneReport } from '../report/index.js';
import type { PruneResult } from '../report/results.js';
import { searchOrder, type SearchMode, type Step } from '../search/greedy.js';
import { Journal, searchInputs } from '../search/journal.js';
import { isLaco, type LacoMethod } from '../methods/laco.js';
import { checkMethod, checkSelection, movesOf, possibleMoves, removesLayers, type Method } from '../methods/index.js';
import { formatOrder } from '../search/order.js';
import { checkConfidence, DEFAULT_CONFIDENCE } from '../search/race.js';

/** What is being worked on: for progress bars. `done` and `total` are in the unit of the phase. */
export type Phase = 'download' | 'load' | 'calibrate' | 'score' | 'search' | 'write' | 'verify' | 'speed';

export interface CommonOptions {
    /** The pruned GGUF to write. */
    output: string;
    /** Replace an existing file. Default: false. */
    force?: boolean | undefined;
    /** Load the result in the stock runtime and compare its perplexity. Default: true. */
    verify?: boolean | undefined;
    calibration?: CalibrationOptions | undefined;
    /** Where to compute. Default: `auto`, the first GPU found, else the CPU. */
    device?: Device | 'auto' | undefined;
    gpuLayers?: number | undefined;
    threads?: number | undefined;
    onProgress?: ((phase: Phase, done: number, total: number) => void) | undefined;
    /** Stops the work within about a second; the promise is rejected with the signal's reason, and no output is left. */
    signal?: AbortSignal | undefined;
}

export interface PruneOptions extends CommonOptions {
    /** Which blocks may go. Default: `all`. */
    blocks?: BlockSelection | undefined;
    /** Exactly one of these three says when to stop. So many blocks are removed … */
    remove?: number | undefined;
    /** … or the fewest that are this share of all parameters, 0 … 1 … */
    ratio?: number | undefined;
    /** … or as many as leave the perplexity at most this share above the dense model's: 0.1 is 10 %. */
    maxIncrease?: number | undefined;
    /**
     * Write the order of removal there after each removal, so that a search that is stopped is not lost; the format is
     * that of the paper's repository.
     */
    orderFile?: string | undefined;
    /**
     * Write an HTML page there that shows what came of it, see {@link pruneReport}. For it, the speed of both files is measured in
     * the stock runtime.
     */
    report?: string | undefined;
    /** Score the model on these, as it is and pruned; {@link loadTask} reads them. */
    tasks?: readonly Task[] | undefined;
    /** The first so many questions of each task. Default: all. */
    limit?: number | undefined;
    /** How it is decided what goes; see {@link Method}. Default: `blockpruner`. */
    method?: Method | undefined;
    /** Of the method `random`. Default: 0. */
    methodSeed?: number | undefined;
    /** How candidates are compared: `race` (the default) or `exact`; `full` is for measuring these two. */
    search?: SearchMode | undefined;
    /** `race`: the probability that a removal is the one that `exact` makes. Default: 0.999. */
    confidence?: number | undefined;
    /** Memory on each device for the residual stream that candidates start from, in bytes. Default: 2 GiB. */
    keepBytes?: number | undefined;
    /**
     * Every evaluation is written into a journal beside the output ({@link journalOf}), which goes when the output is
     * there. true: go on where a run with the same inputs was stopped; false: begin anew. Default: refuse if there is one.
     */
    resume?: boolean | undefined;
    onStart?: ((start: SearchStart) => void) | undefined;
    onStep?: ((step: Step, number: number, dense: number) => void) | undefined;
}

/** What a search begins with. */
export interface SearchStart {
    /** perplexity of the model as it is */
    dense: number;
    candidates: number;
    /** the number of boundaries of a sequence that there is room to keep the residual stream at, and the bytes kept now */
    kept: { boundaries: number; bytes: number };
    /** evaluations that a resumed journal had */
    resumed: number;
}

export interface ApplyOptions extends CommonOptions {
    /** The blocks to remove, for instance from {@link readOrder}. */
    order: readonly Block[];
}

/** How the speed is measured: a prompt of so many tokens, then as many generated; so often. */
const SPEED_TOKENS = 128,
    SPEED_ROUNDS = 3;

/** The stock runtime hands over every logit, about 0.3 µs each: of longer texts, evenly spread positions are compared. */
const VERIFIED_LOGITS = 2 ** 25;

/** The journal of the search for an output. */
export function journalOf(output: string): string {
    return `${output}.journal`;
}

/**
 * Prunes a model by BlockPruner's search and writes it as a GGUF that an unmodified llama.cpp loads.
 * @param model a path, or a URI that node-llama-cpp's resolver takes
 * @throws BlockprunerError for wrong arguments, unsupported models, no room; before the search wherever possible
 */
export async function prune(model: string, options: PruneOptions): Promise<PruneResult> {
    const {
        remove,
        ratio,
        maxIncrease,
        method = 'blockpruner',
        methodSeed,
        blocks: selection = 'all',
        orderFile,
        report,
        tasks = [],
        limit,
        search = 'race',
        confidence = DEFAULT_CONFIDENCE,
        resume,
        signal,
        onProgress
    } = options;
    if ([remove, ratio, maxIncrease].filter((value) => value !== undefined).length !== 1) {
        throw new BlockprunerError(
            'ARGUMENT',
            'say how much to remove: one of remove (blocks), ratio (of the parameters) or maxIncrease (of the perplexity)'
        );
    }
    checkInteger('remove', remove, { least: 1 });
    checkNumber('ratio', ratio, { least: 0, most: 1 });
    if (ratio === 0) {
        throw new BlockprunerError('ARGUMENT', 'ratio must be above 0: nothing would be removed');
    }
    checkMethod(method);
    if (isLaco(method) && (maxIncrease !== undefined || orderFile !== undefined)) {
        throw new BlockprunerError(
            'ARGUMENT',
            `${method} merges layers${orderFile !== undefined ? ", which an order file can't tell: leave out orderFile" : ' until enough are gone: say how much to remove by remove or ratio'}`
        );
    }
    checkInteger('methodSeed', methodSeed, { least: 0, most: 2 ** 32 - 1 });
    checkNumber('maxIncrease', maxIncrease, { least: 0 });
    checkConfidence(confidence);
    checkNumber('keepBytes', options.keepBytes, { least: 0 });
    checkInteger('limit', limit, { least: 1 });

    const journalFile = journalOf(options.output);
    const files = [
        ['order file', orderFile],
        ['report', report],
        ['output', options.output],
        ['journal', journalFile]
    ] as const;
    for (const [i, [what, name]] of files.entries()) {
        const same = files
            .slice(i + 1)
            .find(
                ([, other]) => name !== undefined && other !== undefined && path.resolve(name) === path.resolve(other)
            );
        if (same) {
            throw new BlockprunerError('ARGUMENT', `the ${what} and the ${same[0]} are both ${name}: choose two names`);
        }
    }

    if (resume === true && isLaco(method) && fs.existsSync(journalFile)) {
        throw new BlockprunerError(
            'RESUME',
            `${journalFile} is the journal of a search by another method: ${method} has none; begin anew with ${option('resume', false)}, or choose another output`
        );
    }
    if (resume === undefined && fs.existsSync(journalFile)) {
        throw new BlockprunerError(
            'RESUME',
            `${journalFile} is the journal of a search that was stopped: go on with it by ${option('resume', true)}, or begin anew with ${option('resume', false)}`
        );
    }

    const result = await withModel(
        model,
        options,
        (file, load) => Model.loadOnEach(file, load),
        async (models, blocks, host, calibration) => {
            const loaded = models[0]!;
            if (orderFile !== undefined) {
                // of a search that goes on, it is there already
                await checkOutput(
                    orderFile,
                    loaded.gguf,
                    options.force === true || (resume === true && fs.existsSync(journalFile)),
                    'order file'
                );
            }
            if (report !== undefined) {
                await checkOutput(report, loaded.gguf, options.force, 'report');
            }
            if (isLaco(method)) {
                return decideByLaco(loaded, blocks, host, calibration, { ...options, method });
            }
            await checkOutput(journalFile, loaded.gguf, true, 'journal');
            const possible = possibleMoves(method, { host, blocks, selection });
            const first = possible([]);
            const which = `${selection === 'all' ? '' : `${selection} `}blocks`;
            if (first.length === 0) {
                throw new BlockprunerError(
                    'UNSUPPORTED',
                    `no ${which} of this model can go: it is written as ${host.name}, ${host.reason}`
                );
            }
            const candidates = blocks.filter((block) => selection === 'all' || block.kind === selection);
            const most = mostRemovable(possible);
            const share = (removed: readonly Block[]) => shareOf(blocks, removed, loaded.parameters);
            if (remove !== undefined && remove > most) {
                throw new BlockprunerError(
                    'ARGUMENT',
                    `can't remove ${remove} blocks: at most ${most} of this model's ${candidates.length} ${which} can go`
                );
            }
            const atOnce = first[0]!.length;
            if (remove !== undefined && remove % atOnce !== 0 && first.every(({ length }) => length === atOnce)) {
                throw new BlockprunerError(
                    'ARGUMENT',
                    `can't remove ${remove} blocks: from this model they go ${atOnce} at a time (${removesLayers(method) ? `${method} removes whole layers` : host.reason})`
                );
            }
            const largest = candidates
                .map(({ parameters }) => parameters)
                .sort((a, b) => b - a)
                .slice(0, candidates.length - most);
            const reachable =
                (sum(candidates) - largest.reduce((total, parameters) => total + parameters, 0)) / loaded.parameters;
            if (ratio !== undefined && ratio > reachable) {
                throw new BlockprunerError(
                    'ARGUMENT',
                    `can't remove ${percent(ratio)} of the parameters: without its ${which} the model still has ${percent(1 - reachable)}`
                );
            }
            const expected = Math.min(
                most,
                remove ??
                    (ratio !== undefined
                        ? Math.ceil(ratio / (sum(candidates) / candidates.length / loaded.parameters))
                        : most)
            );
            const total = Math.ceil(expected / atOnce);

            const movesFrom = await movesOf(method, {
                model: loaded,
                host,
                blocks,
                calibration,
                selection,
                seed: methodSeed,
                signal
            });
            const scoring = scoringOf(options);
            const denseScores = await scoreTasks(loaded, tasks, scoring); // first: a task that can't be scored is found before the long work

            const prefix = await PrefixEvaluator.create(models, calibration, { keepBytes: options.keepBytes, signal });
            const journal = Journal.open(
                prefix,
                journalFile,
                {
                    ...(await searchInputs(loaded, calibration, search, confidence, signal)),
                    blocks: selection,
                    method: method === 'random' ? `random ${methodSeed ?? 0}` : method
                },
                resume ?? false
            );
            const resumed = journal.found;

            let dense = NaN;
            const order: Block[] = [];
            const { steps, nll } = await searchOrder(journal, {
                mode: search,
                confidence,
                moves: (removed) =>
                    ratio !== undefined && share(removed) >= ratio
                        ? []
                        : movesFrom(removed, (remove ?? Infinity) - removed.length),
                ...(maxIncrease !== undefined && { limit: (value: number) => value * (1 + maxIncrease) }),
                onStart: (value) => {
                    dense = value;
                    options.onStart?.({
                        dense,
                        candidates: movesFrom([]).length,
                        resumed,
                        kept: {
                            boundaries: Math.min(prefix.room, blocks.length - 1),
                            bytes: prefix.work.reduce((total, { keptBytes }) => total + keptBytes, 0)
                        }
                    });
                    onProgress?.('search', 0, total);
                },
                onEvaluation: (step, decided, of) => onProgress?.('search', step - 1 + decided / of, total),
                onStep(step, number) {
                    order.push(...step.removed);
                    if (orderFile !== undefined) {
                        writeText(orderFile, formatOrder(order), { force: true, what: 'order file' });
                    }
                    options.onStep?.(step, number, dense);
                }
            }).finally(() => {
                journal.close();
                prefix.dispose();
            });
            if (steps.length === 0 && maxIncrease !== undefined) {
                throw new BlockprunerError(
                    'ARGUMENT',
                    `no block can go: each raises the perplexity by more than ${percent(maxIncrease)}`
                );
            }
            if (remove !== undefined && order.length < remove) {
                throw new BlockprunerError(
                    'ARGUMENT',
                    `can't remove ${remove} blocks: after ${order.length}, all that can go is more than ${remove - order.length} at once`
                );
            }
            if (ratio !== undefined && share(order) < ratio) {
                throw new BlockprunerError(
                    'ARGUMENT',
                    `can't remove ${percent(ratio)} of the parameters: after ${percent(share(order))} nothing more can go`
                );
            }
            return {
                dense,
                method,
                removed: [...order],
                steps,
                nll: concatenate(nll),
                tasks: { dense: denseScores, pruned: await scoreTasks(loaded, tasks, { ...scoring, skip: order }) }
            };
        }
    );
    if (report !== undefined) {
        writeText(report, await pruneReport(result), { force: options.force, what: 'report' });
    }
    fs.rmSync(journalFile, { force: true });
    return result;
}

async function decideByLaco(
    model: Model,
    blocks: BlockInfo[],
    host: Host,
    calibration: Calibration,
    options: PruneOptions & { method: LacoMethod }
): Promise<Decision> {
    const { method, blocks: selection = 'all', remove, ratio, output, tasks = [], signal, onProgress } = options;
    const scoring = scoringOf(options);
    checkSelection(method, selection);
    const ofLayer = layersOf(blocks)[0]!.length;
    if (remove !== undefined && remove % ofLayer !== 0) {
        throw new BlockprunerError(
            'ARGUMENT',
            `can't remove ${remove} blocks: ${method} removes whole layers, ${ofLayer} at a time`
        );
    }
    const denseScores = await scoreTasks(model, tasks, scoring);
    const dense = await perplexityOf(model, calibration, { signal });
    const context = {
        method,
        host,
        blocks,
        calibration,
        signal,
        folder: path.dirname(path.resolve(output)),
        isEnough: (removed: readonly Block[]) =>
            remove !== undefined ? removed.length >= remove : shareOf(blocks, removed, model.parameters) >= ratio!,
        onProgress: (done: number, total: number) => onProgress?.('search', done, total)
    };
    const { removed, merges } = await collapse(model, context);
    const [nll, scores] = await withCollapsed(
        model,
        context,
        { removed, merges },
        async (collapsed) =>
            [await collapsed.evaluate(calibration, { signal }), await scoreTasks(collapsed, tasks, scoring)] as const
    );
    return { dense, method, removed, merges, steps: [], nll, tasks: { dense: denseScores, pruned: scores } };
}

function scoringOf({ limit, signal, onProgress }: PruneOptions): TaskOptions {
    return { limit, signal, onProgress: (done, total) => onProgress?.('score', done, total) };
}

/** Removes given blocks, without a search, and writes the result as {@link prune} does. */
export async function apply(model: string, options: ApplyOptions): Promise<PruneResult> {
    return withModel(
        model,
        options,
        async (file, load) => [await Model.load(file, load)],
        async ([loaded], blocks, host, calibration) => {
            const unknown = options.order.find((block) => !blocks.some((other) => sameBlock(other, block)));
            if (unknown) {
                throw new BlockprunerError(
                    'ARGUMENT',
                    `the order doesn't fit this model: it has no block ${formatBlock(unknown)}, its layers are 0 to ${loaded!.layers - 1}`
                );
            }
            if (options.order.length >= blocks.length) {
                throw new BlockprunerError('ARGUMENT', `can't remove all ${blocks.length} blocks: one must stay`);
            }
            host.plan(without(blocks, options.order)); // before the long work
            const { signal, onProgress } = options;
            const dense = await perplexityOf(loaded!, calibration, {
                signal,
                onProgress: (done, total) => onProgress?.('search', done, total)
            });
            return {
                dense,
                method: null,
                removed: [...options.order],
                steps: [],
                tasks: { dense: [], pruned: [] },
                nll: await loaded!.evaluate(calibration, { skip: options.order, signal })
            };
        }
    );
}

/** Which blocks go, the perplexity with all of them, and the NLL of each token of the calibration without them. */
type Decision = Pick<PruneResult, 'method' | 'removed' | 'steps' | 'tasks'> & {
    dense: number;
    nll: Float32Array;
    merges?: Merges;
};

/** What prune and apply share: everything but the decision which blocks go. */
async function withModel(
    uri: string,
    options: CommonOptions & Pick<PruneOptions, 'report'>,
    load: (file: string, options: LoadOptions) => Promise<Model[]>,
    decide: (copies: Model[], blocks: BlockInfo[], host: Host, calibration: Calibration) => Promise<Decision>
): Promise<PruneResult> {
    const started = performance.now();
    const { output, force, verify = true, signal, onProgress } = options;
    const file = await resolveModel(uri, {
        signal,
        onProgress: (done, total) => onProgress?.('download', done, total)
    });
    const gguf = await readGguf(file, signal);
    await checkOutput(output, gguf, force);
    const host = await chooseHost(gguf, signal);
    const models = await load(file, { ...options, onProgress: (done, total) => onProgress?.('load', done, total) });
    const model = models[0]!;
    const { device, gpuLayers, threads, flashAttention, parameters } = model;
    let calibration: Calibration, blocks: BlockInfo[], decision: Decision, stride: number;
    try {
        onProgress?.('calibrate', 0, 1);
        blocks = await model.blocks(signal);
        calibration = await loadCalibration(model, options.calibration, signal);
        decision = await decide(models, blocks, host, calibration);
        stride = Math.ceil((decision.nll.length * model.vocabulary) / VERIFIED_LOGITS);
    } finally {
        models.forEach((copy) => copy.dispose()); // before the stock runtime loads its copy
    }

    const { method, removed, merges, steps, tasks, dense, nll } = decision;
    const pruned = Math.exp(meanNll(nll, calibration.length));
    const provenance = {
        removed,
        merges,
        calibration: {
            name: calibration.name,
            sequences: calibration.tokens.length / calibration.length,
            context: calibration.length
        },
        perplexity: { dense, pruned }
    };
    const stock = { device, gpuLayers, threads, flashAttention, signal };
    let speed: PruneResult['speed'] = null;
    await writePruned(model.gguf, host, blocks, provenance, output, {
        force,
        signal,
        onProgress: (done, total) => onProgress?.('write', done, total),
        verify: async (written: string) => {
            if (verify) {
                const values = await stockNll(written, calibration, {
                    ...stock,
                    stride,
                    onProgress: (done, total) => onProgress?.('verify', done, total)
                });
                const expected = nll.filter((_, position) => position % stride === 0);
                const [found, searched] = [values, expected].map((all) => Math.exp(meanNll(all, all.length + 1))) as [
                    number,
                    number
                ];
                if (!(Math.abs(found / searched - 1) <= host.tolerance)) {
                    throw new BlockprunerError(
                        'VERIFICATION',
                        `verification failed: the written file has perplexity ${found} in the stock runtime, the search found ${searched}; no file was kept`
                    );
                }
            }
            if (options.report !== undefined) {
                speed = { device, threads, tokens: SPEED_TOKENS, dense: [], pruned: [] };
                for (let round = 0; round < SPEED_ROUNDS; round++) {
                    // in turns: what else the computer does slows both down
                    onProgress?.('speed', round, SPEED_ROUNDS);
                    speed.dense.push(await stockSpeed(gguf.files[0]!, SPEED_TOKENS, stock));
                    speed.pruned.push(await stockSpeed(written, SPEED_TOKENS, stock));
                }
            }
        }
    });

    const written = await readGguf(output); // no signal: the file is there
    return {
        model: uri,
        output,
        architecture: architectureOf(gguf),
        host: host.name,
        method,
        blocks,
        removed,
        steps,
        ...(merges && { merged: formatMerges(merges) }),
        calibration: provenance.calibration,
        perplexity: provenance.perplexity,
        parameters: { dense: parameters, pruned: countParameters(written) },
        bytes: { dense: gguf.bytes, pruned: written.bytes },
        tasks,
        speed,
        seconds: (performance.now() - started) / 1000
    };
}

export interface Inspection {
    architecture: string;
    /** The architecture that a pruned model is written as; null where there is none. */
    host: string | null;
    /** Why, and what can go. */
    reason: string;
    /** The blocks that can go first, each with those that must go with it. */
    moves: Move[];
    layers: number;
    blocks: BlockInfo[];
}

/** What a model consists of and how it can be pruned. */
export async function inspect(
    model: string,
    options: Pick<CommonOptions, 'signal' | 'onProgress'> = {}
): Promise<Inspection> {
    const { signal, onProgress } = options;
    const file = await resolveModel(model, {
        signal,
        onProgress: (done, total) => onProgress?.('download', done, total)
    });
    const loaded = await Model.load(file, {
        device: 'cpu',
        headerOnly: true,
        signal,
        onProgress: (done, total) => onProgress?.('load', done, total)
    });
    try {
        const blocks = await loaded.blocks(signal);
        let host: Host | undefined, reason: string;
        try {
            host = await chooseHost(loaded.gguf, signal);
            ({ reason } = host);
        } catch (error) {
            if (!(error instanceof BlockprunerError)) {
                throw error;
            }
            reason = error.message;
        }
        return {
            architecture: loaded.architecture,
            host: host?.name ?? null,
            reason,
            moves: (host?.moves(blocks) ?? []).map(bare),
            layers: loaded.layers,
            blocks
        };
    } finally {
        loaded.dispose();
    }
}

/** How many blocks can go, always by the first move that there is. */
function mostRemovable(movesFrom: (removed: readonly Block[]) => readonly Move[]): number {
    const removed: Block[] = [];
    for (let move; (move = movesFrom(removed)[0]);) {
        removed.push(...move);
    }
    return removed.length;
}

function concatenate(parts: readonly Float32Array[]): Float32Array {
    const whole = new Float32Array(parts.reduce((total, { length }) => total + length, 0));
    let end = 0;
    for (const part of parts) {
        whole.set(part, end);
        end += part.length;
    }
    return whole;
}

function sum(blocks: readonly BlockInfo[]): number {
    return blocks.reduce((total, block) => total + block.parameters, 0);
}

function percent(share: number): string {
    return `${(100 * share).toFixed(1)} %`;
}
