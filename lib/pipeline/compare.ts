import fs from 'node:fs';
import path from 'node:path';
import { nameOf } from '../calibration/text.js';
import { checkInteger, checkOneOf } from '../check.js';
import { tryCluster } from '../cluster/fleet.js';
import { BlockprunerError, messageOf, MethodError, option } from '../errors.js';
import { meanNll } from '../evaluation/perplexity.js';
import { checkTaskOptions } from '../evaluation/scores.js';
import { methodOf } from '../methods/index.js';
import {
    gapText,
    isNested,
    removedShare,
    type Decision,
    type Goal,
    type MethodContext,
    type PruningMethod
} from '../methods/method.js';
import { checkWritable, removeDeadPartials, writeText } from '../output.js';
import { comparisonReport } from '../report/comparison-report.js';
import { comparisonCsv, comparisonText } from '../report/comparison-table.js';
import { comparedMethods, comparisonSchema, type ComparedMethod, type Comparison } from '../report/comparison.js';
import type { Repair } from '../repair/fit.js';
import { forgetMatrices } from '../repair/journal.js';
import { bare, formatMerges, type Block, type BlockSelection } from '../runtime/blocks.js';
import { quantizations, type Quantization } from '../runtime/quantize.js';
import { differences } from '../search/journal.js';
import { isolated } from './isolated.js';
import { withLock } from './lock.js';
import { prepareMeasurements, type MeasurementOptions, type Measurements } from './measurements.js';
import {
    checkRepairOptions,
    planRepair,
    repair,
    repairInputs,
    repairJournalOf,
    type RepairOptions,
    type RepairPlan
} from './repair.js';
import {
    checkSearchChoice,
    checkSessionOptions,
    findModel,
    Session,
    type SearchChoice,
    type SessionOptions
} from './session.js';

export interface CompareOptions
    extends Omit<SessionOptions, 'onProgress'>, SearchChoice, RepairOptions, MeasurementOptions {
    /**
     * The folder for report.html, table.md, table.csv and results.json, which is made if it isn't there. They are
     * written anew after each result. The journals of the searches are there too, and may be deleted when no higher
     * ratio is to come.
     */
    output: string;
    /** Go on with the results in the folder. Default: false, which refuses a folder with anything in it. */
    resume?: boolean | undefined;
    /**
     * With `resume`: measure all results anew, with other tasks or another text, by the searches that are there.
     * Default: false, which refuses other tasks and texts.
     */
    remeasure?: boolean | undefined;
    /** The shares of the parameters to remove, each above 0 and below 1. */
    ratios: readonly number[];
    /** Default: all. */
    methods?: readonly ComparedMethod[] | undefined;
    /** With how many seeds `random` is run; it is reported as their mean. Default: 3. */
    seeds?: number | undefined;
    /**
     * What else could be done: types that the model as it is gets quantized to. Default: `auto`, for each ratio the
     * best of the usual types whose file is at least so much smaller.
     */
    quantize?: readonly Quantization[] | 'auto' | undefined;
    /** Is told what is being worked on. */
    onProgress?: ((what: string) => void) | undefined;
}

/**
 * Prunes a model by several methods at several ratios and evaluates what is left, as the paper's tables 1 and 2 do, as
 * it is and repaired, and beside them the model as it is in other types. Each model is written into the folder,
 * measured as a user would have it, and deleted. The order of a stepwise method is found once, for the highest ratio.
 *
 * Memory: the model and a pruned one of it, and what the search and the repair need.
 *
 * Results are written as they come, and searches have journals, so that a run that was stopped can go on. A run with
 * other texts or tasks has the searches already.
 * @param uri a path, or a URI that node-llama-cpp's resolver takes
 * @throws BlockprunerError for wrong arguments, before the long work
 */
