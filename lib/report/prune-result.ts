// What prune and apply give: what was removed, and what that cost and gained.
import type { WorkerShare } from '../cluster/fleet.js';
import type { TaskScores } from '../evaluation/scores.js';
import { formatFixed } from '../format.js';
import type { Method } from '../methods/index.js';
import type { Repair } from '../repair/fit.js';
import type { Device } from '../runtime/device.js';
import { formatLinear, type Block } from '../runtime/blocks.js';
import type { BlockInfo } from '../runtime/model.js';
import type { FileType } from '../runtime/quantize.js';
import type { Step } from '../search/greedy.js';
import type { Speed } from '../stock/stock.js';

/** What a repair did, or why there was none. */
export type RepairResult =
    | { kind: 'none'; reason: string }
    | {
          kind: Exclude<Repair, 'none'>;
          /** The linear blocks, by the block right before which each stands; null: at the residual stream's end. */
          linear: { before: Block | null; type: string }[];
          /** Which share of the error that is in the stream before a gap they take back. */
          correction?: number;
          /** The tensors that were fitted anew, as the model has them. */
          refitted: string[];
          /** How many tokens it was fitted to. */
          tokens: number;
          /** Perplexity on the calibration text without it. */
          unrepaired: number;
          /** How long the repair took. */
          seconds: number;
      };

export interface PruneResult {
    /** The path or the URI of the model, as it was given. */
    model: string;
    /** The path of the written file. */
    output: string;
    architecture: string;
    /** The architecture that the output is written as. */
    host: string;
    /** The method that decided what goes; null where that was given. */
    method: Method | null;
    /** All blocks of the model, in the order of the residual stream. */
    blocks: BlockInfo[];
    /** The blocks that are gone, in the order of their removal. */
    removed: Block[];
    /** Of `laco`: what the weights of layers became, such as `blk.5 = -1 blk.5 + 1 blk.6 + 1 blk.7`. */
    merged?: string[];
    /** What was done to make up for the blocks that are gone. */
    repair: RepairResult;
    /** The removals one by one; empty where all blocks went at once. */
    steps: Step[];
    /** Whether their perplexities are with a linear block in each gap, fitted to the model as it is. */
    linearGaps: boolean;
    /**
     * The type of the copy of the model that they were found in, and the perplexities of that on the calibration text;
     * null: they are of the model itself.
     */
    searched: { type: FileType; perplexity: { dense: number; pruned: number } } | null;
    /** The calibration text's name, and the number and length (in tokens) of the sequences that were used of it. */
    calibration: { name: string; sequences: number; context: number };
    /** Perplexities on the calibration text, which no repair was fitted to. */
    perplexity: { dense: number; pruned: number };
    /** Parameters of the whole model, counted in the files. */
    parameters: { dense: number; pruned: number };
    /** Sizes of the files. */
    bytes: { dense: number; pruned: number };
    /**
     * The type that the pruned model was quantized to, of how many tokens its importance matrix is, and the perplexity
     * on the calibration text of what is in the file; null where tensors have kept their types.
     */
    quantized: { type: FileType; tokens: number; perplexity: number } | null;
    /** Scores of the tasks that were asked for, in their order; `pruned`: of what is in the file. */
    tasks: { dense: TaskScores[]; pruned: TaskScores[] };
    /**
     * Speeds in the stock runtime, in rounds that the two files took in turns, each of a prompt of `tokens` tokens and
     * as many generated ones; null where no report was asked for.
     */
    speed: { device: Exclude<Device, 'rpc'>; threads: number; tokens: number; dense: Speed[]; pruned: Speed[] } | null;
    /** The workers that the search was shared among, if it was. */
    workers?: WorkerShare[];
    /** How long all of it took. */
    seconds: number;
}

/** What the figures of a search show: all that it removed, or has removed so far. */
export type Removals = Pick<
    PruneResult,
    'blocks' | 'method' | 'removed' | 'repair' | 'steps' | 'linearGaps' | 'calibration' | 'perplexity' | 'parameters'
> &
    Partial<Pick<PruneResult, 'searched'>>;

/** The perplexity of the model as it is, of what the search was made in. */
export function densePerplexity({ searched, perplexity }: Removals): number {
    return searched?.perplexity.dense ?? perplexity.dense;
}

/** The perplexity on the calibration text after all removals, before any repair. */
export function unrepairedPerplexity({ repair, perplexity }: Pick<PruneResult, 'repair' | 'perplexity'>): number {
    return repair.kind === 'none' ? perplexity.pruned : repair.unrepaired;
}

/** Says what copy of a model was searched, and what the removals made of it. */
export function formatSearched(
    { type, perplexity }: NonNullable<PruneResult['searched']>,
    linearGaps: boolean | undefined
): string {
    const [dense, pruned] = [perplexity.dense, perplexity.pruned].map((value) => formatFixed(value, 4));
    return `in a copy in ${type}; perplexity ${dense} → ${pruned} there${linearGaps ? ', with linear blocks' : ''}`;
}

/** Says what a model was quantized to, and at what loss. */
export function formatQuantized({ type, tokens, perplexity }: NonNullable<PruneResult['quantized']>): string {
    return `${type}, by the importance of ${tokens} tokens; perplexity ${formatFixed(perplexity, 4)}`;
}

/** Says what a repair did, or why there was none. */
export function formatRepair(repair: RepairResult): string {
    if (repair.kind === 'none') {
        return `none: ${repair.reason}`;
    }
    const parts = [
        ...(repair.linear.length > 0 ? [`linear blocks ${formatLinear(repair.linear).join(', ')}`] : []),
        ...(repair.refitted.length > 0 ? [`${repair.refitted.length} projections`] : [])
    ];
    return (
        `${parts.join('; ')}; fitted to ${repair.tokens} tokens ` +
        `(perplexity without ${formatFixed(repair.unrepaired, 4)})`
    );
}
