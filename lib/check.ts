// Checks of what enters a public function. Each throws an ArgumentError, which names the argument, what was expected
// and the value that was given. An optional argument that is undefined passes.
import { ArgumentError } from './errors.js';

/** @throws ArgumentError unless `value` is a number in the range */
export function checkNumber(
    argument: string,
    value: number | undefined,
    { least = -Infinity, most = Infinity } = {}
): void {
    if (value !== undefined && !(typeof value === 'number' && value >= least && value <= most)) {
        throw new ArgumentError(argument, `a number${rangeText(least, most)}`, value);
    }
}

/** @throws ArgumentError unless `value` is a whole number in the range */
export function checkInteger(
    argument: string,
    value: number | undefined,
    { least = -Infinity, most = Infinity } = {}
): void {
    if (value !== undefined && !(Number.isInteger(value) && value >= least && value <= most)) {
        throw new ArgumentError(argument, `a whole number${rangeText(least, most)}`, value);
    }
}

/** @throws ArgumentError unless `value` is one of the values that there are */
export function checkOneOf<T extends string>(
    argument: string,
    value: string | undefined,
    values: readonly T[]
): asserts value is T | undefined {
    if (value !== undefined && !values.some((one) => one === value)) {
        throw new ArgumentError(argument, `one of ${values.join(', ')}`, value);
    }
}

function rangeText(least: number, most: number): string {
    if (least === -Infinity) {
        return most === Infinity ? '' : ` of at most ${most}`;
    }
    return most === Infinity ? ` of at least ${least}` : ` from ${least} to ${most}`;
}
