// The methods that remove move after move differ in what they let go next. The rest is here: whether the goal can be
// reached, and the search, which also gives the perplexity after each removal of a method that ranks once.
import { BlockprunerError } from '../errors.js';
import { formatPercent } from '../format.js';
import { bare, formatBlock, type Block, type Move } from '../runtime/blocks.js';
import { movesAfter, searchOrder, type SearchEvaluator, type SearchOptions } from '../search/greedy.js';
import { Journal } from '../search/journal.js';
import {
    gapText,
    linearCount,
    removedShare,
    type Candidates,
    type Decision,
    type Goal,
    type MethodContext,
    type MethodOptions,
    type PruningMethod,
    type StepwiseMethod,
    type Worth
} from './method.js';
import { checkSelection, possibleMoves } from './moves.js';
import { measureTimes } from './times.js';

/** A method that removes move after move, by what it lets go next, and by what it compares that, if it measures it. */
export function stepwise<Name extends string>(
    name: Name,
    unit: PruningMethod['unit'],
    candidates: (options: MethodOptions) => Candidates | Promise<Candidates>,
    per?: Worth
): StepwiseMethod<Name> {
    const method: StepwiseMethod<Name> = {
        name,
        unit,
        stepwise: true,
        per,
        candidates: async (options) => {
            checkSelection(method, options.selection);
            return candidates(options);
        },
        check: (context, goal) => checkReachable(method, context, goal),
        decide: (context, goal) => decide(method, context, goal)
    };
    return method;
}

async function decide(method: StepwiseMethod, context: MethodContext, goal: Goal): Promise<Decision> {
    const { signal, onProgress } = context;
    const { keepBytes, per = method.per, swaps = 0 } = context.search;
    const found = await method.candidates(context);
    const total = onProgress ? expectedSteps(method, context, goal) * (1 + swaps) : 0;
    const linear = gapText(method, context.linear);
    const candidates = linear ? inBothStates(found, context) : found;
    const evaluator = await context.evaluator({
        keepBytes,
        linear,
        signal,
        onProgress: context.onFit
    });
    try {
        return await search(evaluator, candidates, per, total, context, goal);
    } finally {
        await evaluator.dispose();
    }
}

async function search(
    evaluator: SearchEvaluator,
    candidates: Candidates,
    per: Worth | undefined,
    total: number,
    context: MethodContext,
    goal: Goal
): Promise<Decision> {
    const { remove = Infinity, ratio, maxIncrease } = goal;
    const { blocks, onProgress } = context;
    const { swaps: rounds = 0 } = context.search;
    const { file, inputs, resume } = context.journal;
    const journal = Journal.open(evaluator, file, await inputs(), resume);
    if (evaluator.terms) {
        await evaluator.terms.give(await journal.measure('terms', evaluator.terms.ask));
    }
    const isEnough = (removed: readonly Block[]) => ratio !== undefined && removedShare(context, removed) >= ratio;
    let dense = NaN;
    const costs = per && per !== 'removal' ? await costsOf(per, evaluator, journal, context) : undefined;
    const { steps, nll } = await searchOrder(journal, {
        mode: context.search.mode,
        confidence: context.search.confidence,
        worth: costs && worthOf(context, goal, costs),
        swaps: { rounds, moves: (others, instead) => replacements(candidates, context, goal, others, instead) },
        moves: (removed) => (isEnough(removed) ? [] : candidates(removed, remove - removed.length)),
        maxPerplexity: maxIncrease === undefined ? undefined : (value) => value * (1 + maxIncrease),
        onStart(value) {
            dense = value;
            context.onStart?.({
                dense,
                candidates: candidates([]).length,
                linear: evaluator.linear,
                resumed: journal.found,
                kept: { ...evaluator.kept, boundaries: Math.min(evaluator.kept.boundaries, blocks.length - 1) }
            });
            onProgress?.(0, total);
        },
        onEvaluation: (step, decided, of) => onProgress?.(step - 1 + decided / of, total),
        onStep: (step, number) => context.onStep?.(step, number, dense)
    }).finally(() => journal.close());
    const removed = movesAfter(steps).flat();
    return { removed, steps, dense, ...(evaluator.linear ? { linearGaps: true } : { nll: concatenate(nll) }) };
}

/**
 * Each move twice where that makes a difference: as one that a linear block makes up for, at its price in parameters,
 * and as one that leaves its gap empty.
 */
function inBothStates(candidates: Candidates, { blocks }: MethodContext): Candidates {
    return (removed, most) =>
        candidates(removed, most).flatMap((move) => {
            const empty = bare(move).map((block) => ({ ...block, empty: true as const }));
            const isOther = linearCount(blocks, [...removed, ...empty]) < linearCount(blocks, [...removed, ...move]);
            return isOther ? [move, empty] : [move];
        });
}

/** What may go in the place of a move, so that no less goes than is wanted. */
function replacements(
    candidates: Candidates,
    context: MethodContext,
    { remove, ratio }: Goal,
    others: readonly Block[],
    instead: Move
): Move[] {
    const wanted = ratio ?? removedShare(context, [...others, ...instead]);
    return candidates(others, remove === undefined ? undefined : remove - others.length).filter((move) =>
        remove === undefined
            ? removedShare(context, [...others, ...move]) >= wanted
            : others.length + move.length === remove
    );
}

