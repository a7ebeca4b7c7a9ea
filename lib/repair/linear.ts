import { SkipSet, type Block, type LinearBlock } from '../runtime/blocks.js';
import type { Gguf } from '../runtime/gguf.js';
import type { Model, RunOptions } from '../runtime/model.js';
import type { Sequences } from '../runtime/sequences.js';

/**
 * λ of the ridge regression, in shares of the mean square of what goes in. Ten times as much is 1 to 2 % worse in
 * perplexity.
 */
const RIDGE = 0.03;

/** Neighbouring blocks that are gone. */
interface Gap {
    removed: Block[];
    /** The block behind them that stays; undefined: they were the last. */
    before: Block | undefined;
}

/**
 * Fits a linear block to each gap that removed blocks leave, x + W·RMSNorm(x), in closed form, so that the residual
 * stream of the pruned model follows that of the dense one. Nothing else of the model changes. Neural Block
 * Linearization (Erdogan et al. 2025, arXiv 2505.21077) does so for single attention blocks. Here what goes in is the
 * pruned model's own stream, so that a linear block also corrects what is left of the error of the gaps before it.
 *
 * Memory on the host: 8 bytes for each token and value of the residual stream; for the sums on the device, 40 bytes for
 * each element of W.
 * @param blocks all blocks of the model, in the order of the residual stream
 * @param type the tensor type that the matrices are to be written in
 */
export async function fitLinearBlocks(
    model: Model,
    blocks: readonly Block[],
    removed: readonly Block[],
    sequences: Sequences,
    type: string,
    options?: RunOptions
): Promise<LinearBlock[]> {
    const gaps = gapsOf(blocks, removed);
    const weights = await model.fitLinear(
        sequences,
        gaps.map((gap) => gap.removed),
        RIDGE,
        options
    );
    return gaps.map(({ before }, i) => ({ before, weights: weights[i]!, type }));
}

/** The gaps that removed blocks leave, in the order of the residual stream. */
export function gapsOf(blocks: readonly Block[], removed: readonly Block[]): Gap[] {
    const gone = new SkipSet(removed);
    const gaps: Gap[] = [];
    let open: Gap | undefined;
    for (const block of blocks) {
        if (!gone.has(block)) {
            if (open) {
                open.before = block;
            }
            open = undefined;
        } else if (open) {
            open.removed.push(block);
        } else {
            open = { removed: [block], before: undefined };
            gaps.push(open);
        }
    }
    return gaps;
}

/**
 * The tensor type that linear blocks are written in by default: Q8_0 in a quantized model, which costs nothing that can
 * be measured, else the type of the model's matrices.
 */
export function usualType(gguf: Gguf, embedding: number): string {
    const types = new Set(gguf.tensors.filter(({ shape }) => shape.length > 1).map(({ type }) => type));
    if ([...types].every((type) => type === 'f32')) {
        return 'f32';
    }
    const isQuantized = [...types].some((type) => !/^(f32|f16|bf16)$/.test(type));
    return isQuantized && embedding % 32 === 0 ? 'q8_0' : 'f16';
}
