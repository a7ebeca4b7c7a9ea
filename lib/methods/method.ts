// What a method of pruning is: it is given a model and a goal, and yields a decision. Each method has a file of its own
// here.
import { gapsOf, type Block, type BlockSelection, type Move, type Removal } from '../runtime/blocks.js';
import { shareOf, type BlockInfo, type Model } from '../runtime/model.js';
import type { Sequences } from '../runtime/sequences.js';
import type { KeepOptions } from '../runtime/kept-streams.js';
import type { SearchEvaluator, SearchMode, Step } from '../search/greedy.js';
import type { JournalInputs } from '../search/journal.js';

/** How much is to go: exactly one of the three is set. */
export interface Goal {
    /** So many blocks. */
    remove?: number | undefined;
    /** The fewest blocks that have this share of all parameters, 0 … 1, less what a repair will put in. */
    ratio?: number | undefined;
    /** As much as leaves the perplexity at most this share above the dense model's. */
    maxIncrease?: number | undefined;
}

/** What a method found: what goes, and what was measured on the way. A repair adds to it. */
export interface Decision extends Removal {
    /** The blocks that go; in the order of their removal, where there is one. */
    removed: Block[];
    /** The removals one after the other; none where all went at once. */
    steps: Step[];
    /** Whether linear blocks stood in the gaps while candidates were compared; see {@link LinearGaps}. */
    linearGaps?: boolean | undefined;
    /** Perplexity of the dense model on the calibration text, where the method measured it. */
    dense?: number | undefined;
    /** NLL of each predicted token of this decision's model, [sequences × (length − 1)], where it was measured. */
    nll?: Float32Array | undefined;
}

/** What decides which blocks can go so that the rest can be written. A host of export/ is one. */
export interface MoveSource {
    /** The architecture that the pruned model is written as, and why; for messages. */
    readonly name: string;
    readonly reason: string;
    /** The moves that can be made next, given the blocks that are left in the order of the residual stream. */
    moves(remaining: readonly Block[]): Move[];
}

/** What the possible moves depend on. */
export interface MoveOptions {
    host: MoveSource;
    /** All blocks of the model, in the order of the residual stream. */
    blocks: readonly Block[];
    /** Which blocks may go. Default: `all`. */
    selection?: BlockSelection | undefined;
}

/** What a choice among the possible moves depends on. */
export interface MethodOptions extends MoveOptions {
    model: Model;
    calibration: Sequences;
    /** For `random`: another number gives another order. Default: 0. */
    seed?: number | undefined;
    signal?: AbortSignal | undefined;
}

/** Models with merged layers. They are handed in, since methods know no files. */
export interface MergedModels {
    /** @throws BlockprunerError that says why such a model can't be written */
    check(removal: Removal): void;
    /** Runs some work on the model that a file of it would hold, and frees that model. */
    use<T>(removal: Removal, work: (merged: Model) => Promise<T>): Promise<T>;
}

/** What a search begins with. */
export interface SearchStart {
    /** Perplexity of the model as it is, or of the copy that is searched. */
    dense: number;
    /** How many moves the first removal chooses from. */
    candidates: number;
    /**
     * At how many boundaries of a sequence there is room to keep the residual stream, and how many bytes are kept now.
     */
    kept: { boundaries: number; bytes: number };
    /** Whether linear blocks stand in the gaps of candidates. */
    linear: boolean;
    /** How many evaluations a resumed journal had. */
    resumed: number;
}

/**
 * What the rise of the NLL may be divided by before candidates are compared: 1, or what goes with each: its parameters,
 * bytes in the file, or time on the device.
 */
export const worths = ['removal', 'parameters', 'bytes', 'milliseconds'] as const;

export type Worth = (typeof worths)[number];

/** The linear blocks that a repair will put into gaps, as far as a search counts on them. */
export interface LinearGaps {
    /** How many parameters each has. */
    parameters: number;
    /**
     * The sequences that they are fitted to while candidates are compared, each in the model without it and with what
     * then stands in its gaps. Default: gaps are empty until the repair.
     */
    text?: Sequences | undefined;
}

