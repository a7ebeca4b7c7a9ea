import fs from 'node:fs/promises';
import { partialIn } from '../output.js';
import { loadAddon, runNative } from '../runtime/addon.js';
import type { Removal } from '../runtime/blocks.js';
import { Model } from '../runtime/model.js';
import { planFile, type DenseModel } from './write.js';

/**
 * The models of files whose weights the dense model doesn't have: with merged layers, or with a repair. Each is
 * written, loaded where the dense model is, and deleted after its use, so that it computes what a pruned file does,
 * also where weights are quantized.
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
        const file = partialIn(this.folder, '.gguf');
        const { device, gpuLayers, threads } = this.loaded;
        try {
            const addon = await loadAddon();
            const plan = { output: file, ...planFile(this.dense, removal) };
            await runNative(this.signal, (cancel) => addon.writeGguf(plan, { cancel }));
            const merged = await Model.load(file, { device, gpuLayers, threads, signal: this.signal });
            return await work(merged).finally(() => merged.dispose());
        } finally {
            await fs.rm(file, { force: true });
        }
    }
}
