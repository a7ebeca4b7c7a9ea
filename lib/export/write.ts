import crypto from 'node:crypto';
import fs from 'node:fs/promises';
import path from 'node:path';
import { loadAddon, runNative, type GgufPlan, type GgufSource, type GgufValue } from '../addon.js';
import { formatBlock, without, type Block } from '../blocks.js';
import { BlockprunerError, messageOf } from '../errors.js';
import { hashGguf, type Gguf } from '../gguf.js';
import { architectureOf, splitKeys, splitName, type Host } from './host.js';

/** The layers that others were merged into: how much each of the model's layers counts in the sum that its weights are. */
export type Merges = ReadonlyMap<number, ReadonlyMap<number, number>>;

/** What the file remembers of how it was made, as `blockpruner.*` keys. */
export interface Provenance {
    removed: readonly Block[];
    merges?: Merges | undefined;
    calibration: { name: string; sequences: number; context: number };
    perplexity: { dense: number; pruned: number };
}

export interface WriteOptions {
    /** Replace an existing file. Default: false. */
    force?: boolean | undefined;
    /** Called with the complete file before it gets its name; what it throws leaves no file behind. */
    verify?: ((file: string) => Promise<void>) | undefined;
    onProgress?: ((bytes: number, total: number) => void) | undefined;
    signal?: AbortSignal | undefined;
}

/**
 * Finds out, before any long work, that a file can be written.
 * @param what what the file is, in messages
 * @throws BlockprunerError if it exists (and `force` is not set), is the model itself, or its folder can't be written to
 */
export async function checkOutput(output: string, gguf: Gguf, force = false, what = 'output'): Promise<void> {
    if (output === '') {
        throw new BlockprunerError(`the ${what} has no name: give a file name`);
    }
    const folder = path.dirname(path.resolve(output));
    const stat = await fs.stat(output, { bigint: true }).catch(() => undefined);
    if (stat) {
        for (const file of gguf.files) {
            const source = await fs.stat(file, { bigint: true });
            if (source.ino === stat.ino && source.dev === stat.dev) {
                throw new BlockprunerError(`the ${what} ${output} is the model itself: choose another name`);
            }
        }
        if (!stat.isFile()) {
            throw new BlockprunerError(`the ${what} ${output} is ${stat.isDirectory() ? 'a folder' : 'no regular file'}: give a file name`);
        }
        if (!force) {
            throw new BlockprunerError(`the ${what} ${output} exists: choose another name or give --force`);
        }
    }
    // writing a file is the only test that holds for root, read-only file systems and Windows alike
    const probe = path.join(folder, `.blockpruner-${crypto.randomUUID()}`);
    try {
        await fs.writeFile(probe, '');
        await fs.unlink(probe);
    } catch (error) {
        const { code } = error as NodeJS.ErrnoException;
        throw new BlockprunerError(`can't write to the folder ${folder}: ${code === 'ENOENT' ? 'there is no such folder' : code === 'ENOTDIR' ? 'it is no folder' : messageOf(error)}`);
    }
}

/**
 * Writes a pruned model: beside its place, flushed, verified, and only then under its name. Memory: some MiB, whatever the
 * model's size.
 * @param blocks all blocks of the model in the order of the residual stream
 * @throws BlockprunerError if there is no room on the disk, or writing fails; nothing is left behind then
 */
export async function writePruned(gguf: Gguf, host: Host, blocks: readonly Block[], provenance: Provenance, output: string, options: WriteOptions = {}): Promise<void> {
    const { force, verify, onProgress, signal } = options;
    const plan = planFile(gguf, host, blocks, provenance.removed, provenance.merges);
    const addon = await loadAddon();
    await checkOutput(output, gguf, force);

    const sizes = new Map(gguf.tensors.map((tensor) => [tensor.name, tensor.bytes]));
    // the header is at most the source's: what isn't tensors, and what we add
    const tensorBytes = gguf.tensors.reduce((sum, tensor) => sum + tensor.bytes, 0);
    const needed = plan.tensors.reduce((sum, tensor) => sum + ('from' in tensor ? tensor.from.reduce((bytes, { name }) => bytes + sizes.get(name)!, 0) : 4 * tensor.shape.reduce((a, b) => a * b, 1)), 0)
        + (gguf.bytes - tensorBytes) + 2 ** 20;
    const folder = path.dirname(path.resolve(output));
    const { blocks: size, bavail, bsize } = await fs.statfs(folder);
    if (size > 0 && bavail * bsize < needed) { // some network file systems don't tell
        throw new BlockprunerError(`there is no room for ${output}: about ${Math.ceil(needed / 2 ** 20)} MiB are needed and ${Math.floor(bavail * bsize / 2 ** 20)} MiB free in ${folder}`);
    }

    const partial = path.join(folder, `.blockpruner-partial-${crypto.randomUUID()}.gguf`);
    try {
        await runNative(signal, async (cancel) => addon.writeGguf({
            ...plan,
            output: partial,
            set: [...plan.set, ...provenanceKeys(gguf, provenance, await hashGguf(gguf, signal))]
        }, { cancel, ...(onProgress && { onProgress }) }));
        const handle = await fs.open(partial, 'r+');
        await handle.sync().finally(() => handle.close());
        await verify?.(partial);
        signal?.throwIfAborted();
        await giveName(partial, output, force);
    } catch (error) {
        await fs.rm(partial, { force: true });
        throw error;
    }
}

