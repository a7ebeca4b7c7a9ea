import { BlockprunerError } from '../errors.js';
import type { GgufTensor } from '../runtime/addon.js';
import { formatBlock, layersOf, SkipSet, without, type Block, type BlockKind, type Move } from '../runtime/blocks.js';
import { fillerKey, fillerOf } from '../runtime/gguf.js';
import { architectureOf, globalTensors, splitName, type Plan, type Host, type Source } from './host.js';

/**
 * What decides what the attention, or the FFN, of a layer of a written file computes. `tensors`: its tensors and the
 * metadata of its own, which all go with it to another place. `position`: the layer's number, so that only one of the
 * same kind can take its place.
 */
type DecidedBy = 'tensors' | 'position';

/** The kinds of blocks that such a file has: linear ones have no place in it. */
type Kind = Exclude<BlockKind, 'linear'>;

/** The blocks of the source that a layer of a pruned model has. */
type Layer = Block[];

/** The metadata of the FFN among the keys that have a value for each layer. All others belong to the attention. */
const ffnKeys = /^[^.]+\.(feed_forward|expert|swiglu|moe|xielu|router)/;

/**
 * The host that is the model's own architecture. Whole layers can go. Where the attention and the FFN of different
 * layers can be paired, any two neighbours can go, an attention and an FFN: the two kinds still alternate in what is
 * left, so it can be packed into layers. What belongs to a layer and what to its place is found by looking at what
 * llama.cpp makes of such files.
 * @returns why the model can't be written so, if it can't
 */
export async function ownHost(source: Source): Promise<Host | string> {
    const { graph } = source;
    const layers = layersOf(graph.blocks);
    if (layers.some((blocks, index) => blocks.some(({ layer }) => layer !== index))) {
        return 'not its own architecture, since its blocks are not in the order of its layers';
    }
    if (graph.blocks.some(({ kind }) => kind === 'linear')) {
        return 'not its own architecture, since it has linear blocks, which only deci places freely';
    }
    const indirect = graph.blocks.find(({ direct }) => !direct);
    if (indirect) {
        const where = formatBlock(indirect);
        return `not its own architecture, since its residual stream is scaled or normalized beside ${where}`;
    }
    const pairs =
        layers.every(
            ([attn, ffn], index) => layers[index]!.length === 2 && attn!.kind === 'attn' && ffn!.kind === 'ffn'
        ) &&
        graph.blocks.every(({ parallel, reads, layer }) => !parallel && !reads.some((block) => block.layer === layer));
    const pinned = graph.blocks.flatMap(({ reads, layer }) => reads.filter((block) => block.layer !== layer));

    // The first of these that llama.cpp confirms is taken: the more the tensors decide, the more can go.
    const guesses: Record<Kind, DecidedBy>[] = [
        { attn: 'tensors', ffn: 'tensors' },
        ...(pairs
            ? [{ attn: 'tensors', ffn: 'position' } as const, { attn: 'position', ffn: 'tensors' } as const]
            : []),
        { attn: 'position', ffn: 'position' }
    ];
    for (const decidedBy of guesses) {
        const host = new OwnHost(source, pairs, pinned, decidedBy);
        if (await host.isConfirmed()) {
            return {
                name: architectureOf(source.gguf),
                reason: host.reason,
                tolerance: 1e-4,
                linear: false,
                moves: (remaining) => host.moves(remaining),
                plan: (remaining) => host.plan(remaining)
            };
        }
    }
    return (
        'not its own architecture, since llama.cpp computes something else of its layers in other places, ' +
        'or with another number of them'
    );
}

class OwnHost {
    readonly #layers: Layer[];
    /** By block, the signature of what it computes. */
    readonly #signatures: Map<string, string>;
    /** How many different signatures there are. */
    readonly #kinds: number;
    /** By kind and position, the signature that a layer's block must have, where the position decides. */
    readonly #atPosition: Record<Kind, (string | undefined)[]>;