export async function compare(uri: string, options: CompareOptions): Promise<Comparison> {
    const started = performance.now();
    const { output, resume = false, isolate, signal, onProgress } = options;
    if (isolate) {
        return isolated('compare', uri, options);
    }
    const { ratios, quantize, contestants } = checkOptions(options);
    const previous = await readFolder(output, resume);
    if (options.cluster) {
        await tryCluster(options.cluster);
    }
    const source = await findModel(uri, { signal });
    const session = await Session.open(source, { ...options, onProgress: undefined });
    try {
        const measurements = await prepareMeasurements(session, options);
        const searchedWith = await session.searchInputs(options, signal);
        const known = reusable(previous, { searchedWith, evaluatedWith: measurements.inputs }, options);
        fs.mkdirSync(output, { recursive: true });
        return await withLock(path.resolve(output), async () => {
            onProgress?.('the model as it is');
            const comparison: Comparison = {
                model: uri,
                calibration: session.calibrationInfo,
                text: options.text === undefined ? null : nameOf(options.text),
                blocks: bare(session.blocks),
                searchedWith,
                evaluatedWith: measurements.inputs,
                dense: known.dense ?? (await measurements.measure(session.model)),
                quantized: known.quantized,
                searches: known.searches,
                pruned: known.pruned,
                seconds: 0
            };
            const save = async () => {
                comparison.seconds = (previous?.seconds ?? 0) + (performance.now() - started) / 1000;
                await writeFolder(output, comparison);
            };
            await save();
            const plan = await planRepair(session, { ...options, onProgress: undefined });
            const run = { session, options, ratios, comparison, save, measure: measurements.measure, plan };
            await compareQuantized(run, quantize);
            for (const contestant of contestants) {
                await compareMethod(run, contestant);
            }
            return comparison;
        });
    } finally {
        session.dispose();
    }
}

/** A method as it takes part: limited to blocks of one kind, or with a seed. */
interface Contestant {
    compared: ComparedMethod;
    method: PruningMethod;
    selection: BlockSelection;
    seed: number | null;
    /** What messages and files call it. */
    name: string;
}

/** @throws BlockprunerError if an argument is wrong */
function checkOptions(options: CompareOptions): Pick<Run, 'ratios'> & {
    quantize: readonly Quantization[] | 'auto';
    contestants: Contestant[];
} {
    const { seeds = 3, limit, textSamples, quantize = 'auto' } = options;
    const ratios = [...new Set(options.ratios)].sort((a, b) => a - b);
    for (const ratio of ratios) {
        if (!(ratio > 0 && ratio < 1)) {
            throw new BlockprunerError('ARGUMENT', `a ratio must be above 0 and below 1, not ${ratio}`);
        }
    }
    checkInteger('seeds', seeds, { least: 1 });
    checkTaskOptions({ limit });
    checkInteger('textSamples', textSamples, { least: 1 });
    checkSearchChoice(options);
    checkSessionOptions(options);
    checkRepairOptions(options);
    if (quantize !== 'auto') {
        quantize.forEach((type) => checkOneOf('quantize', type, quantizations));
    }
    const chosen = new Set(options.methods ?? comparedMethods);
    return { ratios, quantize, contestants: [...chosen].flatMap((compared) => contestantsOf(compared, seeds)) };
}

function contestantsOf(compared: ComparedMethod, seeds: number): Contestant[] {
    if (!comparedMethods.includes(compared)) {
        const message = `there is no method '${compared}': there are ${comparedMethods.join(', ')}`;
        throw new BlockprunerError('ARGUMENT', message);
    }
    const [, base, kind] = /^(blockpruner)-(attn|ffn)$/.exec(compared) ?? [];
    const method = methodOf(base ?? compared);
    const contestant = { compared, method, selection: (kind ?? 'all') as BlockSelection, seed: null, name: compared };
    return method.name === 'random'
        ? Array.from({ length: seeds }, (_, seed) => ({ ...contestant, seed, name: `${compared}-${seed}` }))
        : [contestant];
}

/** What the methods work with. */
interface Run {
    session: Session;
    options: CompareOptions;
    ratios: readonly number[];
    /** What was found so far. */
    comparison: Comparison;
    /** Writes what was found so far. */
    save: () => Promise<void>;
    measure: Measurements['measure'];
    plan: RepairPlan;
}

const noRepair: RepairPlan = { kind: 'none', reason: 'it was turned off' };

/** Of these, `auto` chooses. */
const usualQuantizations: readonly Quantization[] = ['Q8_0', 'Q6_K', 'Q5_K_M', 'Q4_K_M', 'Q3_K_M', 'Q2_K'];

