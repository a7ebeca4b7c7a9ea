import fs from 'node:fs/promises';
import { partialIn } from '../output.js';
import { loadAddon, runNative } from '../runtime/addon.js';
import type { Removal } from '../runtime/blocks.js';
import type { Gguf } from '../runtime/gguf.js';
import { useAlike, type Model, type RunOptions } from '../runtime/model.js';
import { quantizeGguf, type FileType, type Quantization } from '../runtime/quantize.js';
import { planFile, type DenseModel } from './write.js';

/**
 * The models of files whose weights the dense model doesn't have: with merged layers, or with a repair, or in other
 * types. Each is written, loaded where the dense model is, and deleted after its use, so that it computes what a pruned
 * file does, also where weights are quantized.
 */
export class MergedFiles {
    /** @param folder where the files are for the time of their use, each as large as the model */
    constructor(
        private readonly dense: DenseModel,
        private readonly loaded: Model,
        private readonly folder: string,
        private readonly signal?: AbortSignal
    ) {}

    /** @throws BlockprunerError that says why such a model can't be written */
    check(removal: Removal): void {
        planFile(this.dense, removal);
    }

    /** Runs some work on the model of such a file. */
    async use<T>(removal: Removal, work: (merged: Model) => Promise<T>): Promise<T> {
        const addon = await loadAddon();
        return this.#inFile(async (output) => {
            const plan = { output, ...planFile(this.dense, removal) };
            await runNative(this.signal, (cancel) => addon.writeGguf(plan, { cancel }));
            return useAlike(this.loaded, output, work, { signal: this.signal });
        });
    }

    /** Runs some work on the dense model in another type; undefined where that file has more bytes than it may have. */
    async useQuantized<T>(
        type: Quantization,
        mostBytes: number,
        work: (quantized: Model) => Promise<T>
    ): Promise<T | undefined> {
        return this.inType(type, ({ files: [file], bytes }) =>
            bytes <= mostBytes
                ? useAlike(this.loaded, file!, work, { signal: this.signal })
                : Promise.resolve(undefined)
        );
    }

    /** Runs some work on a file of the dense model in another type. */
    async inType<T>(
        type: FileType,
        work: (copy: Gguf) => Promise<T>,
        onProgress?: RunOptions['onProgress']
    ): Promise<T> {
        const options = { type, threads: this.loaded.threads, signal: this.signal, onProgress };
        return this.#inFile(async (output) => work(await quantizeGguf(this.dense.gguf, output, options)));
    }

    async #inFile<T>(work: (file: string) => Promise<T>): Promise<T> {
        const file = partialIn(this.folder, '.gguf');
        try {
            return await work(file);
        } finally {
            await fs.rm(file, { force: true });
        }
    }
}
