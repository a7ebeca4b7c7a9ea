import fs from 'node:fs';
import path from 'node:path';
import { checkInteger, checkNumber, checkOneOf } from '../check.js';
import { tryCluster } from '../cluster/fleet.js';
import { BlockprunerError, messageOf, option } from '../errors.js';
import { checkTaskOptions, scoreTasks } from '../evaluation/scores.js';
import type { Task } from '../evaluation/tasks.js';
import { formatPercent } from '../format.js';
import { methodOf, type Method } from '../methods/index.js';
import {
    type Decision,
    gapText,
    type Goal,
    type LinearGaps,
    type MethodContext,
    type PruningMethod,
    removedShare,
    worths,
    type SearchStart,
    type Worth
} from '../methods/method.js';
import { architectureOf } from '../export/host.js';
import { checkRoom } from '../export/write.js';
import { checkNames, checkOutput, writeText } from '../output.js';
import { LiveReport } from '../report/live-report.js';
import { modelCard } from '../report/model-card.js';
import { pruneReport } from '../report/prune-report.js';
import { forgetMatrices } from '../repair/journal.js';
import type { PruneResult } from '../report/prune-result.js';
import { isUnfinishedReport } from '../report/search-report.js';
import { paperName, type BlockSelection } from '../runtime/blocks.js';
import type { KeepOptions } from '../runtime/kept-streams.js';
import type { Model } from '../runtime/model.js';
import { movesAfter, type Step } from '../search/greedy.js';
import { formatOrder } from '../search/order.js';
import { PrefixEvaluator } from '../search/prefix.js';
import { isolated } from './isolated.js';
import { withLock } from './lock.js';
import { deliver, measure, scoringOptions, type DeliverOptions } from './deliver.js';
import {
    checkCopies,
    checkGain,
    checkQuantization,
    checkQuantizeOptions,
    searchTypes,
    useCopies,
    type SearchType
} from './quantize.js';
import { checkRepairOptions, planRepair, repair, repairInputs, repairJournalOf, type RepairOptions } from './repair.js';
import {
    checkSearchChoice,
    checkSessionOptions,
    findModel,
    Session,
    type SearchChoice,
    type SessionOptions,
    type Source
} from './session.js';

export interface PruneOptions extends DeliverOptions, SessionOptions, SearchChoice, RepairOptions {
    /** Which blocks may go. Default: `all`. */
    blocks?: BlockSelection | undefined;
    /** Remove so many blocks. Exactly one of `remove`, `ratio` and `maxIncrease` says when to stop. */
    remove?: number | undefined;
    /** Remove the fewest blocks that have this share of all parameters, 0 … 1, less what a repair puts in. */
    ratio?: number | undefined;
    /** Remove as many blocks as leave the perplexity at most this share above the dense model's: 0.1 is 10 %. */
    maxIncrease?: number | undefined;
    /**
     * Write the order of removal there after each removal, in the format of the paper's repository, so that what was
     * found is there when a search is stopped.
     */
    orderFile?: string | undefined;
    /**
     * Write an HTML page there that shows what came of it, see {@link pruneReport}. For it, the speed of both files is
     * measured in the stock runtime. After each removal, it shows what the search has found so far.
     */
    report?: string | undefined;
    /**
     * The page of `report` reads itself again while the search goes on, so that it can be watched in a browser, without
     * a server. Default: false.
     */
    watch?: boolean | undefined;
    /** Write a model card there, in Markdown, for who gets the file; see {@link modelCard}. */
    card?: string | undefined;
    /** Score the model on these tasks, as it is and pruned; {@link loadTask} reads them. */
    tasks?: readonly Task[] | undefined;
    /** How many questions of each task are scored, from the first one on. Default: all. */
    limit?: number | undefined;
    /** How it is decided what goes; see {@link Method}. Default: `balanced`. */
    method?: Method | undefined;
    /**
     * What the rise of the NLL is counted by when candidates are compared: by the `removal`, as in the paper, or by the
     * `parameters`, `bytes` or `milliseconds` that go with it, the last measured on the device, so that they are not
     * the same in another run. Default: the method's own, `parameters` for `balanced`, else `removal`.
     */
    per?: Worth | undefined;
    /**
     * Compare candidates in a copy of the model in this type, which the device may compute faster: on a CPU, `Q8_0` of
     * most others; on a GPU, `F16` of quantized ones. It is beside the output for that time, and in memory beside the
     * model. What is removed, and by `maxIncrease` how much, is decided by the copy; all else is of the model. Default:
     * the model itself.
     */
    searchType?: SearchType | undefined;
    /**
     * How often each removal is looked at again at the end of the search: whether another one would now be better in
     * its place. Default: 0.
     */
    swaps?: number | undefined;
    /** For the method `random`: another number gives another order. Default: 0. */
    methodSeed?: number | undefined;
    /**
     * Every evaluation is written into a journal beside the output ({@link journalOf}), which is deleted when the
     * output is there; a repair keeps what it has found in a folder there ({@link repairJournalOf}). true: go on where
     * a run with the same inputs was stopped; false: begin anew. Default: refuse if there is one.
     */
    resume?: boolean | undefined;
    onStart?: ((start: SearchStart) => void) | undefined;
    /** Is told each removal, its number from 1, and the perplexity of the dense model, both in the `searchType`. */
    onStep?: ((step: Step, number: number, dense: number) => void) | undefined;
}

