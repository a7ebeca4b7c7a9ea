import fs from 'node:fs/promises';
import path from 'node:path';
import { BlockprunerError } from '../errors.js';
import { checkOutput, draftOf, partialIn, type Draft } from '../output.js';
import { loadAddon, runNative, type GgufPlan, type GgufSource, type GgufValue } from '../runtime/addon.js';
import { without, type Block, type Removal, type TensorChange } from '../runtime/blocks.js';
import { hashGguf, parametersOf, type Gguf } from '../runtime/gguf.js';
import { splitKeys, splitName, type Host } from './host.js';
import { previousKeys, provenanceKeys, type Provenance } from './provenance.js';

/**
 * A model to prune: its files, its blocks in the order of the residual stream, and how it is written without some of
 * them.
 */
export interface DenseModel {
    gguf: Gguf;
    blocks: readonly Block[];
    host: Host;
}

export interface WriteOptions {
    /** Replace an existing file. Default: false. */
    force?: boolean | undefined;
    onProgress?: ((bytes: number, total: number) => void) | undefined;
    signal?: AbortSignal | undefined;
}

/**
 * Writes a pruned model beside its place, so that it can be verified before it gets its name. Memory: some MiB,
 * whatever the model's size.
 * @param output the name that the file is to get
 * @throws BlockprunerError if the model can't be written without these blocks, if there is no room on the disk, if the
 * name is taken, or if writing fails; nothing is left behind then
 */
export async function writeDraft(
    model: DenseModel,
    removal: Removal,
    provenance: Provenance,
    output: string,
    { force, onProgress, signal }: WriteOptions = {}
): Promise<Draft> {
    const { gguf } = model;
    const plan = planFile(model, removal);
    const addon = await loadAddon();
    await checkOutput(output, gguf.files, force);
    await checkRoom(output, neededBytes(gguf, plan));
    const folder = path.dirname(path.resolve(output));

    const file = partialIn(folder, '.gguf');
    try {
        const keys = provenanceKeys(gguf, removal, plan.tensors, provenance, await hashGguf(gguf, signal));
        await runNative(signal, (cancel) =>
            addon.writeGguf(
                { ...plan, output: file, set: [...plan.set, ...sizeLabel(gguf, plan), ...keys] },
                { cancel, ...(onProgress && { onProgress }) }
            )
        );
        return await draftOf(file, output, { force });
    } catch (error) {
        await fs.rm(file, { force: true });
        throw error;
    }
}

/**
 * Plans how a model is written without some blocks, and with those that are put in: all but the name of the output.
 * @throws BlockprunerError if it can't be written so
 */
export function planFile({ gguf, host, blocks }: DenseModel, removal: Removal): Omit<GgufPlan, 'output'> {
    const {
        removed,
        merges = new Map<never, never>(),
        linear = [],
        changes = new Map<never, never>(),
        changedType
    } = removal;
    if (linear.length > 0 && !host.linear) {
        throw new BlockprunerError('UNSUPPORTED', `linear blocks can't be written as ${host.name}, only as deci`);
    }
    const plan = host.plan(without(blocks, removed), linear);
    const tensors = new Map(gguf.tensors.map((tensor) => [tensor.name, tensor]));
    const merged = (from: GgufSource): GgufSource => {
        const { layer, rest } = splitName(from.name);
        const weights: ReadonlyMap<number, number> | undefined = layer === undefined ? undefined : merges.get(layer);
        if (!weights || rest!.includes('norm')) {
            return from; // norms stay as they are, as in LaCo's own code
        }
        const sum = [...weights].map(([other, weight]) => {
            const tensor = tensors.get(`blk.${other}.${rest}`);
            if (!tensor || String(tensor.shape) !== String(tensors.get(from.name)!.shape)) {
                throw new BlockprunerError(
                    'UNSUPPORTED',
                    `layer ${other} can't be merged into layer ${layer}: it has no ${rest} of the same shape`
                );
            }
            return { file: tensor.file, name: tensor.name, weight };
        });
        return { ...from, sum };
    };
    const changed = (from: GgufSource): GgufSource => {
        const change: TensorChange | undefined = changes.get(from.name);
        if (!change) {
            return from;
        }
        const sum = from.sum ?? [{ file: from.file, name: from.name, weight: 1 }];
        return { ...from, sum, ...change, ...(changedType !== undefined && { sumType: changedType }) };
    };
    return {
        ...plan,
        sources: gguf.files,
        remove: [...splitKeys],
        // what made the source, if that was pruned too, is its history
        rename: [...plan.rename, ...previousKeys],
        tensors: plan.tensors.map((tensor) =>
            'from' in tensor ? { ...tensor, from: tensor.from.map((from) => changed(merged(from))) } : tensor
        )
    };
}

/**
 * How many bytes a planned file has, at most: the tensors', 4 for each value that is new or changes its type, and a
 * header no larger than the source's.
 */
function neededBytes(gguf: Gguf, plan: Omit<GgufPlan, 'output'>): number {
    const sum = (values: number[]) => values.reduce((total, value) => total + value, 0);
    const sizes = new Map(gguf.tensors.map(({ name, bytes }) => [name, bytes]));
    const values = new Map(gguf.tensors.map((tensor) => [tensor.name, parametersOf(tensor)]));
    const tensors = plan.tensors.map((tensor) =>
        'from' in tensor
            ? sum(tensor.from.map(({ name, sumType }) => (sumType ? 4 * values.get(name)! : sizes.get(name)!)))
            : 4 * parametersOf(tensor)
    );
    const header = gguf.bytes - sum([...sizes.values()]);
    return sum(tensors) + header + 2 ** 20; // the last is for the keys that are added
}

/**
 * @param needed bytes
 * @param what what takes them, for messages
 * @throws BlockprunerError if the file system of an output has too little room
 */
export async function checkRoom(output: string, needed: number, what = output): Promise<void> {
    const folder = path.dirname(path.resolve(output));
    const { blocks, bavail, bsize } = await fs.statfs(folder);
    const isKnown = blocks > 0; // some network file systems don't tell
    if (isKnown && bavail * bsize < needed) {
        throw new BlockprunerError(
            'OUTPUT',
            `there is no room for ${what}: about ${Math.ceil(needed / 2 ** 20)} MiB are needed ` +
                `and ${Math.floor((bavail * bsize) / 2 ** 20)} MiB free in ${folder}`
        );
    }
}

/** The size in the name of the model, if it has one, as llama.cpp's converter writes it: 135M, 1.1B. */
function sizeLabel(gguf: Gguf, plan: Omit<GgufPlan, 'output'>): GgufValue[] {
    const key = 'general.size_label';
    if (!/^[\d.]+[KMBT]$/.test(String(gguf.metadata[key]))) {
        return []; // there is none, or it counts experts too
    }
    const values = new Map(gguf.tensors.map((tensor) => [tensor.name, parametersOf(tensor)]));
    const count = plan.tensors
        .map((tensor) =>
            'from' in tensor ? tensor.from.reduce((sum, { name }) => sum + values.get(name)!, 0) : parametersOf(tensor)
        )
        .reduce((sum, size) => sum + size, 0);
    const [unit, letter] = (
        [
            [1e12, 'T'],
            [1e9, 'B'],
            [1e6, 'M'],
            [1e3, 'K']
        ] as const
    ).find(([size]) => count > size || size === 1e3)!;
    const scaled = count / unit;
    return [{ key, type: 'string', value: `${scaled.toFixed(scaled < 9.5 ? 1 : 0)}${letter}` }];
}
