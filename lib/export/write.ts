import fs from 'node:fs/promises';
import path from 'node:path';
import { loadAddon, runNative, type GgufPlan, type GgufSource, type GgufValue } from '../runtime/addon.js';
import { formatBlock, without, type Block } from '../runtime/blocks.js';
import { BlockprunerError } from '../errors.js';
import { hashGguf, type Gguf } from '../runtime/gguf.js';
import { checkOutput, giveName, partialIn } from '../output.js';
import { version } from '../version.js';
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
 * Writes a pruned model: beside its place, flushed, verified, and only then under its name. Memory: some MiB, whatever the
 * model's size.
 * @param blocks all blocks of the model in the order of the residual stream
 * @throws BlockprunerError if there is no room on the disk, or writing fails; nothing is left behind then
 */
export async function writePruned(
    gguf: Gguf,
    host: Host,
    blocks: readonly Block[],
    provenance: Provenance,
    output: string,
    options: WriteOptions = {}
): Promise<void> {
    const { force, verify, onProgress, signal } = options;
    const plan = planFile(gguf, host, blocks, provenance.removed, provenance.merges);
    const addon = await loadAddon();
    await checkOutput(output, gguf, force);

    const sizes = new Map(gguf.tensors.map((tensor) => [tensor.name, tensor.bytes]));
    // the header is at most the source's: what isn't tensors, and what we add
    const tensorBytes = gguf.tensors.reduce((sum, tensor) => sum + tensor.bytes, 0);
    const needed =
        plan.tensors.reduce(
            (sum, tensor) =>
                sum +
                ('from' in tensor
                    ? tensor.from.reduce((bytes, { name }) => bytes + sizes.get(name)!, 0)
                    : 4 * tensor.shape.reduce((a, b) => a * b, 1)),
            0
        ) +
        (gguf.bytes - tensorBytes) +
        2 ** 20;
    const folder = path.dirname(path.resolve(output));
    const { blocks: size, bavail, bsize } = await fs.statfs(folder);
    if (size > 0 && bavail * bsize < needed) {
        // some network file systems don't tell
        throw new BlockprunerError(
            'OUTPUT',
            `there is no room for ${output}: about ${Math.ceil(needed / 2 ** 20)} MiB are needed and ${Math.floor((bavail * bsize) / 2 ** 20)} MiB free in ${folder}`
        );
    }

    const partial = partialIn(folder, '.gguf');
    try {
        await runNative(signal, async (cancel) =>
            addon.writeGguf(
                {
                    ...plan,
                    output: partial,
                    set: [...plan.set, ...provenanceKeys(gguf, provenance, await hashGguf(gguf, signal))]
                },
                { cancel, ...(onProgress && { onProgress }) }
            )
        );
        const handle = await fs.open(partial, 'r+');
        await handle.sync().finally(() => handle.close());
        await verify?.(partial);
        signal?.throwIfAborted();
        giveName(partial, output, force);
    } catch (error) {
        await fs.rm(partial, { force: true });
        throw error;
    }
}

/** How a model is written without some blocks, all but the name of the output. */
export function planFile(
    gguf: Gguf,
    host: Host,
    blocks: readonly Block[],
    removed: readonly Block[],
    merges: Merges = new Map()
): Omit<GgufPlan, 'output'> {
    const plan = host.plan(without(blocks, removed));
    const tensors = new Map(gguf.tensors.map((tensor) => [tensor.name, tensor]));
    const merged = (from: GgufSource): GgufSource => {
        const { layer, rest } = splitName(from.name);
        const weights = layer === undefined ? undefined : merges.get(layer);
        // norms stay, as in LaCo's own code
        if (!weights || rest!.includes('norm')) {
            return from;
        }
        return {
            ...from,
            sum: [...weights].map(([other, weight]) => {
                const tensor = tensors.get(`blk.${other}.${rest}`);
                if (!tensor || String(tensor.shape) !== String(tensors.get(from.name)!.shape)) {
                    throw new BlockprunerError(
                        'UNSUPPORTED',
                        `layer ${other} can't be merged into layer ${layer}: it has no ${rest} of the same shape`
                    );
                }
                return { file: tensor.file, name: tensor.name, weight };
            })
        };
    };
    return {
        ...plan,
        sources: gguf.files,
        remove: splitKeys,
        tensors:
            merges.size === 0
                ? plan.tensors
                : plan.tensors.map((tensor) =>
                      'from' in tensor ? { ...tensor, from: tensor.from.map(merged) } : tensor
                  )
    };
}

function provenanceKeys(
    gguf: Gguf,
    { removed, merges, calibration, perplexity }: Provenance,
    hash: string
): GgufValue[] {
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
    return [...merges].map(
        ([layer, weights]) =>
            `blk.${layer} = ${[...weights].map(([from, weight]) => `${weight} blk.${from}`).join(' + ')}`
    );
}
