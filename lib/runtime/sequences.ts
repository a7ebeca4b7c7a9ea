import { types } from 'node:util';
import { checkInteger } from '../check.js';
import { ArgumentError } from '../errors.js';

/** Token sequences of equal length, one after the other. */
export interface Sequences {
    tokens: Int32Array;
    /** tokens in a sequence, at least 2 */
    length: number;
}

/** @throws ArgumentError unless the tokens are whole sequences */
export function checkSequences({ tokens, length }: Sequences): void {
    checkInteger('length', length ?? NaN, { least: 2 });
    if (!types.isInt32Array(tokens)) {
        throw new ArgumentError('tokens', 'an Int32Array', tokens);
    }
    if (tokens.length === 0 || tokens.length % length !== 0) {
        throw new ArgumentError('tokens', `whole sequences of ${length} tokens`, tokens.length);
    }
}

/** The number of sequences. */
export function countSequences({ tokens, length }: Sequences): number {
    return tokens.length / length;
}
