import type { Block } from '../runtime/blocks.js';
import type { GgufTensor } from '../runtime/addon.js';
import { fillerKey } from '../runtime/gguf.js';
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

const attnTensors = [
    'attn_norm.weight',
    'attn_q.weight',
    'attn_k.weight',
    'attn_v.weight',
    'attn_q_norm.weight',
    'attn_k_norm.weight',
    'attn_output.weight'
];
const ffnTensors = ['ffn_norm.weight', 'ffn_gate.weight', 'ffn_up.weight', 'ffn_down.weight'];

/**
 * The host that is llama.cpp's architecture `openelm`. It is like Llama, but norms Q and K, has NEOX rope, Q, K and V
 * in one matrix, and sizes of its own for each layer; its output projection is the embedding. That is what Qwen3
 * computes where the embedding is shared, once Q, K and V are joined.
 * @returns why openelm is no host of the model, if it isn't
 */
export async function openelmHost({ gguf, graph, probe }: Source): Promise<Host | string> {
    const { metadata, tensors } = gguf;
    const architecture = architectureOf(gguf);
    const none = (why: string) => `not openelm, which ${why}`;
    if (architecture !== 'qwen3') {
        // Joined matrices make another graph of the same arithmetic, so attention can't be compared as FFNs are.
        return none('norms Q and K before it rotates them: that is known of Qwen3 only');
    }
    const number = (name: string): number | undefined => {
        const value = metadata[`${architecture}.${name}`];
        return typeof value === 'number' ? value : undefined;
    };
    const names = new Set(tensors.map(({ name }) => name));
    const layers = graph.blocks.filter(({ kind }) => kind === 'attn').map(({ layer }) => layer);
    const expected = new Set(
        layers.flatMap((layer) => [...attnTensors, ...ffnTensors].map((rest) => `blk.${layer}.${rest}`))
    );
    if (
        [...expected].some((name) => !names.has(name)) ||
        tensors.some(({ name }) => splitName(name).rest !== undefined && !expected.has(name))
    ) {
        return none('has other tensors (norms of Q and K, no biases)');
    }
    if (names.has('output.weight')) {
        return none('shares the output with the embedding, which this model does not');
    }
    const byName = new Map(tensors.map((tensor) => [tensor.name, tensor]));
    const fusible = layers.every(
        (layer) =>
            new Set(['q', 'k', 'v'].map((which) => byName.get(`blk.${layer}.attn_${which}.weight`)!.type)).size === 1
    );
    if (!fusible) {
        return none('joins Q, K and V, which have different types in this file (a file quantized to Q8_0 or F16 fits)');
    }
    const embedding = number('embedding_length'),
        heads = number('attention.head_count'),
        headsKv = number('attention.head_count_kv') ?? heads,
        ffn = number('feed_forward_length');
    if (embedding === undefined || heads === undefined || headsKv === undefined || ffn === undefined) {
        return none("needs the model's sizes, the same in each layer");
    }
    const headSize = number('attention.key_length') ?? embedding / heads;
    const sequential = graph.blocks.every(
        ({ kind, direct, parallel, reads, rope }) =>
            direct && !parallel && reads.length === 0 && (kind === 'ffn' || rope === 'neox')
    );
    if (
        !sequential ||
        (number('attention.value_length') ?? headSize) !== headSize ||
        (number('rope.dimension_count') ?? headSize) !== headSize
    ) {
        return none('has other attention');
    }

    const plan = (remaining: readonly Block[]): Plan => {
        const packed = packLayers(remaining);
        const copy = (from: number, to: number, rests: string[]): GgufTensor[] =>
            rests.map((rest) => {
                const { name, file } = byName.get(`blk.${from}.${rest}`)!;
                return { name: `blk.${to}.${rest}`, from: [{ file, name }] };
            });
        const attention = (from: number | undefined, to: number): GgufTensor[] =>
            from !== undefined
                ? [
                      ...copy(from, to, [
                          'attn_norm.weight',
                          'attn_q_norm.weight',
                          'attn_k_norm.weight',
                          'attn_output.weight'
                      ]),
                      {
                          name: `blk.${to}.attn_qkv.weight`,
                          from: ['q', 'k', 'v']
                              .map((which) => byName.get(`blk.${from}.attn_${which}.weight`)!)
                              .map(({ name, file }) => ({ file, name }))
                      }
                  ]
                : [
                      // one head of zeros
                      zeros(`blk.${to}.attn_norm.weight`, embedding),
                      zeros(`blk.${to}.attn_qkv.weight`, embedding, 3 * headSize),
                      zeros(`blk.${to}.attn_q_norm.weight`, headSize),
                      zeros(`blk.${to}.attn_k_norm.weight`, headSize),
                      zeros(`blk.${to}.attn_output.weight`, headSize, embedding)
                  ];
        const feedForward = (from: number | undefined, to: number): GgufTensor[] =>
            from !== undefined ? copy(from, to, ffnTensors) : fillerFfn(to, embedding);
        return {
            rename: [[`${architecture}.`, 'openelm.']],
            select: [],
            set: [
                { key: 'general.architecture', type: 'string', value: 'openelm' },
                { key: 'openelm.block_count', type: 'u32', value: packed.length },
                {
                    key: 'openelm.attention.head_count',
                    type: 'u32[]',
                    value: packed.map(({ attn }) => (attn !== undefined ? heads : 1))
                },
                {
                    key: 'openelm.attention.head_count_kv',
                    type: 'u32[]',
                    value: packed.map(({ attn }) => (attn !== undefined ? headsKv : 1))
                },
                {
                    key: 'openelm.feed_forward_length',
                    type: 'u32[]',
                    value: packed.map((layer) => (layer.ffn !== undefined ? ffn : 1))
                },
                { key: 'openelm.attention.key_length', type: 'u32', value: headSize },
                { key: 'openelm.attention.value_length', type: 'u32', value: headSize },
                { key: 'openelm.rope.dimension_count', type: 'u32', value: headSize },
                {
                    key: fillerKey,
                    type: 'string',
                    value: packed
                        .flatMap(({ attn, ffn: from }, index) => [
                            ...(attn === undefined ? [`attn.${index}`] : []),
                            ...(from === undefined ? [`ffn.${index}`] : [])
                        ])
                        .join()
                }
            ],
            tensors: [
                ...globalTensors(gguf),
                ...packed.flatMap(({ attn, ffn: from }, index) => [
                    ...attention(attn, index),
                    ...feedForward(from, index)
                ])
            ]
        };
    };

    const hosted = await probe(plan(graph.blocks));
    const ffns = (blocks: typeof graph.blocks) =>
        blocks
            .filter(({ kind }) => kind === 'ffn')
            .map(({ signature }) => signature)
            .join();
    if (!hosted || hosted.outerSignature !== graph.outerSignature || ffns(hosted.blocks) !== ffns(graph.blocks)) {
        return none('computes something else of these tensors');
    }
    return {
        name: 'openelm',
        reason:
            'single blocks can go: openelm computes the same, with Q, K and V joined, ' +
            'and its layers have head counts and FFN sizes of their own',
        tolerance: isQuantized(gguf) ? 1e-2 : 1e-4,
        linear: false,
        moves: singleMoves,
        plan
    };
}