/** Adds what is missing of the model as it is in other types. */
async function compareQuantized(run: Run, wanted: readonly Quantization[] | 'auto'): Promise<void> {
    if (wanted !== 'auto') {
        for (const type of wanted) {
            await addQuantized(run, type, Infinity);
        }
        return;
    }
    const { session, comparison, ratios } = run;
    const types = [...usualQuantizations];
    for (const ratio of ratios) {
        const room = (1 - ratio) * session.gguf.bytes;
        const fits = () => comparison.quantized.some(({ cost }) => cost.bytes <= room);
        while (!fits() && types.length > 0) {
            await addQuantized(run, types.shift()!, room);
        }
    }
}

/** @param room how many bytes the file may have; a larger one isn't measured */
async function addQuantized(run: Run, type: Quantization, room: number): Promise<void> {
    const { session, comparison, options, measure, save } = run;
    if (comparison.quantized.some((one) => one.type === type)) {
        return;
    }
    const onProgress = options.onProgress ?? (() => {});
    try {
        await session.files(options.output, options.signal).useQuantized(type, room, async (quantized) => {
            onProgress(`the model as it is, in ${type}`);
            comparison.quantized.push({ type, ...(await measure(quantized)) });
        });
    } catch (error) {
        if (!(error instanceof BlockprunerError)) {
            throw error;
        }
        onProgress(error.message); // such as of a type that doesn't fit this model
    }
    comparison.quantized.sort((a, b) => b.cost.bytes - a.cost.bytes);
    await save();
}

/** Adds what is missing of a method: at each ratio what it leaves, as it is and repaired. */
async function compareMethod(run: Run, contestant: Contestant): Promise<void> {
    const { comparison, ratios, options } = run;
    const { compared, method, seed, name } = contestant;
    const onProgress = options.onProgress ?? (() => {});
    // merged layers can't be repaired
    const plans = run.plan.kind === 'none' || !method.stepwise ? [noRepair] : [noRepair, run.plan];
    const isThere = (ratio: number, kind: Repair) =>
        comparison.pruned.some(
            (one) => one.method === compared && one.seed === seed && one.ratio === ratio && one.repair === kind
        );
    const missing = ratios.flatMap((ratio) => plans.map((plan) => ({ ratio, plan })));
    for (const { ratio, plan } of missing.filter((one) => !isThere(one.ratio, one.plan.kind))) {
        const { kind } = plan;
        const context = contextOf(run, contestant, plan);
        const steps = isNested(method) ? await findSteps(run, contestant, plan) : undefined;
        const found = steps && firstAt(ratio, steps, context);
        if (steps && !found) {
            onProgress(`${name} can't remove ${ratio}`);
            continue;
        }
        onProgress(`${name} at ${ratio}${kind === 'none' ? (steps ? ': perplexity and tasks' : '') : ': repair'}`);
        try {
            const decision = found ? { removed: found.removed, steps: [] } : await method.decide(context, { ratio });
            const perplexity = found?.perplexity ?? decision.steps.at(-1)?.perplexity;
            const share = removedShare(context, decision.removed);
            if (share < ratio) {
                onProgress(`${name} can't remove ${ratio}`);
                continue;
            }
            await addResult(run, contestant, { ratio, plan, share, decision, perplexity });
        } catch (error) {
            // LaCo needs room for its candidates, which may not be there; others need no more than what is measured.
            const isPassedOver =
                error instanceof MethodError || (error instanceof BlockprunerError && !method.stepwise);
            if (!isPassedOver) {
                throw error;
            }
            onProgress(error.message);
        }
    }
}

/** What is gone, and the perplexity, where removals first reach a ratio; undefined if they don't. */
function firstAt(
    ratio: number,
    steps: readonly ComparedStep[],
    context: MethodContext
): { removed: Block[]; perplexity: number } | undefined {
    const removedAfter = (count: number) => steps.slice(0, count).flatMap(({ removed }) => removed);
    const last = steps.findIndex((_, i) => removedShare(context, removedAfter(i + 1)) >= ratio);
    return last < 0 ? undefined : { removed: removedAfter(last + 1), perplexity: steps[last]!.perplexity };
}

