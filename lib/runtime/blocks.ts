import { BlockprunerError } from '../errors.js';

/**
 * `attn`: attention, the paper's MHA, or whatever else mixes tokens; `ffn`: feed-forward, the paper's MLP; `linear`: a
 * product of one matrix and the normed stream.
 */
export type BlockKind = 'attn' | 'ffn' | 'linear';

/** One residual branch of a transformer layer; `layer` is the N of `blk.N` in the GGUF. */
export interface Block {
    readonly kind: BlockKind;
    readonly layer: number;
    /**
     * Of a block that goes, where linear blocks stand in gaps: none need stand in the one that it leaves. A gap is
     * empty where that holds for all of its blocks.
     */
    readonly empty?: true;
}

/** Blocks that are removed together: one, or where only more can go, those. */
export type Move = readonly Block[];

/** Which blocks a search may remove. `all`: linear blocks too, where the model has any. */
export type BlockSelection = 'all' | 'attn' | 'ffn';

const kindsByName: Record<string, BlockKind> = { mha: 'attn', mlp: 'ffn', attn: 'attn', ffn: 'ffn', linear: 'linear' };

/** `attn.12`, `ffn.7`, `linear.3` */
export function formatBlock(block: Block): string {
    return `${block.kind}.${block.layer}`;
}

/** `attn.12`, `attn.12 ffn.12`, `attn.12 (empty gap)` */
export function formatMove(move: Move): string {
    const isEmpty = move.length > 0 && move.every(({ empty }) => empty);
    return `${move.map(formatBlock).join(' ')}${isEmpty ? ' (empty gap)' : ''}`;
}

/** Blocks without what else is known of them, but for what they leave in their gap. */
export function bare(blocks: readonly Block[]): Block[] {
    return blocks.map(({ kind, layer, empty }) => ({ kind, layer, ...(empty && { empty }) }));
}

/**
 * A set of blocks, such as those that a forward pass leaves out, in the order in which they were added. It never
 * changes.
 */
export class SkipSet implements Iterable<Block> {
    readonly #blocks: ReadonlyMap<string, Block>;

    constructor(blocks: Iterable<Block> = []) {
        this.#blocks = new Map(
            Array.from(blocks, ({ kind, layer }) => [formatBlock({ kind, layer }), { kind, layer }])
        );
    }

    get size(): number {
        return this.#blocks.size;
    }

    has(block: Block): boolean {
        return this.#blocks.has(formatBlock(block));
    }

    [Symbol.iterator](): Iterator<Block> {
        return this.#blocks.values();
    }

    /** This set and more blocks. */
    with(blocks: Iterable<Block>): SkipSet {
        return new SkipSet([...this, ...blocks]);
    }

    /** Whether both sets have the same blocks, in whatever order. */
    equals(other: SkipSet): boolean {
        return this.size === other.size && [...this].every((block) => other.has(block));
    }
}

/** Those of some blocks that are not among the ones that are gone, in their order. */
export function without<T extends Block>(blocks: readonly T[], gone: Iterable<Block>): T[] {
    const set = gone instanceof SkipSet ? gone : new SkipSet(gone);
    return blocks.filter((block) => !set.has(block));
}

/** Neighbouring blocks that are gone. */
export interface Gap {
    removed: Block[];
    /** The block behind them that stays; undefined: they were the last. */
    before: Block | undefined;
    /** Whether a linear block is to stand in it, where the host has such blocks. */
    linear: boolean;
}

/** The gaps that removed blocks leave, in the order of the residual stream. */
export function gapsOf(blocks: readonly Block[], removed: readonly Block[]): Gap[] {
    const gone = new Map(removed.map((block) => [formatBlock(block), block]));
    const gaps: Gap[] = [];
    let open: Gap | undefined;
    for (const block of blocks) {
        const found = gone.get(formatBlock(block));
        if (!found) {
            if (open) {
                open.before = block;
            }
            open = undefined;
            continue;
        }
        if (!open) {
            open = { removed: [], before: undefined, linear: false };
            gaps.push(open);
        }
        open.removed.push(block);
        open.linear ||= !found.empty;
    }
    return gaps;
}

