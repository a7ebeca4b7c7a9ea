import { BlockprunerError } from '../errors.js';
import type { Gguf } from '../runtime/gguf.js';
import { deciHost } from './deci.js';
import { architectureOf, type Host, type Source } from './host.js';
import { openelmHost } from './openelm.js';
import { ownHost } from './own.js';
import { Prober } from './probe.js';

/**
 * Finds the architecture that a model's pruned version is written as: one in which single blocks can go, else its own.
 * The weights need not be loaded for that.
 * @throws BlockprunerError if it is no causal language model or its blocks aren't found, or saying why there is no host
 */
export async function chooseHost(gguf: Gguf, signal?: AbortSignal): Promise<Host> {
    const prober = new Prober(signal);
    const reasons: string[] = [];
    try {
        const source: Source = {
            gguf,
            graph: await prober.source(gguf.files[0]!),
            probe: (plan) => prober.probe(gguf, plan)
        };
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
    throw new BlockprunerError(
        'UNSUPPORTED',
        `${gguf.files[0]} (architecture '${architectureOf(gguf)}') can be evaluated, ` +
            `but can't be written without blocks: ${reasons.join('; ')}`
    );
}
