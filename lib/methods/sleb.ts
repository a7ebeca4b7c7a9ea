import { allMoves } from './moves.js';
import { stepwise } from './stepwise.js';

/**
 * Removes whole layers, always the one that raises the perplexity least (Song et al., ICML 2024, arXiv 2402.09025,
 * algorithm 1).
 */
export const sleb = stepwise('sleb', 'layer', (options) => allMoves('layer', options), 'removal');