/**
 * What a move is worth by what it is counted in: of parameters, those of the linear blocks that a repair will put in or
 * spare are taken into account. What goes beyond the share of parameters that is to go is worth nothing, so that the
 * last removals meet it closely.
 */
function worthOf(context: MethodContext, { ratio = 1 }: Goal, costs: BlockCosts): SearchOptions['worth'] {
    return (move, removed) => {
        const before = removedShare(context, removed);
        const gained = removedShare(context, [...removed, ...move]) - before;
        const all =
            costs === 'parameters'
                ? gained * context.model.parameters
                : sum(move.map((block) => costs.get(formatBlock(block))!));
        const wanted = gained > 0 ? Math.min((ratio - before) / gained, 1) : 1;
        return Math.max(all * wanted, 1e-9); // a block may have no weights, or fewer than what takes its place
    };
}

/** What each block costs, by its name; of parameters, those of linear blocks count too. */
type BlockCosts = 'parameters' | ReadonlyMap<string, number>;

async function costsOf(
    per: Exclude<Worth, 'removal'>,
    { together = 1 }: SearchEvaluator,
    journal: Journal,
    context: MethodContext
): Promise<BlockCosts> {
    const { blocks } = context;
    if (per === 'parameters') {
        return per;
    }
    const costs =
        per === 'bytes'
            ? blocks.map(({ bytes }) => bytes)
            : await journal.measure('milliseconds', () => measureTimes(context, together));
    return new Map(blocks.map((block, index) => [formatBlock(block), costs[index]!]));
}

/** @throws BlockprunerError if it is clear from the moves alone that a goal can't be reached */
function checkReachable(method: StepwiseMethod, context: MethodContext, { remove, ratio }: Goal): void {
    checkSelection(method, context.selection);
    const { host, blocks, model, selection = 'all' } = context;
    const which = `${selection === 'all' ? '' : `${selection} `}blocks`;
    const possible = possibleMoves(method.unit, context);
    const first = possible([]);
    if (first.length === 0) {
        const message = `no ${which} of this model can go: it is written as ${host.name}, ${host.reason}`;
        throw new BlockprunerError('UNSUPPORTED', message);
    }
    const selected = blocks.filter(({ kind }) => selection === 'all' || kind === selection);
    const most = mostRemovable(possible);
    if (remove !== undefined && remove > most) {
        throw new BlockprunerError(
            'ARGUMENT',
            `can't remove ${remove} blocks: at most ${most} of this model's ${selected.length} ${which} can go`
        );
    }
    const atOnce = first[0]!.length;
    if (remove !== undefined && remove % atOnce !== 0 && first.every(({ length }) => length === atOnce)) {
        const why = method.unit === 'layer' ? `${method.name} removes whole layers` : host.reason;
        const message = `can't remove ${remove} blocks: from this model they go ${atOnce} at a time (${why})`;
        throw new BlockprunerError('ARGUMENT', message);
    }
    // The search may leave the largest blocks to the end, and some of them stay.
    const ascending = selected.map(({ parameters }) => parameters).sort((a, b) => a - b);
    const reachable = sum(ascending.slice(0, most)) / model.parameters;
    if (ratio !== undefined && ratio > reachable) {
        throw new BlockprunerError(
            'ARGUMENT',
            `can't remove ${formatPercent(ratio)} of the parameters: ` +
                `without its ${which} the model still has ${formatPercent(1 - reachable)}`
        );
    }
}

/** How many removals may reach the goal, going by the mean size of a block: for progress bars. */
function expectedSteps(method: StepwiseMethod, context: MethodContext, { remove, ratio }: Goal): number {
    const { blocks, model, selection = 'all' } = context;
    const selected = blocks.filter(({ kind }) => selection === 'all' || kind === selection);
    const meanShare = sum(selected.map(({ parameters }) => parameters)) / selected.length / model.parameters;
    const possible = possibleMoves(method.unit, context);
    const atOnce = possible([])[0]?.length ?? 1;
    const wanted = remove ?? (ratio !== undefined ? Math.ceil(ratio / meanShare) : mostRemovable(possible));
    return Math.ceil(Math.min(selected.length, wanted) / atOnce);
}

/** How many blocks can go if it is always the first possible move that is made. */
function mostRemovable(possible: ReturnType<typeof possibleMoves>): number {
    const removed: Block[] = [];
    for (let move; (move = possible(removed)[0]);) {
        removed.push(...move);
    }
    return removed.length;
}

function sum(values: readonly number[]): number {
    return values.reduce((total, value) => total + value, 0);
}

function concatenate(parts: readonly Float32Array[]): Float32Array {
    const whole = new Float32Array(sum(parts.map(({ length }) => length)));
    let end = 0;
    for (const part of parts) {
        whole.set(part, end);
        end += part.length;
    }
    return whole;
}