/** The file in which the search for an output writes down its evaluations. */
export function journalOf(output: string): string {
    return `${output}.journal`;
}

/**
 * Prunes a model and writes it as a GGUF that an unmodified llama.cpp loads.
 * @param model a path, or a URI that node-llama-cpp's resolver takes
 * @throws BlockprunerError for wrong arguments, unsupported models, no room; before the search wherever possible
 */
export async function prune(model: string, options: PruneOptions): Promise<PruneResult> {
    if (options.isolate) {
        return isolated('prune', model, options);
    }
    const { method, goal } = checkOptions(options);
    if (options.cluster) {
        await tryCluster(options.cluster);
    }
    const source = await findModel(model, options);
    await checkOutputs(source, options);
    return withLock(options.output, async () => {
        checkJournal(method, options);
        if (options.searchType !== undefined) {
            // now there are no copies left of runs that were killed
            await checkCopies(source.gguf, options.searchType, options.output);
        }
        if (options.resume === false) {
            await forgetMatrices(repairJournalOf(options.output));
        }
        const { report, card, output, force } = options;
        const live = report === undefined ? undefined : new LiveReport(report, mayReplaceReport(options));
        try {
            const result = await pruneSource(source, method, goal, live, options);
            await live?.end();
            live?.write(await pruneReport(result));
            if (card !== undefined) {
                writeText(card, modelCard(result, source.gguf.metadata), { force, what: 'model card' });
            }
            fs.rmSync(journalOf(output), { force: true });
            await forgetMatrices(repairJournalOf(output));
            return result;
        } catch (error) {
            await live?.stop(options.signal?.aborted ? undefined : messageOf(error));
            throw error;
        }
    });
}

