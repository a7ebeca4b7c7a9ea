import { BlockprunerError } from '../errors.js';
import type { GgufTensor } from '../runtime/addon.js';
import { formatBlock, SkipSet, type Block, type LinearBlock } from '../runtime/blocks.js';
import { fillerKey, type Gguf, type GgufTensorInfo } from '../runtime/gguf.js';
import {
    architectureOf,
    fillerFfn,
    globalTensors,
    isQuantized,
    packLayers,
    singleMoves,
    splitName,
    zeros,
    type Host,
    type Plan,
    type PlannedLayer,
    type Source
} from './host.js';

const attnTensors = /^(attn_norm\.weight|attn_(q|k|v)\.(weight|bias)|attn_output\.(weight|bias))$/;
const ffnTensors = /^(ffn_norm\.weight|ffn_(gate|up|down)\.(weight|bias))$/;

/**
 * The host that is llama.cpp's architecture `deci` (NVIDIA's Nemotron NAS models): Llama with sizes of its own for each
 * layer, down to none. It hosts every model whose graph is the one that `deci` computes of the same tensors, whatever
 * the model's architecture is called. deci rotates neighbours (NORM rope); where the model rotates halves of a head
 * (NEOX rope), the rows of Q and K are reordered.
 * @returns why deci is no host of the model, if it isn't
 */
export async function deciHost({ gguf, graph, probe }: Source): Promise<Host | string> {
    const unknown = gguf.tensors.find(({ name }) => {
        const { rest } = splitName(name);
        return rest !== undefined && !attnTensors.test(rest) && !ffnTensors.test(rest);
    });
    if (unknown) {
        return `not deci, which has no ${unknown.name}`;
    }
    const ropes = new Set(graph.blocks.filter(({ kind }) => kind === 'attn').map(({ rope }) => rope));
    const [rope = 'norm'] = ropes; // without attention, nothing is rotated
    if (ropes.size > 1 || (rope !== 'norm' && rope !== 'neox')) {
        return 'not deci, which has rotary positions in each layer';
    }
    let whole: Plan;
    try {
        whole = planDeci(gguf, rope, graph.blocks);
    } catch (error) {
        if (!(error instanceof BlockprunerError)) {
            throw error;
        }
        return `not deci: ${error.message}`;
    }
    const hosted = await probe(whole);
    const sequential = graph.blocks.every(({ direct, parallel, reads }) => direct && !parallel && reads.length === 0);
    const same =
        sequential &&
        hosted !== undefined &&
        hosted.outerSignature === graph.outerSignature &&
        hosted.blocks.map(({ signature }) => signature).join() ===
            graph.blocks.map(({ signature }) => signature).join();
    if (!same) {
        return 'not deci, which computes something else of these tensors';
    }
    return {
        name: 'deci',
        reason:
            'single blocks can go: deci computes the same, ' +
            'and its layers have head counts and FFN sizes of their own, down to none',
        tolerance: rope === 'norm' ? 1e-4 : isQuantized(gguf) ? 1e-2 : 1e-3,
        linear: true,
        moves: singleMoves,
        plan: (remaining, linear) => planDeci(gguf, rope, remaining, linear)
    };
}

/**
 * Plans a `deci` file of some blocks. A layer without attention has no heads. A layer with heads, however many, but
 * without heads of keys and values is a linear block: its output projection is that block's one matrix. A layer without
 * FFN would lose its attention in llama.cpp, so it gets an FFN of length 1 with zero weights. Layer 0 must have a head,
 * since llama.cpp computes the head size from it, so it gets a zero one where it has none.
 */
