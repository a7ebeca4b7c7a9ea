import crypto from 'node:crypto';
import fs from 'node:fs/promises';
import path from 'node:path';
import cacache from 'cacache';
import { BlockprunerError, messageOf } from '../errors.js';
import type { KeptMatrices } from '../runtime/model.js';

/** Deletes what {@link keepMatrices} has put into a folder, and the folder, if nothing else is in it. */
export async function forgetMatrices(folder: string): Promise<void> {
    const found = await fs.stat(folder).catch(() => undefined);
    if (!found?.isDirectory()) {
        return;
    }
    await cacache.rm.all(folder);
    await fs.rm(path.join(folder, 'tmp'), { recursive: true, force: true });
    await fs.rmdir(folder).catch(() => undefined); // something else is in it
}

/**
 * Keeps what a fit finds in a folder, whole matrices, so that a fit that was stopped and is made again goes on from
 * there. What was found with other inputs, or is damaged, is not found again.
 *
 * Disk: 4 bytes for each value of a linear block, of the change of a block's inputs (n_embd² each), and of the change
 * of an output projection.
 * @param inputs what the fit depends on, such as the model's hash
 */
export function keepMatrices(folder: string, inputs: Record<string, string>): KeptMatrices {
    const hash = crypto.createHash('sha256').update(JSON.stringify(inputs)).digest('hex');
    const keyOf = (place: number) => `${hash}/${place}`;
    return {
        async find(place) {
            const kept = await cacache.get(folder, keyOf(place)).catch(() => undefined);
            if (!kept) {
                const damaged = await cacache.get.info(folder, keyOf(place)).catch(() => null);
                if (damaged) {
                    await cacache.rm.content(folder, damaged.integrity); // what is there would not be written again
                }
                return undefined;
            }
            const floats = new Float32Array(new Uint8Array(kept.data).buffer);
            const { values } = kept.metadata as { values: number };
            return { values: floats.subarray(0, values), importance: floats.subarray(values) };
        },
        async keep(place, { values, importance }) {
            const bytes = [values, importance].map((floats) =>
                Buffer.from(floats.buffer, floats.byteOffset, floats.byteLength)
            );
            try {
                await cacache.put(folder, keyOf(place), Buffer.concat(bytes), { metadata: { values: values.length } });
            } catch (error) {
                const made = `can't keep what the repair has found in ${folder}: ${messageOf(error)}`;
                throw new BlockprunerError('OUTPUT', `${made}; make room, and the same command goes on from there`);
            }
        }
    };
}