async function pruneSource(
    source: Source,
    method: PruningMethod<Method>,
    goal: Goal,
    live: LiveReport | undefined,
    options: PruneOptions
): Promise<PruneResult> {
    const [started, began] = [performance.now(), Date.now()];
    const { output, signal, onProgress } = options;
    const session = await Session.open(source, options);
    const scoring = scoringOptions({ limit: options.limit, signal, onProgress });
    const score = (model: Model) => scoreTasks(model, options.tasks ?? [], scoring);
    let repaired, fitted, measured, searched;
    try {
        method.check(methodContext(session, method, undefined, options), goal);
        if (options.searchType !== undefined) {
            checkGain(session, options.searchType);
        }
        await checkLeastRoom(session, output, goal);
        // These scores come first, so that a task that can't be scored is found before the long work.
        const denseScores = await score(session.model);
        const plan = await planRepair(session, { ...options, merges: !method.stepwise });
        const linear = plan.kind === 'none' ? undefined : plan.linear;
        fitted = plan.kind === 'none' ? undefined : plan.text;
        const context = methodContext(session, method, linear, options, (steps, dense) => {
            const removed = movesAfter(steps).flat();
            const { parameters } = session;
            const linearGaps = gapText(method, linear) !== undefined;
            const gone = removedShare({ ...context, linear: linearGaps ? linear : undefined }, removed);
            live?.show({
                ...{ model: source.model, output, method: method.name, goal, began, changed: Date.now() },
                ...{ architecture: architectureOf(session.gguf), host: session.host.name, blocks: [...session.blocks] },
                ...{ removed, steps: [...steps], linearGaps },
                calibration: session.calibrationInfo,
                ...soFar(dense, steps.at(-1)?.perplexity ?? dense, options.searchType),
                parameters: { dense: parameters, pruned: parameters * (1 - gone) },
                repair: { kind: 'none', reason: 'the search is not at its end' },
                ...{ stopped: false, watched: options.watch ?? false }
            });
        });
        const { decision, searched: found } = await decide(session, method, context, goal, options);
        searched = found;
        checkReached(context, goal, decision);
        const places = { folder: path.dirname(output), journal: repairJournalOf(output) };
        repaired = await repair(session, decision, plan, places, options);
        // Where the model is quantized, what is scored is the model in that type.
        const tasks = options.type === undefined ? options.tasks : [];
        measured = await measure(session, repaired.decision, {
            ...{ tasks, limit: options.limit, denseScores, signal, onProgress },
            folder: path.dirname(output)
        });
    } finally {
        session.dispose();
    }
    const decided = { uri: source.model, method: method.name, ...repaired, searched, fitted, measured, score, started };
    return deliver(session, decided, { ...options, speed: options.report !== undefined });
}

/** The perplexities that a search has found so far, of the model or of its copies. */
function soFar(
    dense: number,
    pruned: number,
    type: SearchType | undefined
): Pick<PruneResult, 'perplexity' | 'searched'> {
    const perplexity = { dense, pruned };
    return { perplexity, searched: type === undefined ? null : { type, perplexity } };
}

/**
 * Lets a method decide, by the model or by copies of it in another type. What those gave is no figure of the model.
 * @returns `searched`: the type of the copies, and the perplexities in them
 */
async function decide(
    session: Session,
    method: PruningMethod,
    context: MethodContext,
    goal: Goal,
    { searchType: type, output, signal, onProgress, onNotice }: PruneOptions
): Promise<{ decision: Decision; searched: PruneResult['searched'] }> {
    if (type === undefined) {
        return { decision: await method.decide(context, goal), searched: null };
    }
    const search = async (copies: readonly Model[]) => {
        const evaluator = (keeping: KeepOptions) => PrefixEvaluator.create(copies, session.calibration, keeping);
        const found = await method.decide({ ...context, evaluator }, goal);
        const { searched } = soFar(found.dense!, found.steps.at(-1)?.perplexity ?? found.dense!, type);
        return { decision: { ...found, dense: undefined, nll: undefined }, searched };
    };
    return useCopies(session, type, path.dirname(output), search, { signal, onProgress, onNotice });
}

