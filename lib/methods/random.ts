import { randomNumbers } from '../random.js';
import { lowestMove, unitsOf } from './moves.js';
import { stepwise } from './stepwise.js';

/** Removes blocks at random: what any other method must beat. */
export const random = stepwise('random', 'block', (options) =>
    lowestMove('block', options, unitsOf('block', options).map(randomNumbers(options.seed ?? 0)))
);
