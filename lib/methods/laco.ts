import { BlockprunerError, MethodError } from '../errors.js';
import { bare, layersOf, type Block, type Merges } from '../runtime/blocks.js';
import type { Sequences } from '../runtime/sequences.js';
import {
    removedShare,
    type Decision,
    type Goal,
    type MethodContext,
    type MethodOptions,
    type PruningMethod
} from './method.js';
import { checkSelection } from './moves.js';

/**
 * What becomes of the weights θ of layer l when it takes in K layers behind it. `laco` is the paper's formula, θ_l + Σ
 * (θ_{l+k} − θ_l). `laco-code` is what the paper's notebook computes: it adds each difference to what the one before
 * left, θ ← θ + (θ_{l+k} − θ), so that only the last layer is left, θ_{l+K}.
 */
export type LacoForm = 'laco' | 'laco-code';

/** How many layers become one, at most: C as in the paper for Llama 2 7B. */
const MERGED = 4;

/** How many layers below the last merge the next one is tried: I as in the paper for Llama 2 7B. */
const INTERVAL = 2;

/** The lowest layer that others are merged into: L as in the paper for Llama 2 7B. */
const LOWEST = 1;

/** The thresholds of similarity that are tried, from the highest down. The last one allows any merge. */
const THRESHOLDS = [...Array.from({ length: 19 }, (_, i) => (19 - i) / 20), -1];

/** Similarity is measured on at most so many calibration sequences. The paper's code has five sentences. */
const SEQUENCES = 5;

/**
 * Merges layers into others as long as the model's outputs stay similar, by the paper's formula (Yang, Cao and Zhao,
 * Findings of EMNLP 2024, arXiv 2402.11187, algorithm 1).
 */
export const laco = layerCollapse('laco');

/** As `laco`, with the weights that the paper's notebook computes; see {@link LacoForm}. */
export const lacoCode = layerCollapse('laco-code');

function layerCollapse<Form extends LacoForm>(form: Form): PruningMethod<Form> {
    const method = { name: form, unit: 'layer', stepwise: false } as const;
    return {
        ...method,
        check({ blocks, selection }, { remove }) {
            checkSelection(method, selection);
            const ofLayer = layersOf(blocks)[0]!.length;
            if (remove !== undefined && remove % ofLayer !== 0) {
                const message = `can't remove ${remove} blocks: ${form} removes whole layers, ${ofLayer} at a time`;
                throw new BlockprunerError('ARGUMENT', message);
            }
        },
        decide: (context, goal) => decide(form, context, goal)
    };
}

async function decide(form: LacoForm, context: MethodContext, { remove, ratio }: Goal): Promise<Decision> {
    const { removed, merges } = await collapse(form, {
        ...context,
        isEnough: (gone) => (remove !== undefined ? gone.length >= remove : removedShare(context, gone) >= ratio!)
    });
    return { removed, merges, steps: [] };
}

export interface CollapseOptions
    extends
        Pick<MethodOptions, 'model' | 'blocks' | 'calibration' | 'signal'>,
        Pick<MethodContext, 'merged' | 'onProgress'> {
    /** Whether enough blocks are gone. */
    isEnough: (removed: readonly Block[]) => boolean;
}

/** What LaCo did: which layers took in others, and which blocks went then. */
export interface Collapsed {
    removed: Block[];
    merges: Merges;
    /** The least similarity of the outputs that was allowed; see {@link collapseLayers}. */
    threshold: number;
    /** The similarity that was reached. */
    similarity: number;
}

/**
 * Prunes whole layers by LaCo. What is compared are the models of files with merged layers, so that it is what a pruned
 * file computes, also where weights are quantized. The similarity is that of the paper's code: the cosine between the
 * final hidden states of a whole sequence, and its mean over sequences.
 * @throws MethodError if the layers differ in what they are made of, or too few can go
 */
export async function collapse(form: LacoForm, options: CollapseOptions): Promise<Collapsed> {
    const { model, blocks, calibration, merged, isEnough, signal, onProgress } = options;
    const { length } = calibration;
    const sequences: Sequences = { tokens: calibration.tokens.subarray(0, SEQUENCES * length), length };
    const size = model.embedding * (length - 1); // the number of values of a sequence
    const dense = await model.hidden(sequences, { signal });
    const toRemoval = (layers: readonly MergedLayer[]): Pick<Collapsed, 'removed' | 'merges'> => {
        const removed = bare(blocks.filter(({ layer }) => !layers.some((kept) => kept.layer === layer)));
        const changed = layers.filter(({ layer, weights }) => weights.size > 1 || weights.get(layer) !== 1);
        return { removed, merges: new Map(changed.map(({ layer, weights }) => [layer, weights])) };
    };
    let obstacle = '; the first layer and a last one stay';
    const found = await collapseLayers({
        form,
        layers: layersOf(blocks).map(([block]) => block!.layer),
        isEnough: (layers) => isEnough(toRemoval(layers).removed),
        async similarity(layers) {
            const removal = toRemoval(layers);
            try {
                merged.check(removal);
            } catch (error) {
                if (!(error instanceof BlockprunerError)) {
                    throw error;
                }
                obstacle = `: ${error.message}`;
                return -Infinity;
            }
            const hidden = await merged.use(removal, (collapsed) => collapsed.hidden(sequences, { signal }));
            return meanCosine(dense, hidden, size);
        },
        onProgress: onProgress && ((done) => onProgress(done, 1))
    });
    if (!found) {
        throw new MethodError(`LaCo can't remove so much of ${model.path}${obstacle}`);
    }
    return { ...toRemoval(found.layers), threshold: found.threshold, similarity: found.similarity };
}

