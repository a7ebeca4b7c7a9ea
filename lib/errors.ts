/**
 * Something that the caller can put right: a wrong argument, an unreadable file, an unsupported model. Its message is
 * one line that says what was wrong with which input and what to do. The command line prints it without a stack trace.
 */
export class BlockprunerError extends Error {
    override readonly name = 'BlockprunerError';
}

/** A method of pruning can't do with this model what was asked of it; another one, or less, may work. */
export class MethodError extends BlockprunerError {}

/** The message of anything that was thrown. */
export function messageOf(error: unknown): string {
    return error instanceof Error ? error.message : String(error);
}

/** @throws BlockprunerError if a number is outside of a range */
export function checkRange(name: string, value: number | undefined, low: number, high: number, integer = false): void {
    if (value !== undefined && (!(value >= low && value <= high) || (integer && !Number.isInteger(value)))) {
        throw new BlockprunerError(
            `${name} must be ${integer ? 'a whole number' : 'a number'} ${high === Infinity ? `of at least ${low}` : `from ${low} to ${high}`}, not ${value}`
        );
    }
}
