import { parseBlocks, type Block } from '../blocks.js';
import type { GgufTensor, GgufValue } from '../addon.js';
import { BlockprunerError } from '../errors.js';
import type { Gguf, GgufTensorInfo } from '../gguf.js';

/** How a pruned model is written: the architecture that stock llama.cpp loads it as, its metadata and its tensors. */
export interface Export {
    rename: [from: string, to: string][];
    set: GgufValue[];
    tensors: GgufTensor[];
}

/** A layer of the pruned model: the source layers that its two blocks come from; undefined is filler or nothing. */
export interface PlannedLayer {
    attn: number | undefined;
    ffn: number | undefined;
}

/**
 * Source architectures whose layers the host `deci` computes exactly: RMS norm, attention without Q/K norms, SwiGLU.
 * `rope`: which rows of Q and K llama.cpp rotates together, neighbours (NORM) or halves (NEOX); deci is NORM.
 */
const deciSources: Record<string, { rope: 'norm' | 'neox' }> = {
    llama: { rope: 'norm' },
    deci: { rope: 'norm' },
    qwen2: { rope: 'neox' }
};

const attnTensors = /^(attn_norm\.weight|attn_(q|k|v)\.(weight|bias)|attn_output\.(weight|bias))$/;
const ffnTensors = /^(ffn_norm\.weight|ffn_(gate|up|down)\.(weight|bias))$/;
/** A model's tensors outside its layers. */
const globalTensors = /^(token_embd|output|output_norm|rope_freqs|rope_factors_(long|short))\.weight$/;

export const supportedArchitectures = Object.keys(deciSources);

export interface Host {
    name: 'deci';
    /** why single blocks can go */
    reason: string;
    /**
     * How far the stock runtime's perplexity of the written file may be from the search's, relative: rounding. It is the
     * same arithmetic but where rows are reordered: then the sums of Q·K are taken in another order, and quantized
     * matrices, whose inputs llama.cpp rounds to 8 bits, magnify that.
     */
    tolerance: number;
    plan(blocks: readonly Block[]): Export;
}

/**
 * The host architecture of a model.
 * @throws BlockprunerError naming what is supported where there is none
 */
export function chooseHost(gguf: Gguf): Host {
    const architecture = String(gguf.metadata['general.architecture'] ?? '');
    const source = Object.hasOwn(deciSources, architecture) ? deciSources[architecture] : undefined;
    if (!source) {
        throw new BlockprunerError(`${gguf.files[0]}: models of the architecture '${architecture}' can't be written yet; supported are ${supportedArchitectures.join(', ')} (Llama, Mistral, SmolLM, Qwen2 and others that use them)`);
    }
    const unknown = gguf.tensors.find(({ name }) => {
        const { rest } = splitName(name);
        return rest === undefined ? !globalTensors.test(name) : !attnTensors.test(rest) && !ffnTensors.test(rest);
    });
    if (unknown) {
        throw new BlockprunerError(`this '${architecture}' model has a tensor that the host architecture deci doesn't know, ${unknown.name}: it can't be written without loss`);
    }
    return {
        name: 'deci',
        reason: `deci has the layers of ${architecture} with head counts and FFN sizes of their own, down to none`,
        tolerance: source.rope === 'neox' && gguf.tensors.some(({ name, type }) => name.startsWith('blk.') && !/^(f32|f16|bf16)$/.test(type)) ? 1e-2 : 1e-4,
        plan: (blocks) => planDeci(gguf, architecture, source.rope, blocks)
    };
}

const fillerKey = 'blockpruner.filler';

/** The blocks of a model that are filler of ours: they add nothing, so a search must not count them as blocks. */
export function fillerOf(gguf: Gguf): Block[] {
    return parseBlocks(String(gguf.metadata[fillerKey] ?? ''));
}