/** A layer that stays, and how much each of the model's layers counts in the sum that its weights are. */
export interface MergedLayer {
    layer: number;
    weights: ReadonlyMap<number, number>;
}

export interface CollapseSearch {
    form: LacoForm;
    /** The numbers of the model's layers. */
    layers: readonly number[];
    /** Whether few enough layers stay. */
    isEnough: (layers: readonly MergedLayer[]) => boolean;
    /**
     * How similar the outputs of the model of these layers are to the dense model's; −Infinity where there can't be
     * such a model.
     */
    similarity: (layers: readonly MergedLayer[]) => Promise<number>;
    /** Is told the part of the search that is done, 0 … 1; it may jump ahead. */
    onProgress?: ((done: number) => void) | undefined;
}

/**
 * LaCo's algorithm 1: from the last layers down, a layer takes in the ones behind it if the model's outputs stay
 * similar enough. The paper chooses the threshold by hand for each model and ratio. Here it is the highest of 0.95,
 * 0.90 … 0.05 and −1 at which enough layers go, and the last merge takes in no more layers than are needed.
 * @returns undefined where too few layers can go
 */
export async function collapseLayers(
    options: CollapseSearch
): Promise<{ layers: readonly MergedLayer[]; threshold: number; similarity: number } | undefined> {
    const { form, layers, isEnough, similarity, onProgress } = options;
    const known = new Map<string, number>();
    const similarityOf = async (candidate: readonly MergedLayer[]) => {
        const name = candidate.map(({ layer, weights }) => `${layer}: ${[...weights].join(' ')}`).join('; ');
        const value = known.get(name) ?? (await similarity(candidate));
        known.set(name, value);
        return value;
    };
    for (const [index, threshold] of THRESHOLDS.entries()) {
        let current: readonly MergedLayer[] = layers.map((layer) => ({ layer, weights: new Map([[layer, 1]]) }));
        let reached = 1;
        for (let at = current.length - MERGED; at >= LOWEST && !isEnough(current);) {
            const sizes = Array.from({ length: Math.min(MERGED, current.length - at) - 1 }, (_, i) => i + 1);
            const fewest = sizes.find((size) => isEnough(mergeAt(form, current, at, size)));
            const candidate = mergeAt(form, current, at, fewest ?? sizes.at(-1)!);
            const value = await similarityOf(candidate);
            if (value > threshold) {
                current = candidate;
                reached = value;
                at = Math.min(at - INTERVAL, current.length - MERGED);
            } else {
                at--;
            }
            onProgress?.((index + 1 - Math.max(at, 0) / layers.length) / THRESHOLDS.length);
        }
        if (isEnough(current)) {
            return { layers: current, threshold, similarity: reached };
        }
    }
    return undefined;
}

/** Lets the layer at an index take in the `count` layers behind it. */
function mergeAt(form: LacoForm, layers: readonly MergedLayer[], at: number, count: number): MergedLayer[] {
    const base = layers[at]!;
    const taken = layers.slice(at + 1, at + 1 + count);
    const weights =
        form === 'laco-code'
            ? taken.at(-1)!.weights
            : sumOf([[base, 1 - count], ...taken.map((layer) => [layer, 1] as const)]);
    return [...layers.slice(0, at), { layer: base.layer, weights }, ...layers.slice(at + 1 + count)];
}

/** The sum of layers times factors. */
function sumOf(terms: readonly (readonly [MergedLayer, number])[]): Map<number, number> {
    const sum = new Map<number, number>();
    for (const [{ weights }, factor] of terms) {
        weights.forEach((weight, from) => sum.set(from, (sum.get(from) ?? 0) + factor * weight));
    }
    return new Map([...sum].filter(([, weight]) => weight !== 0));
}

/** The mean cosine between vectors of a size that stand one after the other. */
function meanCosine(a: Float32Array, b: Float32Array, size: number): number {
    let total = 0;
    for (let from = 0; from < a.length; from += size) {
        let [dot, ofA, ofB] = [0, 0, 0];
        for (let i = from; i < from + size; i++) {
            dot += a[i]! * b[i]!;
            ofA += a[i]! ** 2;
            ofB += b[i]! ** 2;
        }
        total += dot / Math.sqrt(ofA * ofB);
    }
    return total / (a.length / size);
}
