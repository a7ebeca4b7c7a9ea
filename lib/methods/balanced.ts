import { formatMove } from '../runtime/blocks.js';
import { allMoves } from './moves.js';
import { stepwise } from './stepwise.js';

/**
 * Removes blocks or whole layers, always what raises the NLL least for the parameters that go with it. A search that
 * counts removals, as BlockPruner's, prefers small blocks: it needs more of them for the same share of the model.
 */
export const balanced = stepwise(
    'balanced',
    'block',
    (options) => {
        const blocks = allMoves('block', options);
        const layers = allMoves('layer', options);
        return (removed, most) => {
            const moves = [...blocks(removed, most), ...layers(removed, most)];
            return [...new Map(moves.map((move) => [formatMove(move), move])).values()];
        };
    },
    'parameters'
);
