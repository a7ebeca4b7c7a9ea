import type { GgufPlan, GgufTensor } from '../runtime/addon.js';
import type { Block, Move } from '../runtime/blocks.js';
import type { Gguf } from '../runtime/gguf.js';
import type { ModelGraph } from '../runtime/model.js';

/** How a pruned model is written: what changes in its metadata, and its tensors. */
export type Export = Pick<GgufPlan, 'rename' | 'select' | 'set' | 'tensors'>;

/** How pruned models are written that stock llama.cpp computes as the search did. */
export interface Host {
    /** The architecture of the file. */
    name: string;
    /** Why this one, and what can go. */
    reason: string;
    /**
     * How far the stock runtime's perplexity of the written file may be from the search's, relative: rounding. It is the
     * same arithmetic but where rows are reordered: then the sums of Q·K are taken in another order, and quantized
     * matrices, whose inputs llama.cpp rounds to 8 bits, magnify that.
     */
    tolerance: number;
    /**
     * What can be removed next, so that what is left can be written.
     * @param remaining the blocks that are left, in the order of the residual stream
     */
    moves(remaining: readonly Block[]): Move[];
    /**
     * @param remaining the blocks that stay, in the order of the residual stream
     * @throws BlockprunerError if the host can't express them
     */
    plan(remaining: readonly Block[]): Export;
}

/** A model whose host is wanted. */
export interface Source {
    gguf: Gguf;
    graph: ModelGraph;
    /** What stock llama.cpp would compute of a plan's file; undefined if it couldn't load it. */
    probe: (plan: Export) => Promise<ModelGraph | undefined>;
}

/** Metadata of split files, which one file doesn't have. */
export const splitKeys = ['split.no', 'split.count', 'split.tensors.count'];

export function architectureOf(gguf: Gguf): string {
    return String(gguf.metadata['general.architecture'] ?? '');
}

/** `blk.3.attn_q.weight` -> layer 3, rest `attn_q.weight`; neither for tensors outside the layers. */
export function splitName(name: string): { layer?: number; rest?: string } {
    const [, layer, rest] = /^blk\.(\d+)\.(.+)$/.exec(name) ?? [];
    return rest === undefined ? {} : { layer: Number(layer), rest };
}

/** The model's tensors outside its layers, copied. */
export function globalTensors(gguf: Gguf): Export['tensors'] {
    return gguf.tensors
        .filter(({ name }) => splitName(name).rest === undefined)
        .map(({ name, file }) => ({ name, from: [{ file, name }] }));
}

/** A tensor of zeros. F16, never quantized: with AMX a narrow quantized matrix gave wrong results. */
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

/** Is any tensor of its layers quantized? llama.cpp rounds what it multiplies such ones with. */
export function isQuantized(gguf: Gguf): boolean {
    return gguf.tensors.some(({ name, type }) => splitName(name).rest !== undefined && !/^(f32|f16|bf16)$/.test(type));
}

/** A layer of a pruned model: the source layers that its two blocks come from; undefined is filler or nothing. */
interface PlannedLayer {
    attn: number | undefined;
    ffn: number | undefined;
}

/**
 * Packs blocks, in the order of the residual stream, into layers of one attention and one FFN: an attention block and the
 * FFN block after it share a layer, each other block has a layer of its own.
 */
export function packLayers(blocks: readonly Block[]): PlannedLayer[] {
    const layers: PlannedLayer[] = [];
    for (const { kind, layer } of blocks) {
        const last = layers.at(-1);
        if (kind === 'attn') {
            layers.push({ attn: layer, ffn: undefined });
        } else if (last && last.ffn === undefined) {
            last.ffn = layer;
        } else {
            layers.push({ attn: undefined, ffn: layer });
        }
    }
    return layers;
}

/** The blocks of which each can go by itself, as long as one stays. */
export function singleMoves(remaining: readonly Block[]): Move[] {
    return remaining.length > 1 ? remaining.map((block) => [block]) : [];
}
