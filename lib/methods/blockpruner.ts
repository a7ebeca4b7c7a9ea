import { allMoves } from './moves.js';
import { stepwise } from './stepwise.js';

/** Removes blocks, always the one that raises the perplexity least (Zhong et al. 2025, algorithm 1). */
export const blockpruner = stepwise('blockpruner', 'block', (options) => allMoves('block', options), 'removal');
