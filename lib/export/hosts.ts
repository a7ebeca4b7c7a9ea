import { BlockprunerError } from '../errors.js';
import type { Model } from '../model.js';
import { deciHost } from './deci.js';
import { architectureOf, type Host, type Source } from './host.js';
import { openelmHost } from './openelm.js';
import { ownHost } from './own.js';
import { Prober } from './probe.js';

/**
 * Finds the architecture that a model's pruned version is written as: one in which single blocks can go, else its own.
 * @throws BlockprunerError saying why there is none
 */
export async function chooseHost(model: Model, signal?: AbortSignal): Promise<Host> {
    const { gguf } = model;
    const graph = await model.graph(signal);
    const prober = new Prober(gguf, signal);
    const source: Source = { gguf, graph, probe: (plan) => prober.probe(plan) };
    const reasons: string[] = [];
    try {
        for (const find of [deciHost, openelmHost, ownHost]) {
            const host = await find(source);
            if (typeof host !== 'string') {
                return { ...host, reason: host.reason + (reasons.length > 0 ? ` (${reasons.join('; ')})` : '') };
            }
            reasons.push(host);
        }
    } finally {
        prober.close();
    }
    throw new BlockprunerError(`${gguf.files[0]} (architecture '${architectureOf(gguf)}') can be evaluated, but can't be written without blocks: ${reasons.join('; ')}`);
}
