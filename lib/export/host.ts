import type { GgufPlan, GgufTensor } from '../runtime/addon.js';
import type { Block, LinearBlock, Move } from '../runtime/blocks.js';
import type { Gguf } from '../runtime/gguf.js';
import type { ModelGraph } from '../runtime/model.js';

/** How the file of a pruned model will look: what changes in its metadata, and its tensors. */
export type Plan = Pick<GgufPlan, 'rename' | 'select' | 'set' | 'tensors'>;

/** A way to write pruned models so that stock llama.cpp computes what the search did. */
export interface Host {
    /** The architecture of the file. */
    name: string;
    /** Why this architecture, and what can go. */
    reason: string;
    /**
     * How far the stock runtime's perplexity of the written file may be from the search's, as a share of it. Rounding
     * is all that makes a difference, since the arithmetic is the same. Only where rows are reordered are the sums of
     * Q·K taken in another order, and quantized matrices, whose inputs llama.cpp rounds to 8 bits, magnify that.
     */
    tolerance: number;
    /** Whether linear blocks can be put into the stream. */
    readonly linear: boolean;
    /**
     * Gives what can be removed next so that what is left can be written.
     * @param remaining the blocks that are left, in the order of the residual stream
     */
    moves(remaining: readonly Block[]): Move[];
    /**
     * Plans the file of some of the model's blocks.
     * @param remaining the blocks that stay, in the order of the residual stream
     * @param linear blocks to put into the stream, if the host can write such blocks
     * @throws BlockprunerError if the host can't express them
     */
    plan(remaining: readonly Block[], linear?: readonly LinearBlock[]): Plan;
}

/** A model for which a host is looked for. */
export interface Source {
    gguf: Gguf;
    graph: ModelGraph;
    /** Shows what stock llama.cpp would compute of a planned file; undefined if it couldn't load it. */
    probe: (plan: Plan) => Promise<ModelGraph | undefined>;
}

/** The metadata keys that only the parts of a split model have. */
export const splitKeys = ['split.no', 'split.count', 'split.tensors.count'];

export function architectureOf(gguf: Gguf): string {
    return String(gguf.metadata['general.architecture'] ?? '');
}

/** Splits `blk.3.attn_q.weight` into layer 3 and the rest, `attn_q.weight`; a tensor outside the layers has neither. */
export function splitName(name: string): { layer?: number; rest?: string } {
    const [, layer, rest] = /^blk\.(\d+)\.(.+)$/.exec(name) ?? [];
    return rest === undefined ? {} : { layer: Number(layer), rest };
}

/** Copies of the model's tensors outside its layers. */
export function globalTensors(gguf: Gguf): Plan['tensors'] {
    return gguf.tensors
        .filter(({ name }) => splitName(name).rest === undefined)
        .map(({ name, file }) => ({ name, from: [{ file, name }] }));
}

/** A tensor of zeros. A matrix is F16, never quantized: with AMX, narrow quantized matrices gave wrong results. */
export function zeros(name: string, ...shape: number[]): GgufTensor {
    return { name, type: shape.length === 1 ? 'f32' : 'f16', shape };
}

/** An FFN of length 1 that adds nothing, for a layer that must have one. */
export function fillerFfn(layer: number, embedding: number): GgufTensor[] {
    return [
        zeros(`blk.${layer}.ffn_norm.weight`, embedding),
        zeros(`blk.${layer}.ffn_gate.weight`, embedding, 1),
        zeros(`blk.${layer}.ffn_up.weight`, embedding, 1),
        zeros(`blk.${layer}.ffn_down.weight`, 1, embedding)
    ];
}

/** Whether a tensor of the layers is quantized. llama.cpp rounds what it multiplies such tensors with. */
export function isQuantized(gguf: Gguf): boolean {
    return gguf.tensors.some(({ name, type }) => splitName(name).rest !== undefined && !/^(f32|f16|bf16)$/.test(type));
}

/**
 * A layer of a pruned model: the source layers that its blocks come from, or the linear block that is put there. It has
 * an attention block, a linear one or neither; what is undefined is filler, or isn't there.
 */
export interface PlannedLayer {
    attn?: number;
    linear?: number | LinearBlock;
    ffn?: number;
}

/**
 * Packs blocks, in the order of the residual stream, into layers of one attention or linear block and one FFN block.
 * Such a block shares a layer with the FFN block right after it; each other block gets a layer of its own.
 */
export function packLayers(blocks: readonly (Block | LinearBlock)[]): PlannedLayer[] {
    const layers: PlannedLayer[] = [];
    for (const block of blocks) {
        const last = layers.at(-1);
        if ('weights' in block) {
            layers.push({ linear: block });
        } else if (block.kind === 'attn') {
            layers.push({ attn: block.layer });
        } else if (block.kind === 'linear') {
            layers.push({ linear: block.layer });
        } else if (last && last.ffn === undefined) {
            last.ffn = block.layer;
        } else {
            layers.push({ ffn: block.layer });
        }
    }
    return layers;
}

/** The moves of a host in which any single block can go, as long as one stays. */
export function singleMoves(remaining: readonly Block[]): Move[] {
    return remaining.length > 1 ? remaining.map((block) => [block]) : [];
}
