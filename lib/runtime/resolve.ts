import fs from 'node:fs';
import { BlockprunerError, messageOf } from '../errors.js';

/**
 * Gives the local file of a model: a path as it is; a URI (`hf:user/repo:Q4_K_M`, `https://…`) is resolved and, once,
 * downloaded by node-llama-cpp into its models folder.
 * @throws BlockprunerError if a URI can't be downloaded
 */
export async function resolveModel(
    model: string,
    options: {
        signal?: AbortSignal | undefined;
        onProgress?: ((bytes: number, total: number) => void) | undefined;
    } = {}
): Promise<string> {
    if (fs.existsSync(model) || !/^[a-z]+:/i.test(model) || /^[a-z]:[\\/]/i.test(model)) {
        return model;
    }
    const { resolveModelFile } = await import('node-llama-cpp');
    try {
        const { signal, onProgress } = options;
        return await resolveModelFile(model, {
            cli: false, // it would draw on stdout
            ...(signal && { signal }),
            ...(onProgress && { onProgress: ({ downloadedSize, totalSize }) => onProgress(downloadedSize, totalSize) })
        });
    } catch (error) {
        options.signal?.throwIfAborted();
        throw new BlockprunerError('DOWNLOAD', `can't get the model ${model}: ${messageOf(error)}`, { cause: error });
    }
}
