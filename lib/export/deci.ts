import { BlockprunerError } from '../errors.js';
import type { GgufTensor } from '../runtime/addon.js';
import type { Block } from '../runtime/blocks.js';
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
    type Plan,
    type Host,
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
    const [rope] = ropes;
    if (ropes.size !== 1 || (rope !== 'norm' && rope !== 'neox')) {
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
        moves: singleMoves,
        plan: (remaining) => planDeci(gguf, rope, remaining)
    };
}

/**
 * Plans a `deci` file of some blocks. A layer without attention has no heads. A layer without FFN would lose its
 * attention in llama.cpp, so it gets an FFN of length 1 with zero weights. Layer 0 must have a head, since llama.cpp
 * computes the head size from it, so it gets a zero one where it has none.
 */
function planDeci(gguf: Gguf, rope: 'norm' | 'neox', blocks: readonly Block[]): Plan {
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

    const layers = packLayers(blocks);
    if (layers.length === 0) {
        throw new BlockprunerError('UNSUPPORTED', 'a model needs at least one block');
    }
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

    return {
        rename: architecture === 'deci' ? [] : [[`${architecture}.`, 'deci.']],
        select: [],
        set: [
            { key: 'general.architecture', type: 'string', value: 'deci' },
            { key: 'deci.block_count', type: 'u32', value: layers.length },
            {
                key: 'deci.attention.head_count',
                type: 'u32[]',
                value: layers.map(({ attn }, index) => (attn !== undefined ? heads(attn) : index === 0 ? 1 : 0))
            },
            {
                key: 'deci.attention.head_count_kv',
                type: 'u32[]',
                value: layers.map(({ attn }, index) => (attn !== undefined ? headsKv(attn) : index === 0 ? 1 : 0))
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
                    .flatMap(({ attn, ffn }, index) => [
                        ...(attn === undefined && index === 0 ? ['attn.0'] : []),
                        ...(ffn === undefined ? [`ffn.${index}`] : [])
                    ])
                    .join()
            }
        ],
        tensors: [
            ...globalTensors(gguf),
            ...layers.flatMap(({ attn, ffn }, index) => [
                ...(attn !== undefined ? copy('attn', attn, index) : index === 0 ? zeroHead(index) : []),
                ...(ffn !== undefined ? copy('ffn', ffn, index) : fillerFfn(index, embedding))
            ])
        ]
    };
}
