import { BlockprunerError } from '../errors.js';
import { chooseHost } from '../export/choose-host.js';
import type { Host } from '../export/host.js';
import { historyOf, type PastPruning } from '../export/provenance.js';
import { bare, type Block, type Move } from '../runtime/blocks.js';
import { readGguf, type Gguf } from '../runtime/gguf.js';
import { Model, type BlockInfo } from '../runtime/model.js';
import { resolveModel } from '../runtime/resolve.js';
import type { SessionOptions } from './session.js';

export interface Inspection {
    architecture: string;
    /** The architecture that a pruned model is written as; null where there is none. */
    host: string | null;
    /** Why that architecture, and what can go; or why there is none. */
    reason: string;
    /** The moves that can be made first: each block that can go, with those that must go with it. */
    moves: Move[];
    /** What a repair of the pruned model can do. */
    repair: {
        /** Whether linear blocks can be put into the gaps. */
        linear: boolean;
        /** The blocks whose output projections can't be fitted: they stay as they are. */
        unfitted: Block[];
        /** The blocks whose input projections can't. */
        unfittedInputs: Block[];
    };
    layers: number;
    blocks: BlockInfo[];
    /** How the model was pruned before, the last time first. */
    history: PastPruning[];
}

/**
 * Shows what a model consists of and how it can be pruned. No weights are read.
 * @throws BlockprunerError if the model can't be had or read, or its blocks aren't found
 */
export async function inspect(
    model: string,
    options: Pick<SessionOptions, 'signal' | 'onProgress'> = {}
): Promise<Inspection> {
    const { signal, onProgress } = options;
    const file = await resolveModel(model, {
        signal,
        onProgress: (done, total) => onProgress?.('download', done, total)
    });
    // first, since it looks at the model in a process of its own, which llama.cpp may end
    const { host, reason } = await tryHost(await readGguf(file, signal), signal);
    const loaded = await Model.load(file, {
        device: 'cpu',
        headerOnly: true,
        signal,
        onProgress: (done, total) => onProgress?.('load', done, total)
    });
    try {
        const graph = await loaded.graph(signal);
        const blocks = await loaded.blocks(signal);
        const { architecture, layers } = loaded;
        return {
            architecture,
            host: host?.name ?? null,
            reason,
            moves: (host?.moves(blocks) ?? []).map(bare),
            repair: {
                linear: host?.linear ?? false,
                unfitted: bare(graph.blocks.filter(({ refittable }) => !refittable)),
                unfittedInputs: bare(graph.blocks.filter(({ inputsRefittable }) => !inputsRefittable))
            },
            layers,
            blocks,
            history: historyOf(loaded.gguf)
        };
    } finally {
        loaded.dispose();
    }
}

/** The host of a model, or the reason why there is none. */
async function tryHost(gguf: Gguf, signal?: AbortSignal): Promise<{ host?: Host; reason: string }> {
    try {
        const host = await chooseHost(gguf, signal);
        return { host, reason: host.reason };
    } catch (error) {
        if (!(error instanceof BlockprunerError) || error.code !== 'UNSUPPORTED') {
            throw error;
        }
        return { reason: error.message };
    }
}