/** What linear blocks are fitted to while a method compares candidates; undefined: gaps are empty then. */
export function gapText({ per }: Pick<PruningMethod, 'per'>, linear: LinearGaps | undefined): Sequences | undefined {
    return per === undefined ? undefined : linear?.text; // a method that ranks once compares no models
}

/** All that a method works with. */
export interface MethodContext extends MethodOptions {
    /** Makes what a search evaluates candidates by. */
    evaluator: (options: KeepOptions) => Promise<SearchEvaluator>;
    blocks: readonly BlockInfo[];
    merged: MergedModels;
    /** The linear blocks that a repair will put into the gaps that the removed blocks leave. Default: none. */
    linear?: LinearGaps | undefined;
    /**
     * `per`: instead of the method's own. `swaps`: how often each removal is looked at again at the end of the search;
     * default: 0.
     */
    search: {
        mode?: SearchMode | undefined;
        confidence?: number | undefined;
        keepBytes?: number | undefined;
        per?: Worth | undefined;
        swaps?: number | undefined;
    };
    /**
     * Where evaluations are written down, what they depend on, and whether to go on with what is there. The inputs are
     * asked for only when a search begins, since they take a hash of the whole model.
     */
    journal: { file: string; inputs: () => Promise<JournalInputs>; resume: boolean };
    /** Is told how much of the dense model's stream was computed for {@link LinearGaps.text}. */
    onFit?: ((done: number, total: number) => void) | undefined;
    onStart?: ((start: SearchStart) => void) | undefined;
    /** Is told each removal, its number from 1, and the perplexity of the dense model. */
    onStep?: ((step: Step, number: number, dense: number) => void) | undefined;
    onProgress?: ((done: number, total: number) => void) | undefined;
}

/** Gives what may go next: the moves that the next removal chooses from, of at most so many blocks. */
export type Candidates = (removed: readonly Block[], most?: number) => Move[];

export interface PruningMethod<Name extends string = string> {
    readonly name: Name;
    /** What it removes at a time, if the host lets it: a single block, or a whole layer. */
    readonly unit: 'block' | 'layer';
    /**
     * Whether it removes move after move. Then it has an order, which a journal can go on with and which may end at any
     * perplexity.
     */
    readonly stepwise: boolean;
    /** By what it compares candidates; undefined for a method that doesn't measure them. */
    readonly per?: Worth | undefined;
    /** @throws BlockprunerError if it is clear before any work that the goal can't be reached */
    check(context: MethodContext, goal: Goal): void;
    /**
     * Decides what goes. A stepwise method ends where nothing more can go, which may be before the goal.
     * @throws MethodError if the model doesn't allow what the method does
     */
    decide(context: MethodContext, goal: Goal): Promise<Decision>;
}

export interface StepwiseMethod<Name extends string = string> extends PruningMethod<Name> {
    readonly stepwise: true;
    /** @throws ArgumentError if a method of whole layers is to remove blocks of one kind */
    candidates(options: MethodOptions): Promise<Candidates>;
}

/** Whether what a method removes for a lower ratio is the beginning of what it removes for a higher one. */
export function isNested({ stepwise, per = 'removal' }: PruningMethod): boolean {
    return stepwise && per === 'removal'; // otherwise the last removals depend on how much is to go
}

/** In how many of the gaps that removed blocks leave a linear block is to stand. */
export function linearCount(blocks: readonly Block[], removed: readonly Block[]): number {
    return gapsOf(blocks, removed).filter(({ linear }) => linear).length;
}

/**
 * The share of the model's parameters that is gone without some of its blocks, 0 … 1, less what a repair will put into
 * the gaps: below 0 where that is more.
 */
export function removedShare(
    { blocks, model, linear }: Pick<MethodContext, 'blocks' | 'model' | 'linear'>,
    removed: readonly Block[]
): number {
    const added = linear ? linear.parameters * linearCount(blocks, removed) : 0;
    return shareOf(blocks, removed, model.parameters) - added / model.parameters;
}
