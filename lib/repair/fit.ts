import { describeSequences } from '../calibration/calibration.js';
import { BlockprunerError } from '../errors.js';
import { formatBlock, gapsOf, type Block, type Removal } from '../runtime/blocks.js';
import type { Gguf } from '../runtime/gguf.js';
import type { Model, RepairFit, RunOptions } from '../runtime/model.js';
import type { Sequences } from '../runtime/sequences.js';
import { keepMatrices } from './journal.js';

/**
 * What is done, without training, to make up for the blocks that are gone.
 *
 * - `none`: nothing. With the method `blockpruner`, this is the paper.
 * - `linear`: a linear block, one square matrix without KV cache, goes into each gap. Nothing else changes.
 * - `adjacent`: also, the output projections of the blocks before a gap are fitted.
 * - `all`: also, those of all blocks from there on, and the input projections behind the first gap.
 *
 * Where the host has no linear blocks, `adjacent` and `all` do without.
 */
export type Repair = 'none' | 'linear' | 'adjacent' | 'all';

export const repairs: readonly Repair[] = ['none', 'linear', 'adjacent', 'all'];

/**
 * Fits a repair to the gaps that removed blocks leave, by ridge regression in closed form, so that the residual stream
 * of the pruned model follows that of the dense one. Neural Block Linearization (Erdogan et al. 2025, arXiv 2505.21077)
 * fits linear blocks in the place of single attention blocks. Here what goes in is the pruned model's own stream, so
 * that each fit also corrects what is left of the errors before it.
 *
 * Memory on the host: 8 bytes for each token and value of the residual stream, and the matrices that are found, F32; on
 * the device, for a matrix of n_in columns and n_out rows, 4·n_in² + 32·n_in·n_out bytes.
 * @param blocks all blocks of the model, in the order of the residual stream
 * @param linear whether linear blocks can be put in; where the gaps are to be empty, none are
 * @param correction of linear blocks, see {@link RepairFit}
 * @param options.journal the folder in which what is found is kept, and what it depends on beside what is given here
 * @param type the tensor type that linear blocks are to be written in
 * @throws BlockprunerError if nothing of the model can be fitted so
 */
export async function fitRepair(
    model: Model,
    blocks: readonly Block[],
    removed: readonly Block[],
    sequences: Sequences,
    {
        repair,
        linear,
        correction,
        type
    }: { repair: Exclude<Repair, 'none'>; linear: boolean; correction?: RepairFit['correction']; type: string },
    {
        journal,
        ...options
    }: RunOptions & { journal?: { folder: string; inputs: Record<string, string> } | undefined } = {}
): Promise<Pick<Removal, 'linear' | 'changes'>> {
    const gaps = gapsOf(blocks, removed);
    const filled = gaps.filter((gap) => linear && gap.linear);
    const wanted = gaps.map((gap) => filled.includes(gap));
    const fit = { linear: wanted, correction, refit: repair === 'linear' ? 'none' : repair } as const;
    const inputs = {
        ...{ text: describeSequences(sequences), removed: removed.map(formatBlock).join(' ') },
        ...{ repair, linear: wanted.join(' '), correction: String(correction) }
    };
    const kept = journal && keepMatrices(journal.folder, { ...journal.inputs, ...inputs });
    const found = await model.fitRepair(
        sequences,
        gaps.map((gap) => gap.removed),
        fit,
        { ...options, kept }
    );
    if (found.linear.length + found.refits.length === 0) {
        throw new BlockprunerError(
            'UNSUPPORTED',
            'no repair is possible: no block that could be fitted has projections whose change the graph shows'
        );
    }
    return {
        linear: found.linear.map((weights, i) => ({ before: filled[i]!.before, weights, type })),
        changes: new Map(found.refits.map(({ tensor, change, importance }) => [tensor, { change, importance }]))
    };
}

/** The tensor type of linear blocks by default: F32 in a model of that type, Q8_0 in a quantized one, else F16. */
export function usualType(gguf: Gguf, embedding: number): string {
    const types = new Set(gguf.tensors.filter(({ shape }) => shape.length > 1).map(({ type }) => type));
    if ([...types].every((type) => type === 'f32')) {
        return 'f32';
    }
    const isQuantized = [...types].some((type) => !/^(f32|f16|bf16)$/.test(type));
    return isQuantized && embedding % 32 === 0 ? 'q8_0' : 'f16';
}