/**
 * Adds what a decision leaves, with one kind of repair.
 * @param decided `share`: what is gone of the parameters, less what the repair puts in; `perplexity`: that on the
 *     calibration text before the repair, if it is known
 */
async function addResult(
    { session, comparison, options, measure, save }: Run,
    { compared, seed, name }: Contestant,
    decided: { ratio: number; plan: RepairPlan; share: number; decision: Decision; perplexity: number | undefined }
): Promise<void> {
    const { output, signal, onProgress } = options;
    const { ratio, plan, share } = decided;
    let { decision, perplexity } = decided;
    if (plan.kind !== 'none') {
        const places = { folder: output, journal: repairJournalOf(path.join(output, name)) };
        const repaired = await repair(session, decision, plan, places, { ...options, onProgress: undefined });
        await forgetMatrices(places.journal);
        if (repaired.repair.kind === 'none') {
            onProgress?.(`${name} at ${ratio}: no repair: ${repaired.repair.reason}`);
            return;
        }
        decision = repaired.decision;
        perplexity = Math.exp(meanNll(decision.nll!, session.calibration.length));
    }
    const { removed, merges } = decision;
    const quality = await session.files(output, signal).use(decision, (pruned) => measure(pruned, perplexity));
    comparison.pruned.push({
        method: compared,
        seed,
        ratio,
        repair: plan.kind,
        removedShare: share,
        removed,
        ...(merges && { merged: formatMerges(merges) }),
        ...quality
    });
    await save();
}

type ComparedStep = Comparison['searches'][number]['steps'][number];

/**
 * The removals of a stepwise method up to the highest ratio that it may reach: those that are known, or else found now.
 * A method that measures candidates finds others with a repair's linear blocks in their gaps.
 */
async function findSteps(run: Run, contestant: Contestant, plan: RepairPlan): Promise<ComparedStep[]> {
    const { session, comparison, options, ratios, save } = run;
    const { compared, method, selection, seed, name } = contestant;
    const context = contextOf(run, contestant, plan);
    const repair = gapText(method, context.linear) ? plan.kind : 'none';
    const selected = session.blocks.filter(({ kind }) => selection === 'all' || kind === selection);
    const highest = Math.max(0, ...ratios.filter((ratio) => ratio < session.share(selected)));
    if (highest === 0) {
        return [];
    }
    const isOurs = (one: Comparison['searches'][number]) =>
        one.method === compared && one.seed === seed && one.repair === repair;
    const known = comparison.searches.find((one) => isOurs(one) && one.ratio >= highest);
    if (known && firstAt(highest, known.steps, context)) {
        return known.steps;
    }
    options.onProgress?.(`${name}: what goes${repair === 'none' ? '' : ', with linear blocks in its gaps'}`);
    const steps = await search(run, contestant, context, { ratio: highest });
    const others = comparison.searches.filter((one) => !isOurs(one));
    comparison.searches = [...others, { method: compared, seed, repair, ratio: highest, steps }];
    await save();
    return steps;
}

/**
 * Searches for a goal. Where nothing more can go before it is reached, what was removed until then may serve lower
 * ratios.
 */
async function search(run: Run, contestant: Contestant, context: MethodContext, goal: Goal): Promise<ComparedStep[]> {
    const steps: ComparedStep[] = [];
    const onStep: MethodContext['onStep'] = ({ removed, perplexity, evaluations, seconds }) =>
        steps.push({ removed: [...removed], perplexity, evaluations, seconds });
    try {
        await contestant.method.decide({ ...context, onStep }, goal);
    } catch (error) {
        if (!(error instanceof MethodError)) {
            throw error;
        }
        run.options.onProgress?.(`${contestant.name}: ${error.message}`);
    }
    return steps;
}

/** What a method works with, where what it leaves is to be repaired so. */
function contextOf(
    { session, comparison, options }: Run,
    { method, selection, seed, name }: Contestant,
    plan: RepairPlan
): MethodContext {
    const { output, search: mode, confidence, keepBytes, signal } = options;
    const { linear } = plan.kind === 'none' ? {} : plan;
    const inputs = { ...comparison.searchedWith, ...repairInputs(method, linear), method: name };
    const file = path.join(output, `${name}${'repair' in inputs ? '-repaired' : ''}.journal`);
    return session.methodContext(output, options, {
        selection,
        seed: seed ?? undefined,
        linear,
        search: { mode, confidence, keepBytes },
        journal: { file, inputs: () => Promise.resolve(inputs), resume: true },
        signal
    });
}