/** Consecutive blocks of a layer. */
export function layersOf(blocks: readonly Block[]): Block[][] {
    const layers: Block[][] = [];
    for (const block of blocks) {
        const last = layers.at(-1);
        if (last && last[0]!.layer === block.layer) {
            last.push(block);
        } else {
            layers.push([block]);
        }
    }
    return layers;
}

/**
 * Reads `attn.12`, `ffn.7` or `linear.3`; the paper's `mha.12` and `mlp.7` mean the same.
 * @throws BlockprunerError for anything else
 */
export function parseBlock(text: string): Block {
    const [, name, layer] = /^(attn|ffn|linear|mha|mlp)\.(\d{1,6})$/.exec(text.trim()) ?? [];
    if (name === undefined || layer === undefined) {
        throw new BlockprunerError(
            'ARGUMENT',
            `'${text}' is no block: write attn.LAYER, ffn.LAYER or linear.LAYER, such as attn.12`
        );
    }
    return { kind: kindsByName[name]!, layer: Number(layer) };
}

/** A comma-separated list of blocks; empty text is the empty list. */
export function parseBlocks(text: string): Block[] {
    return text
        .split(',')
        .filter((part) => part.trim() !== '')
        .map(parseBlock);
}

/**
 * The paper's name of a block's kind, as its order files have it.
 * @throws BlockprunerError for a linear block, which the paper has no name for
 */
export function paperName(block: Block): 'mha' | 'mlp' {
    if (block.kind === 'linear') {
        throw new BlockprunerError(
            'UNSUPPORTED',
            `the paper's order files have attention and FFN blocks only: they can't tell of ${formatBlock(block)}`
        );
    }
    return block.kind === 'attn' ? 'mha' : 'mlp';
}

/**
 * Layers that take in others: by layer, how much each of the model's layers counts in the sum that replaces its
 * weights. Norms keep their own weights.
 */
export type Merges = ReadonlyMap<number, ReadonlyMap<number, number>>;

/** A linear block that a repair puts into the stream: x + W·RMSNorm(x), with a norm without weights. */
export interface LinearBlock {
    /** The remaining block right before which it stands; undefined: at the end of the stream. */
    before: Block | undefined;
    /** W, F32, row after row: [n_embd × n_embd]; a row gives one value of the stream. */
    weights: Float32Array;
    /** The tensor type that W is written in: 'f32', 'f16', 'q8_0', … */
    type: string;
}

/** What is added to a tensor. */
export interface TensorChange {
    /** F32, row after row. */
    change: Float32Array;
    /** How much each value of a row matters where the tensor is quantized, above 0. Default: all matter alike. */
    importance?: Float32Array;
}

/** What makes a pruned model of a dense one. */
export interface Removal {
    removed: readonly Block[];
    /** The layers that were merged before their blocks went. Default: none. */
    merges?: Merges | undefined;
    /** The linear blocks that are put into the stream; before the same block, in their order. Default: none. */
    linear?: readonly LinearBlock[] | undefined;
    /** How tensors of blocks that stay change, by name. Default: none. */
    changes?: ReadonlyMap<string, TensorChange> | undefined;
    /** The tensor type that these are written in. Default: their own. */
    changedType?: string | undefined;
}

/** Says what layers become: `blk.5 = -2 blk.5 + 1 blk.6 + 1 blk.7 + 1 blk.8`. */
export function formatMerges(merges: Merges): string[] {
    return [...merges].map(([layer, weights]) => {
        const terms = [...weights].map(([from, weight]) => `${weight} blk.${from}`);
        return `blk.${layer} = ${terms.join(' + ')}`;
    });
}

/** Says where linear blocks are put, by the source's names of blocks: `before attn.5`, `at the end`. */
export function formatLinear(linear: readonly { before?: Block | null | undefined }[]): string[] {
    return linear.map(({ before }) => (before ? `before ${formatBlock(before)}` : 'at the end'));
}