/** @throws BlockprunerError if arguments are wrong, or contradict each other */
function checkOptions(options: PruneOptions): { method: PruningMethod<Method>; goal: Goal } {
    const { remove, ratio, maxIncrease, orderFile, searchType } = options;
    const given = [remove, ratio, maxIncrease].filter((value) => value !== undefined).length;
    if (given !== 1) {
        const names = [option('remove'), option('ratio'), option('maxIncrease')] as const;
        throw new BlockprunerError(
            'ARGUMENT',
            given === 0
                ? `say how much to remove: ${names[0]} N, ${names[1]} R or ${names[2]} X`
                : `give only one of ${names[0]}, ${names[1]} and ${names[2]}`
        );
    }
    checkInteger('remove', remove, { least: 1 });
    checkNumber('ratio', ratio, { least: 0, most: 1 });
    if (ratio === 0) {
        throw new BlockprunerError('ARGUMENT', 'ratio must be above 0: nothing would be removed');
    }
    checkNumber('maxIncrease', maxIncrease, { least: 0 });
    const method = methodOf(options.method ?? 'balanced');
    if (!method.stepwise && orderFile !== undefined) {
        throw new BlockprunerError(
            'ARGUMENT',
            `${method.name} merges layers, which an order file can't tell: leave out ${option('orderFile')}`
        );
    }
    if (options.watch && options.report === undefined) {
        const [watch, report] = [option('watch', true), option('report')];
        const message = `${watch} shows the search in its report: say by ${report} where that is to be`;
        throw new BlockprunerError('ARGUMENT', message);
    }
    if (options.watch && !method.stepwise) {
        const without = option('watch', true);
        const message = `${method.name} merges layers: there is no removal to watch; leave out ${without}`;
        throw new BlockprunerError('ARGUMENT', message);
    }
    if (!method.stepwise && maxIncrease !== undefined) {
        throw new BlockprunerError(
            'ARGUMENT',
            `${method.name} merges layers until enough are gone: ` +
                `say how much to remove by ${option('remove')} or ${option('ratio')}`
        );
    }
    checkOneOf('per', options.per, worths);
    checkInteger('swaps', options.swaps, { least: 0 });
    checkOneOf('searchType', searchType, searchTypes);
    const ofComparisons = (['per', 'swaps', 'searchType'] as const).find((name) => options[name] !== undefined);
    if (!method.per && ofComparisons) {
        const message = `${method.name} compares no candidates: leave out ${option(ofComparisons)}`;
        throw new BlockprunerError('ARGUMENT', message);
    }
    if (searchType !== undefined && options.cluster) {
        const message =
            `workers search in the model that they have: leave out ${option('searchType')}, ` +
            `or give them and this search a file in ${searchType}`;
        throw new BlockprunerError('ARGUMENT', message);
    }
    checkInteger('methodSeed', options.methodSeed, { least: 0, most: 2 ** 32 - 1 });
    checkSearchChoice(options);
    checkTaskOptions({ limit: options.limit });
    checkSessionOptions(options);
    checkRepairOptions(options);
    checkQuantizeOptions(options);
    const { output, report, card, imatrixOut } = options;
    checkNames({
        'order file': orderFile,
        report,
        'model card': card,
        'importance matrix': imatrixOut,
        output,
        journal: journalOf(output)
    });
    return { method, goal: { remove, ratio, maxIncrease } };
}

/**
 * @throws BlockprunerError if there is the journal of a stopped search, and it isn't said, or can't be, to go on with
 * it
 */
function checkJournal(method: PruningMethod, { output, resume }: PruneOptions): void {
    const journal = journalOf(output);
    if (resume === false || !fs.existsSync(journal)) {
        return;
    }
    if (resume === undefined) {
        throw new BlockprunerError(
            'RESUME',
            `${journal} is the journal of a search that was stopped: ` +
                `go on with it by ${option('resume', true)}, or begin anew with ${option('resume', false)}`
        );
    }
    if (!method.stepwise) {
        throw new BlockprunerError(
            'RESUME',
            `${journal} is the journal of a search by another method: ${method.name} has none; ` +
                `begin anew with ${option('resume', false)}, or choose another output`
        );
    }
}