function planDeci(
    gguf: Gguf,
    rope: 'norm' | 'neox',
    blocks: readonly Block[],
    inserted: readonly LinearBlock[] = []
): Plan {
    const { metadata, tensors } = gguf;
    const architecture = architectureOf(gguf);
    const key = (name: string) => `${architecture}.${name}`;
    const number = (name: string, otherwise?: number): number => {
        const value = metadata[key(name)] ?? otherwise;
        if (typeof value !== 'number') {
            throw new BlockprunerError('UNSUPPORTED', `the model's metadata has no number ${key(name)}`);
        }
        return value;
    };
    const perLayer = (name: string, layer: number): number => {
        const value = metadata[key(name)];
        return Array.isArray(value) ? Number(value[layer]) : number(name);
    };
    const heads = (layer: number) => perLayer('attention.head_count', layer);
    const headsKv = (layer: number) =>
        metadata[key('attention.head_count_kv')] === undefined
            ? heads(layer)
            : perLayer('attention.head_count_kv', layer);
    const embedding = number('embedding_length');
    const headSize = number('attention.key_length', embedding / heads(0));
    const rotated = number('rope.dimension_count', headSize);
    if (number('attention.value_length', headSize) !== headSize) {
        throw new BlockprunerError('UNSUPPORTED', "the model's heads have values of another length than keys");
    }
    if (rotated !== headSize) {
        throw new BlockprunerError(
            'UNSUPPORTED',
            `the model rotates ${rotated} of ${headSize} values of a head: deci rotates all`
        );
    }

    if (blocks.length === 0) {
        throw new BlockprunerError('UNSUPPORTED', 'a model needs at least one block');
    }
    const layers = packLayers(insertLinear(blocks, inserted));
    const startsLinear = layers[0]!.linear !== undefined;
    if (startsLinear && layers.every(({ attn }) => attn === undefined)) {
        // Without any attention, llama.cpp's graph would not read its mask, and llama.cpp aborts where it sets that.
        layers.unshift({});
    }
    const hasZeroHead = (index: number) =>
        index === 0 && layers[0]!.attn === undefined && layers[0]!.linear === undefined;
    const byBlock = new Map<string, GgufTensorInfo[]>();
    for (const tensor of tensors) {
        const { layer, rest } = splitName(tensor.name);
        if (rest !== undefined) {
            const id = `${attnTensors.test(rest) ? 'attn' : 'ffn'}.${layer}`;
            byBlock.set(id, [...(byBlock.get(id) ?? []), tensor]);
        }
    }
    const copy = (kind: 'attn' | 'ffn', from: number, to: number): GgufTensor[] =>
        (byBlock.get(`${kind}.${from}`) ?? []).map(({ name, file }) => {
            const { rest } = splitName(name);
            const rotatedRows = rope === 'neox' && /^attn_(q|k)\./.test(rest!);
            return { name: `blk.${to}.${rest}`, from: [{ file, name }], ...(rotatedRows && { ropeHead: headSize }) };
        });
    const zeroHead = (layer: number): GgufTensor[] => [
        zeros(`blk.${layer}.attn_norm.weight`, embedding),
        zeros(`blk.${layer}.attn_q.weight`, embedding, headSize),
        zeros(`blk.${layer}.attn_k.weight`, embedding, headSize),
        zeros(`blk.${layer}.attn_v.weight`, embedding, headSize),
        zeros(`blk.${layer}.attn_output.weight`, headSize, embedding)
    ];

    const linear = (block: number | LinearBlock, layer: number): GgufTensor[] => {
        if (typeof block === 'number') {
            return copy('attn', block, layer);
        }
        const { weights, type } = block;
        if (weights.length !== embedding ** 2) {
            throw new BlockprunerError(
                'ARGUMENT',
                `a linear block of this model needs ${embedding} × ${embedding} weights, not ${weights.length}`
            );
        }
        const norm = new Float32Array(embedding).fill(1);
        return [
            { name: `blk.${layer}.attn_norm.weight`, type: 'f32', shape: [embedding], data: norm },
            { name: `blk.${layer}.attn_output.weight`, type, shape: [embedding, embedding], data: weights }
        ];
    };
    const attention = (planned: PlannedLayer, layer: number): GgufTensor[] => {
        if (planned.attn !== undefined) {
            return copy('attn', planned.attn, layer);
        }
        if (planned.linear !== undefined) {
            return linear(planned.linear, layer);
        }
        return hasZeroHead(layer) ? zeroHead(layer) : [];
    };
    const headCount = (planned: PlannedLayer, layer: number): number => {
        if (planned.attn !== undefined) {
            return heads(planned.attn);
        }
        return planned.linear !== undefined ? heads(0) : Number(hasZeroHead(layer));
    };

    return {
        rename: architecture === 'deci' ? [] : [[`${architecture}.`, 'deci.']],
        select: [],
        set: [
            { key: 'general.architecture', type: 'string', value: 'deci' },
            { key: 'deci.block_count', type: 'u32', value: layers.length },
            {
                key: 'deci.attention.head_count',
                type: 'u32[]',
                value: layers.map(headCount)
            },
            {
                key: 'deci.attention.head_count_kv',
                type: 'u32[]',
                value: layers.map(({ attn }, layer) =>
                    attn !== undefined ? headsKv(attn) : Number(hasZeroHead(layer))
                )
            },
            {
                key: 'deci.feed_forward_length',
                type: 'u32[]',
                value: layers.map(({ ffn }) => (ffn !== undefined ? perLayer('feed_forward_length', ffn) : 1))
            },
            { key: 'deci.attention.key_length', type: 'u32', value: headSize },
            { key: 'deci.attention.value_length', type: 'u32', value: headSize },
            { key: 'deci.rope.dimension_count', type: 'u32', value: headSize },
            {
                key: fillerKey,
                type: 'string',
                value: layers
                    .flatMap(({ ffn }, layer) => [
                        ...(hasZeroHead(layer) ? ['attn.0'] : []),
                        ...(ffn === undefined ? [`ffn.${layer}`] : [])
                    ])
                    .join()
            }
        ],
        tensors: [
            ...globalTensors(gguf),
            ...layers.flatMap((planned, layer) => [
                ...attention(planned, layer),
                ...(planned.ffn !== undefined ? copy('ffn', planned.ffn, layer) : fillerFfn(layer, embedding))
            ])
        ]
    };
}

/** Puts linear blocks into the stream. */
function insertLinear(blocks: readonly Block[], inserted: readonly LinearBlock[]): (Block | LinearBlock)[] {
    const staying = new SkipSet(blocks);
    const lost = inserted.find(({ before }) => before && !staying.has(before));
    if (lost) {
        throw new BlockprunerError(
            'ARGUMENT',
            `a linear block can't stand before ${formatBlock(lost.before!)}, which is not among the blocks that stay`
        );
    }
    const standingBefore = (block: Block) =>
        inserted.filter(({ before }) => before && formatBlock(before) === formatBlock(block));
    return [
        ...blocks.flatMap((block) => [...standingBefore(block), block]),
        ...inserted.filter(({ before }) => before === undefined)
    ];
}
