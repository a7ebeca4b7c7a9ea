/** A layer that stays: how much each of the model's layers counts in the sum that its weights are. */
export interface MergedLayer {
    layer: number;
    weights: ReadonlyMap<number, number>;
}

export interface LacoOptions {
    method: LacoMethod;
    /** The numbers of the model's layers. */
    layers: readonly number[];
    /** Do few enough layers stay? */
    isEnough: (layers: readonly MergedLayer[]) => boolean;
    /** How similar the outputs of the model of these layers are to the dense model's; -Infinity where there can't be such a model. */
    similarity: (layers: readonly MergedLayer[]) => Promise<number>;
    /** The part of the search that is done, 0 … 1; it may jump ahead. */
    onProgress?: ((done: number) => void) | undefined;
}

/** How many layers become one, at most, and how far below the last merge the next one is tried: C and I as in the paper for Llama 2 7B. */
const MERGED = 4,
    INTERVAL = 2;

/** The lowest layer that others are merged into: L, as there. */
const LOWEST = 1;

/** The thresholds of similarity that are tried: the highest is taken at which enough layers go. The last lets everything go. */
const THRESHOLDS = [...Array.from({ length: 19 }, (_, i) => (19 - i) / 20), -1];

/**
 * What becomes of a layer that takes in those behind it. `laco`: θ_l + Σ (θ_{l+k} − θ_l), as the paper has it. `laco-code`: its notebook
 * adds each difference to what the one before left, θ ← θ + (θ_{l+k} − θ), so that only the last layer is left: θ_{l+K}.
 */
export type LacoMethod = 'laco' | 'laco-code';

export function isLaco(method: string): method is LacoMethod {
    return method === 'laco' || method === 'laco-code';
}

/**
 * LaCo, layer collapse (Yang, Cao and Zhao, Findings of EMNLP 2024, arXiv 2402.11187, algorithm 1): from the last layers down, a
 * layer takes in the ones behind it, if the model's outputs stay similar enough. The paper chooses the
 * threshold by hand for each model and ratio; here it is the highest of 0.95, 0.90 … 0.05 and −1 at which enough layers go, and the
 * last merge takes in no more than are needed.
 * @returns undefined where too few layers can go
 */
export async function collapseLayers({
    method,
    layers,
    isEnough,
    similarity,
    onProgress
}: LacoOptions): Promise<{ layers: readonly MergedLayer[]; threshold: number; similarity: number } | undefined> {
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
            const candidate = mergeAt(
                method,
                current,
                at,
                sizes.find((size) => isEnough(mergeAt(method, current, at, size))) ?? sizes.at(-1)!
            );
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

/** The layer at an index takes in the `count` ones behind it. */
function mergeAt(method: LacoMethod, layers: readonly MergedLayer[], at: number, count: number): MergedLayer[] {
    const base = layers[at]!,
        taken = layers.slice(at + 1, at + 1 + count);
    const weights =
        method === 'laco-code'
            ? taken.at(-1)!.weights
            : sumOf([[base, 1 - count], ...taken.map((layer) => [layer, 1] as const)]);
    return [...layers.slice(0, at), { layer: base.layer, weights }, ...layers.slice(at + 1 + count)];
}

/** Layers times factors, added. */
function sumOf(terms: readonly (readonly [MergedLayer, number])[]): Map<number, number> {
    const sum = new Map<number, number>();
    for (const [{ weights }, factor] of terms) {
        weights.forEach((weight, from) => sum.set(from, (sum.get(from) ?? 0) + factor * weight));
    }
    return new Map([...sum].filter(([, weight]) => weight !== 0));
}
