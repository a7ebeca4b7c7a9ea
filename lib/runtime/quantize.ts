import { BlockprunerError } from '../errors.js';
import { loadAddon, runNative } from './addon.js';
import { readGguf, type Gguf } from './gguf.js';
import type { RunOptions } from './model.js';

/**
 * The types that a model can be quantized to without an importance matrix, as llama-quantize names them, from large to
 * small.
 */
export const quantizations = [
    'Q8_0',
    'Q6_K',
    'Q5_1',
    'Q5_K_M',
    'Q5_0',
    'Q5_K_S',
    'Q4_1',
    'Q4_K_M',
    'Q4_K_S',
    'IQ4_NL',
    'Q4_0',
    'IQ4_XS',
    'Q3_K_L',
    'Q3_K_M',
    'Q3_K_S',
    'Q2_K'
] as const;
export type Quantization = (typeof quantizations)[number];

/**
 * Writes a copy of a model in another type, by libllama's own quantizer, which quantizes anew what is quantized.
 * @param output where it is written; what is there is replaced
 * @throws BlockprunerError if the quantizer can't; what it has written until then is left
 */
export async function quantizeGguf(
    model: Gguf,
    output: string,
    { type, threads, onProgress, signal }: RunOptions & { type: Quantization; threads: number }
): Promise<Gguf> {
    const [input] = model.files as [string];
    const addon = await loadAddon();
    try {
        await runNative(signal, (cancel) => addon.quantizeGguf(input, output, { type, threads, onProgress, cancel }));
    } catch (error) {
        throw error instanceof BlockprunerError
            ? new BlockprunerError(error.code, `${input} can't be quantized to ${type}: ${error.message}`, {
                  cause: error
              })
            : error;
    }
    return readGguf(output, signal);
}