    /**
     * @param pairs whether the attention and the FFN of different layers can be paired
     * @param pinned blocks that must stay, since blocks of other layers read from them
     */
    constructor(
        private readonly source: Source,
        private readonly pairs: boolean,
        private readonly pinned: readonly Block[],
        private readonly decidedBy: Record<Kind, DecidedBy>
    ) {
        const { blocks } = source.graph;
        this.#layers = layersOf(blocks);
        this.#signatures = new Map(blocks.map((block) => [formatBlock(block), block.signature]));
        this.#kinds = new Set(this.#signatures.values()).size;
        const at = (kind: Kind) =>
            this.#layers.map((layer) => {
                const block = layer.find((candidate) => candidate.kind === kind);
                return block && this.#signature(block);
            });
        this.#atPosition = { attn: at('attn'), ffn: at('ffn') };
    }

    get reason(): string {
        const what = this.pairs
            ? 'an attention and an FFN block that are neighbours'
            : this.#layers.every(({ length }) => length === 1)
              ? 'single blocks, each a layer,'
              : 'whole layers';
        const bound = (['attn', 'ffn'] as const).filter(
            (kind) => this.decidedBy[kind] === 'position' && new Set(this.#atPosition[kind]).size > 1
        );
        const names = bound.map((kind) => (kind === 'attn' ? 'attention' : 'FFN')).join(' and ');
        return `${what} can go${bound.length > 0 ? `, as long as each ${names} stays at a position of its kind` : ''}`;
    }

    /** Gives, for each place, the smallest run of blocks from there on without which the rest can be written. */
    moves(remaining: readonly Block[]): Move[] {
        const moves: Move[] = [];
        const units = this.pairs ? remaining.map((block) => [block]) : layersOf(remaining);
        const step = this.pairs ? 2 : 1;
        for (let start = 0; start < units.length; start++) {
            for (let end = start + step; end <= units.length; end += step) {
                const move = units.slice(start, end).flat();
                if (this.#isLegal(without(remaining, move))) {
                    moves.push(move);
                    break;
                }
            }
        }
        return moves;
    }

    #isLegal(remaining: readonly Block[]): boolean {
        const layers = this.#pack(remaining);
        // llama.cpp expects some kinds of layers to be there, such as those with a sliding window, so one of each
        // stays.
        const kinds = new Set(remaining.map((block) => this.#signature(block))).size;
        const staying = new SkipSet(remaining);
        if (layers === undefined || kinds !== this.#kinds || this.pinned.some((block) => !staying.has(block))) {
            return false;
        }
        return layers.every((layer, position) =>
            (['attn', 'ffn'] as const).every((kind) => {
                const block = layer.find((candidate) => candidate.kind === kind);
                const signature = block && this.#signature(block);
                return this.decidedBy[kind] === 'tensors' || signature === this.#atPosition[kind][position];
            })
        );
    }

    /** Packs what is left into layers; undefined where it doesn't fill layers. */
    #pack(remaining: readonly Block[]): Layer[] | undefined {
        if (!this.pairs) {
            const layers = layersOf(remaining);
            return layers.every((layer) => layer.length === this.#layers[layer[0]!.layer]!.length) ? layers : undefined;
        }
        if (
            remaining.length % 2 !== 0 ||
            remaining.some(({ kind }, index) => kind !== (index % 2 === 0 ? 'attn' : 'ffn'))
        ) {
            return undefined;
        }
        return Array.from({ length: remaining.length / 2 }, (_, index) => remaining.slice(2 * index, 2 * index + 2));
    }

    /**
     * Whether llama.cpp computes of files written this way what the source's blocks compute. It is asked about files
     * that differ most: without the first move, the last, one in the middle, and without as much as can go.
     */
    async isConfirmed(): Promise<boolean> {
        const { blocks, outerSignature } = this.source.graph;
        const moves = this.moves(blocks);
        if (moves.length === 0) {
            return false;
        }
        const tried = [moves[0]!, moves[Math.floor(moves.length / 2)]!, moves.at(-1)!].map((move) =>
            without(blocks, move)
        );
        let least: readonly Block[] = blocks;
        for (let next = moves; next.length > 0; next = this.moves(least)) {
            least = without(least, next[Math.floor(next.length / 2)]!);
        }
        for (const remaining of [...tried, least]) {
            const found = await this.source.probe(this.plan(remaining));
            if (
                !found ||
                found.outerSignature !== outerSignature ||
                found.blocks.length !== remaining.length ||
                !found.blocks.every(
                    ({ kind, signature }, i) =>
                        kind === remaining[i]!.kind && signature === this.#signature(remaining[i]!)
                )
            ) {
                return false;
            }
        }
        return true;
    }

    plan(remaining: readonly Block[]): Plan {
        const layers = this.#pack(remaining);
        if (!layers || !this.#isLegal(remaining)) {
            throw new BlockprunerError('UNSUPPORTED', `these blocks can't go: ${this.reason}`);
        }
        const { gguf, graph } = this.source;
        const architecture = architectureOf(gguf);
        const key = (name: string) => `${architecture}.${name}`;
        const count = this.#layers.length;
        const sources = (kind: Kind) =>
            layers.map((layer) => (layer.find((block) => block.kind === kind) ?? layer[0]!).layer);
        const [attn, ffn] = [sources('attn'), sources('ffn')];

        // Layers that are in the file and not in the graph, such as those that predict further tokens, stay behind the
        // others.
        const extra = [...new Set(gguf.tensors.map(({ name }) => splitName(name).layer ?? 0))]
            .filter((layer) => layer >= count)
            .sort((a, b) => a - b);
        const owner = new Map(
            graph.blocks.flatMap(({ kind, tensors }) => tensors.map((name) => [name, kind] as const))
        );
        const tensors = gguf.tensors.flatMap(({ name, file }): GgufTensor[] => {
            const { layer, rest } = splitName(name);
            if (layer === undefined) {
                return [];
            }
            const from = layer >= count ? extra : owner.get(name) === 'ffn' ? ffn : attn;
            const to = from.indexOf(layer);
            return to < 0
                ? []
                : [{ name: `blk.${layer >= count ? layers.length + to : to}.${rest}`, from: [{ file, name }] }];
        });

        const filler = fillerOf(gguf).flatMap(({ kind, layer }) => {
            const to = (kind === 'ffn' ? ffn : attn).indexOf(layer);
            return to < 0 ? [] : [`${kind}.${to}`];
        });
        const perLayer = Object.entries(gguf.metadata).filter(
            ([name, value]) =>
                name.startsWith(`${architecture}.`) &&
                Array.isArray(value) &&
                (value.length === count || value.length === count + extra.length) &&
                !name.endsWith('rope.dimension_sections')
        );
        const leading = gguf.metadata[key('leading_dense_block_count')];
        const leadingDense: Plan['set'] = [];
        if (typeof leading === 'number') {
            const value = ffn.filter((layer) => layer < leading).length;
            leadingDense.push({ key: key('leading_dense_block_count'), type: 'u32', value });
        }
        const flags = (name: string, type: 'bool[]' | 'u32[]', values: boolean[]): Plan['set'] => {
            const isMixed = new Set(values.slice(0, count)).size > 1;
            return isMixed
                ? [{ key: key(name), type, value: [...attn, ...extra].map((layer) => Number(values[layer] ?? false)) }]
                : [];
        };
        return {
            rename: [],
            select: perLayer.map(([name, value]) => [
                name,
                [...(ffnKeys.test(name) ? ffn : attn), ...((value as unknown[]).length > count ? extra : [])]
            ]),
            set: [
                { key: key('block_count'), type: 'u32', value: layers.length + extra.length },
                ...leadingDense,
                // This is the type that llama.cpp's converter writes.
                ...flags('attention.sliding_window_pattern', 'bool[]', graph.slidingWindow),
                ...flags('attention.recurrent_layers', 'u32[]', graph.recurrent),
                ...(filler.length > 0 ? [{ key: fillerKey, type: 'string' as const, value: filler.join() }] : [])
            ],
            tensors: [...globalTensors(gguf), ...tensors]
        };
    }

    #signature(block: Block): string {
        return this.#signatures.get(formatBlock(block))!;
    }
}