/** @throws BlockprunerError if one of the files can't be written, or is there and may not be replaced */
async function checkOutputs({ gguf }: Source, options: PruneOptions): Promise<void> {
    const { output, orderFile, report, card, force = false, resume } = options;
    const journal = journalOf(output);
    await checkOutput(output, gguf.files, force);
    await checkOutput(journal, gguf.files, true, 'journal');
    if (orderFile !== undefined) {
        const isOurs = resume === true && fs.existsSync(journal); // a search that goes on has written it already
        await checkOutput(orderFile, gguf.files, force || isOurs, 'order file');
    }
    if (report !== undefined) {
        await checkOutput(report, gguf.files, mayReplaceReport(options), 'report');
    }
    if (card !== undefined) {
        await checkOutput(card, gguf.files, force, 'model card');
    }
    await checkQuantization(gguf, options);
}

/** A search that was stopped has left its page, whether it goes on or begins anew. */
function mayReplaceReport({ output, report, force = false }: PruneOptions): boolean {
    return force || (fs.existsSync(journalOf(output)) && isUnfinishedReport(report!));
}

/** @throws BlockprunerError if there is no room for the smallest file that can come of it */
async function checkLeastRoom({ gguf, blocks }: Session, output: string, { remove }: Goal): Promise<void> {
    const largest = blocks.map(({ bytes }) => bytes).sort((a, b) => b - a);
    const gone = largest.slice(0, remove).reduce((sum, bytes) => sum + bytes, 0);
    await checkRoom(output, gguf.bytes - gone);
}

function methodContext(
    session: Session,
    method: PruningMethod,
    linear: LinearGaps | undefined,
    options: PruneOptions,
    show: (steps: readonly Step[], dense: number) => void = () => undefined
): MethodContext {
    const { output, blocks = 'all', search, confidence, keepBytes, per, swaps } = options;
    const { methodSeed, orderFile, resume, signal, cluster, searchType } = options;
    const steps: Step[] = [];
    if (orderFile !== undefined) {
        // an order file that can't be written is refused before the search
        session.blocks.filter(({ kind }) => blocks === 'all' || kind === blocks).forEach(paperName);
    }
    return session.methodContext(path.dirname(output), options, {
        selection: blocks,
        seed: methodSeed,
        signal,
        linear,
        search: { mode: search, confidence, keepBytes, per, swaps },
        journal: {
            file: journalOf(output),
            resume: resume ?? false,
            inputs: async () => ({
                ...(await session.searchInputs({ search, confidence, cluster }, signal)),
                ...(searchType && { 'search type': searchType }),
                blocks,
                ...repairInputs(method, linear),
                method: method.name === 'random' ? `random ${methodSeed ?? 0}` : method.name
            })
        },
        onStart(start) {
            show(steps, start.dense);
            options.onStart?.(start);
        },
        onStep(step, number, dense) {
            steps.push(step);
            if (orderFile !== undefined) {
                writeText(orderFile, formatOrder(movesAfter(steps).flat()), { force: true, what: 'order file' });
            }
            show(steps, dense);
            options.onStep?.(step, number, dense);
        },
        onFit: (done, total) => options.onProgress?.('calibrate', done, total),
        onProgress: (done, total) => options.onProgress?.('search', done, total)
    });
}

/** @throws BlockprunerError if less goes than was asked for */
function checkReached(context: MethodContext, { remove, ratio, maxIncrease }: Goal, { removed }: Decision): void {
    if (maxIncrease !== undefined && removed.length === 0) {
        const message = `no block can go: each raises the perplexity by more than ${formatPercent(maxIncrease)}`;
        throw new BlockprunerError('ARGUMENT', message);
    }
    if (remove !== undefined && removed.length < remove) {
        throw new BlockprunerError(
            'ARGUMENT',
            `can't remove ${remove} blocks: ` +
                `after ${removed.length}, all that can go is more than ${remove - removed.length} at once`
        );
    }
    const share = removedShare(context, removed);
    if (ratio !== undefined && share < ratio) {
        throw new BlockprunerError(
            'ARGUMENT',
            `can't remove ${formatPercent(ratio)} of the parameters: after ${formatPercent(share)} nothing more can go`
        );
    }
}
