import { blockInfluence } from './block-influence.js';
import { lowestMove } from './moves.js';
import { stepwise } from './stepwise.js';

/**
 * Removes the layers with the lowest Block Influence, measured once in the dense model (Men et al. 2024, arXiv
 * 2403.03853, section 3.2).
 */
export const shortgpt = stepwise('shortgpt', 'layer', async (options) =>
    lowestMove('layer', options, await blockInfluence('layer', options))
);