/**
 * Gives a complete file its name, at once.
 * @param what what the file is, in messages
 * @throws BlockprunerError if the name was taken meanwhile, and `force` is not set
 */
export async function giveName(partial: string, name: string, force = false, what = 'output'): Promise<void> {
    if (!force) {
        await linkOrCheck(partial, name, what);
    }
    await fs.rename(partial, name);
    await fs.rm(partial, { force: true }); // renaming a file to its other link leaves both
}

/** How a model is written without some blocks, all but the name of the output. */
export function planFile(gguf: Gguf, host: Host, blocks: readonly Block[], removed: readonly Block[], merges: Merges = new Map()): Omit<GgufPlan, 'output'> {
    const plan = host.plan(without(blocks, removed));
    const tensors = new Map(gguf.tensors.map((tensor) => [tensor.name, tensor]));
    const merged = (from: GgufSource): GgufSource => {
        const { layer, rest } = splitName(from.name);
        const weights = layer === undefined ? undefined : merges.get(layer);
        // norms stay, as in LaCo's own code
        if (!weights || rest!.includes('norm')) {
            return from;
        }
        return { ...from, sum: [...weights].map(([other, weight]) => {
            const tensor = tensors.get(`blk.${other}.${rest}`);
            if (!tensor || String(tensor.shape) !== String(tensors.get(from.name)!.shape)) {
                throw new BlockprunerError(`layer ${other} can't be merged into layer ${layer}: it has no ${rest} of the same shape`);
            }
            return { file: tensor.file, name: tensor.name, weight };
        }) };
    };
    return {
        ...plan,
        sources: gguf.files,
        remove: splitKeys,
        tensors: merges.size === 0 ? plan.tensors : plan.tensors.map((tensor) => ('from' in tensor ? { ...tensor, from: tensor.from.map(merged) } : tensor))
    };
}

/** Takes a name for a file, and fails if it was taken meanwhile; on file systems without links, shortly before it is used. */
async function linkOrCheck(file: string, name: string, what: string): Promise<void> {
    try {
        await fs.link(file, name);
    } catch (error) {
        const exists = (error as NodeJS.ErrnoException).code === 'EEXIST' || await fs.stat(name).then(() => true, () => false);
        if (exists) {
            throw new BlockprunerError(`the ${what} ${name} exists: choose another name or give --force`);
        }
    }
}

function provenanceKeys(gguf: Gguf, { removed, merges, calibration, perplexity }: Provenance, hash: string): GgufValue[] {
    return [
        { key: 'blockpruner.version', type: 'string', value: version },
        { key: 'blockpruner.source.name', type: 'string', value: path.basename(gguf.files[0]!) },
        { key: 'blockpruner.source.sha256', type: 'string', value: hash },
        { key: 'blockpruner.source.architecture', type: 'string', value: architectureOf(gguf) },
        { key: 'blockpruner.removed', type: 'string[]', value: removed.map(formatBlock) },
        ...(merges ? [{ key: 'blockpruner.merged', type: 'string[]' as const, value: formatMerges(merges) }] : []),
        { key: 'blockpruner.calibration.name', type: 'string', value: calibration.name },
        { key: 'blockpruner.calibration.sequences', type: 'u32', value: calibration.sequences },
        { key: 'blockpruner.calibration.context', type: 'u32', value: calibration.context },
        { key: 'blockpruner.perplexity.dense', type: 'f64', value: perplexity.dense },
        { key: 'blockpruner.perplexity.pruned', type: 'f64', value: perplexity.pruned }
    ];
}

/** `blk.5 = -2 blk.5 + 1 blk.6 + 1 blk.7 + 1 blk.8` */
export function formatMerges(merges: Merges): string[] {
    return [...merges].map(([layer, weights]) => `blk.${layer} = ${[...weights].map(([from, weight]) => `${weight} blk.${from}`).join(' + ')}`);
}

/* eslint-disable-next-line @typescript-eslint/no-require-imports -- outside of lib, where TypeScript doesn't look */
export const { version } = require('../../package.json') as { version: string };