/** Writes a comparison into its folder. */
async function writeFolder(folder: string, comparison: Comparison): Promise<void> {
    const inOrder = (a: Comparison['pruned'][number], b: Comparison['pruned'][number]) =>
        a.ratio - b.ratio || comparedMethods.indexOf(a.method) - comparedMethods.indexOf(b.method);
    comparison.pruned.sort(inOrder);
    const write = (name: string, text: string) => writeText(path.join(folder, name), text, { force: true });
    write('results.json', JSON.stringify(comparison, null, 1) + '\n');
    write('table.md', comparisonText(comparison));
    write('table.csv', comparisonCsv(comparison));
    write('report.html', await comparisonReport(comparison));
}

/**
 * Reads the results that are in a folder. Nothing else may be there: the folder is ours, empty or new.
 * @throws BlockprunerError if it is another folder, or one with results and `resume` isn't set
 */
async function readFolder(folder: string, resume: boolean): Promise<Comparison | undefined> {
    if (folder === '') {
        throw new BlockprunerError('OUTPUT', 'the output has no name: give a folder');
    }
    const names = namesIn(folder);
    await checkWritable(names === undefined ? path.dirname(path.resolve(folder)) : folder);
    if (names === undefined || names.length === 0) {
        return undefined;
    }
    if (!names.includes('results.json')) {
        throw new BlockprunerError('OUTPUT', `the folder ${folder} holds other files: choose another name`);
    }
    if (!resume) {
        throw new BlockprunerError(
            'RESUME',
            `the folder ${folder} isn't empty: ` +
                `go on with what is there by ${option('resume', true)}, or choose another name`
        );
    }
    const results = path.join(folder, 'results.json');
    let comparison: Comparison;
    try {
        comparison = comparisonSchema.parse(JSON.parse(fs.readFileSync(results, 'utf8')));
    } catch {
        const message = `${results} holds no results of a comparison by this version: choose another folder`;
        throw new BlockprunerError('INPUT', message);
    }
    removeDeadPartials(folder);
    return comparison;
}

/** The names of the files in a folder; undefined if there is no such folder. */
function namesIn(folder: string): string[] | undefined {
    try {
        return fs.readdirSync(folder);
    } catch (error) {
        const { code } = error as NodeJS.ErrnoException;
        if (code === 'ENOENT') {
            return undefined;
        }
        const why = code === 'ENOTDIR' ? 'is no folder' : `can't be read: ${messageOf(error)}`;
        throw new BlockprunerError('OUTPUT', `the output ${folder} ${why}`);
    }
}

/**
 * What of earlier results holds for a run.
 * @throws BlockprunerError if they are of other searches, or were measured otherwise and `remeasure` isn't set
 */
function reusable(
    previous: Comparison | undefined,
    { searchedWith, evaluatedWith }: Pick<Comparison, 'searchedWith' | 'evaluatedWith'>,
    { output, remeasure = false }: CompareOptions
): Pick<Comparison, 'searches' | 'pruned' | 'quantized'> & Partial<Pick<Comparison, 'dense'>> {
    if (!previous) {
        return { searches: [], pruned: [], quantized: [] };
    }
    const other = differences(previous.searchedWith, searchedWith);
    if (other) {
        throw new BlockprunerError(
            'RESUME',
            `the results in ${output} are of searches with another ${other}: give the same, or another folder`
        );
    }
    const measured = differences(previous.evaluatedWith, evaluatedWith);
    if (measured && !remeasure) {
        throw new BlockprunerError(
            'RESUME',
            `the results in ${output} were measured with different ${measured}: ` +
                `give the same, or measure all of them anew by ${option('remeasure', true)}`
        );
    }
    const { searches, pruned, quantized, dense } = previous;
    return measured ? { searches, pruned: [], quantized: [] } : { searches, pruned, quantized, dense };
}