/** `blk.3.attn_q.weight` -> layer 3, rest `attn_q.weight`; neither for tensors outside the layers. */
function splitName(name: string): { layer?: number; rest?: string } {
    const [, layer, rest] = /^blk\.(\d+)\.(.+)$/.exec(name) ?? [];
    return rest === undefined ? {} : { layer: Number(layer), rest };
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

/**
 * llama.cpp's architecture `deci` (NVIDIA's Nemotron NAS models) is Llama with sizes per layer. A layer without attention
 * has no heads. A layer without FFN would lose its attention in llama.cpp, so it gets an FFN of length 1 with zero
 * weights. Layer 0 must have a head, since llama.cpp computes the head size from it: a zero one where it has none.
 * @param blocks the blocks that stay, in the order of the residual stream
 */
function planDeci(gguf: Gguf, architecture: string, rope: 'norm' | 'neox', blocks: readonly Block[]): Export {
    const { metadata, tensors } = gguf;
    const key = (name: string) => `${architecture}.${name}`;
    const number = (name: string, otherwise?: number): number => {
        const value = metadata[key(name)] ?? otherwise;
        if (typeof value !== 'number') {
            throw new BlockprunerError(`the model's metadata has no number ${key(name)}`);
        }
        return value;
    };
    const perLayer = (name: string, layer: number): number => {
        const value = metadata[key(name)];
        return Array.isArray(value) ? Number(value[layer]) : number(name);
    };
    const heads = (layer: number) => perLayer('attention.head_count', layer);
    const headsKv = (layer: number) => (metadata[key('attention.head_count_kv')] === undefined ? heads(layer) : perLayer('attention.head_count_kv', layer));
    const embedding = number('embedding_length');
    const headSize = number('attention.key_length', embedding / heads(0));
    const rotated = number('rope.dimension_count', headSize);
    if (number('attention.value_length', headSize) !== headSize) {
        throw new BlockprunerError(`this '${architecture}' model's heads have values of another length than keys: the host architecture deci needs the same`);
    }
    if (rotated !== headSize) {
        throw new BlockprunerError(`this '${architecture}' model rotates ${rotated} of ${headSize} values of a head: the host architecture deci needs all`);
    }

    const layers = packLayers(blocks);
    if (layers.length === 0) {
        throw new BlockprunerError('a model needs at least one block');
    }
    const byLayer = new Map<string, GgufTensorInfo[]>();
    for (const tensor of tensors) {
        const { layer, rest } = splitName(tensor.name);
        if (rest !== undefined) {
            const id = `${attnTensors.test(rest) ? 'attn' : 'ffn'}.${layer}`;
            byLayer.set(id, [...(byLayer.get(id) ?? []), tensor]);
        }
    }
    const copy = (kind: 'attn' | 'ffn', from: number, to: number): GgufTensor[] => (byLayer.get(`${kind}.${from}`) ?? []).map((tensor) => {
        const { rest } = splitName(tensor.name);
        const rotatedRows = rope === 'neox' && /^attn_(q|k)\./.test(rest!);
        return { name: `blk.${to}.${rest}`, file: tensor.file, from: tensor.name, ...(rotatedRows && { ropeHead: headSize }) };
    });
    // F16, never quantized: with AMX a narrow quantized matrix gave wrong results
    const zeros = (name: string, ...shape: number[]): GgufTensor => ({ name, type: shape.length === 1 ? 'f32' : 'f16', shape });
    const filler = (layer: number, kind: 'attn' | 'ffn'): GgufTensor[] => kind === 'attn'
        ? [
            zeros(`blk.${layer}.attn_norm.weight`, embedding),
            zeros(`blk.${layer}.attn_q.weight`, embedding, headSize),
            zeros(`blk.${layer}.attn_k.weight`, embedding, headSize),
            zeros(`blk.${layer}.attn_v.weight`, embedding, headSize),
            zeros(`blk.${layer}.attn_output.weight`, headSize, embedding)
        ]
        : [
            zeros(`blk.${layer}.ffn_norm.weight`, embedding),
            zeros(`blk.${layer}.ffn_gate.weight`, embedding, 1),
            zeros(`blk.${layer}.ffn_up.weight`, embedding, 1),
            zeros(`blk.${layer}.ffn_down.weight`, 1, embedding)
        ];

    return {
        rename: architecture === 'deci' ? [] : [[`${architecture}.`, 'deci.']],
        set: [
            { key: 'general.architecture', type: 'string', value: 'deci' },
            { key: 'deci.block_count', type: 'u32', value: layers.length },
            { key: 'deci.attention.head_count', type: 'u32[]', value: layers.map(({ attn }, index) => (attn !== undefined ? heads(attn) : index === 0 ? 1 : 0)) },
            { key: 'deci.attention.head_count_kv', type: 'u32[]', value: layers.map(({ attn }, index) => (attn !== undefined ? headsKv(attn) : index === 0 ? 1 : 0)) },
            { key: 'deci.feed_forward_length', type: 'u32[]', value: layers.map(({ ffn }) => (ffn !== undefined ? perLayer('feed_forward_length', ffn) : 1)) },
            { key: 'deci.attention.key_length', type: 'u32', value: headSize },
            { key: 'deci.attention.value_length', type: 'u32', value: headSize },
            { key: 'deci.rope.dimension_count', type: 'u32', value: headSize },
            { key: fillerKey, type: 'string', value: layers.flatMap(({ attn, ffn }, index) => [...(attn === undefined && index === 0 ? ['attn.0'] : []), ...(ffn === undefined ? [`ffn.${index}`] : [])]).join() }
        ],
        tensors: [
            ...tensors.filter(({ name }) => globalTensors.test(name)).map((tensor) => ({ name: tensor.name, file: tensor.file, from: tensor.name })),
            ...layers.flatMap(({ attn, ffn }, index) => [
                ...(attn !== undefined ? copy('attn', attn, index) : index === 0 ? filler(index, 'attn') : []),
                ...(ffn !== undefined ? copy('ffn', ffn, index) : filler(index, 'ffn'))
            ])
        ]
    };
}
