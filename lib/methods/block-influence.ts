import type { MethodOptions, PruningMethod } from './method.js';
import { lowestMove, unitsOf } from './moves.js';
import { stepwise } from './stepwise.js';

/**
 * Measures the Block Influence of each block or layer in the dense model: 1 − E[cos(x, y)] of the residual stream
 * before it, x, and after it, y (Men et al. 2024, arXiv 2403.03853, section 3.2).
 */
export async function blockInfluence(unit: PruningMethod['unit'], options: MethodOptions): Promise<number[]> {
    const { model, calibration, signal } = options;
    const changes = await model.influence(calibration, unitsOf(unit, options), { signal });
    return changes.map(({ cosine }) => 1 - cosine);
}

/**
 * Removes the single blocks with the lowest Block Influence, measured once: ShortGPT's measure at the paper's
 * granularity.
 */
export const blockInfluenceMethod = stepwise('block-influence', 'block', async (options) =>
    lowestMove('block', options, await blockInfluence('block', options))
);
