import fs from 'node:fs/promises';
import { loadAddon, runNative } from '../runtime/addon.js';
import { bare, layersOf, type Block } from '../runtime/blocks.js';
import { BlockprunerError, MethodError } from '../errors.js';
import type { Host } from '../export/host.js';
import { planFile, type Merges } from '../export/write.js';
import { Model, type LoadOptions } from '../runtime/model.js';
import type { Sequences } from '../runtime/sequences.js';
import { partialIn } from '../output.js';
import { collapseLayers, type LacoMethod, type MergedLayer } from './laco.js';

export interface CollapseOptions {
    method: LacoMethod;
    host: Host;
    blocks: readonly Block[];
    calibration: Sequences;
    /** Have enough blocks gone? */
    isEnough: (removed: readonly Block[]) => boolean;
    /** Where candidates are written, each as large as the model; they don't stay. */
    folder: string;
    onProgress?: ((done: number, total: number) => void) | undefined;
    signal?: AbortSignal | undefined;
}

/** What LaCo did: these blocks went, after their layers had been merged into others. */
export interface Collapsed {
    removed: Block[];
    merges: Merges;
    /** of the outputs, at least; see {@link collapseLayers} */
    threshold: number;
    similarity: number;
}

/** Similarity is measured on so many calibration sequences, at most: the paper's code has five sentences. */
const SEQUENCES = 5;

/**
 * Prunes whole layers by LaCo. Each candidate is written beside the output and loaded, so that what is compared is what a pruned
 * file computes, also where weights are quantized. The similarity is its code's: the cosine of the final hidden states of a whole
 * sequence, the mean over sequences.
 * @throws BlockprunerError if the layers differ in what they are made of, or too few can go
 */
export async function collapse(model: Model, options: CollapseOptions): Promise<Collapsed> {
    const { method, host, blocks, calibration, isEnough, signal, onProgress } = options;
    const { length } = calibration;
    const sequences: Sequences = { tokens: calibration.tokens.subarray(0, SEQUENCES * length), length };
    const size = model.embedding * (length - 1); // of the values of a sequence
    const dense = await model.hidden(sequences, { signal });
    const toBlocks = (layers: readonly MergedLayer[]) => {
        const removed = bare(blocks.filter(({ layer }) => !layers.some((kept) => kept.layer === layer)));
        const merges: Merges = new Map(
            layers
                .filter(({ layer, weights }) => weights.size > 1 || weights.get(layer) !== 1)
                .map(({ layer, weights }) => [layer, weights])
        );
        return { removed, merges };
    };
    let obstacle = '; the first layer and a last one stay';
    const found = await collapseLayers({
        method,
        layers: layersOf(blocks).map(([block]) => block!.layer),
        isEnough: (layers) => isEnough(toBlocks(layers).removed),
        similarity: async (layers) => {
            const candidate = toBlocks(layers);
            try {
                planFile(model.gguf, host, blocks, candidate.removed, candidate.merges);
            } catch (error) {
                if (!(error instanceof BlockprunerError)) {
                    throw error;
                }
                obstacle = `: ${error.message}`;
                return -Infinity;
            }
            return withCollapsed(model, options, candidate, async (collapsed) =>
                meanCosine(dense, await collapsed.hidden(sequences, { signal }), size)
            );
        },
        onProgress: onProgress && ((done) => onProgress(done, 1))
    });
    if (!found) {
        throw new MethodError(`LaCo can't remove so much of ${model.path}${obstacle}`);
    }
    return { ...toBlocks(found.layers), threshold: found.threshold, similarity: found.similarity };
}

/** Writes a model with merged layers, loads it where the model is, and deletes it when the work is done. */
export async function withCollapsed<T>(
    model: Model,
    { host, blocks, folder, signal }: Pick<CollapseOptions, 'host' | 'blocks' | 'folder' | 'signal'>,
    { removed, merges }: Pick<Collapsed, 'removed' | 'merges'>,
    work: (collapsed: Model) => Promise<T>
): Promise<T> {
    const file = partialIn(folder, '.gguf');
    const load: LoadOptions = { device: model.device, gpuLayers: model.gpuLayers, threads: model.threads, signal };
    try {
        const addon = await loadAddon();
        await runNative(signal, (cancel) =>
            addon.writeGguf({ output: file, ...planFile(model.gguf, host, blocks, removed, merges) }, { cancel })
        );
        const collapsed = await Model.load(file, load);
        return await work(collapsed).finally(() => collapsed.dispose());
    } finally {
        await fs.rm(file, { force: true });
    }
}

/** Of vectors of a size, one after the other. */
function meanCosine(a: Float32Array, b: Float32Array, size: number): number {
    let total = 0;
    for (let from = 0; from < a.length; from += size) {
        let dot = 0,
            ofA = 0,
            ofB = 0;
        for (let i = from; i < from + size; i++) {
            dot += a[i]! * b[i]!;
            ofA += a[i]! ** 2;
            ofB += b[i]! ** 2;
        }
        total += dot / Math.sqrt(ofA * ofB);
    }
    return total / (a.length / size);
}
