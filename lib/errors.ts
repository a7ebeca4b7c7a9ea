/**
 * What kind of thing went wrong, for programs.
 *
 * - `ARGUMENT`: an argument is missing, out of its range, or contradicts another one ({@link ArgumentError} names it).
 * - `MODEL`: the file of a model can't be read, or is damaged or incomplete.
 * - `UNSUPPORTED`: the model is of a kind that can't be evaluated or written.
 * - `INPUT`: another file that was given (text, questions, order, journal, results) can't be read or isn't what it
 *   should be.
 * - `OUTPUT`: a file can't be written, exists already, or has no room.
 * - `RESUME`: there is something of an earlier run, and it is not said, or not possible, to go on with it.
 * - `METHOD`: the method of pruning can't do with this model what was asked of it ({@link MethodError}).
 * - `DEVICE`: the device that was asked for isn't there.
 * - `DOWNLOAD`: a URI can't be fetched.
 * - `ADDON`: the native addon can't be built or loaded.
 * - `RUNTIME`: llama.cpp, or the stock runtime, failed.
 * - `REDIS`: Redis, or the workers of a search that is shared over it, can't be used.
 * - `VERIFICATION`: the stock runtime computes something else of the written file than the search did.
 */
export type ErrorCode =
    | 'ARGUMENT'
    | 'MODEL'
    | 'UNSUPPORTED'
    | 'INPUT'
    | 'OUTPUT'
    | 'RESUME'
    | 'METHOD'
    | 'DEVICE'
    | 'DOWNLOAD'
    | 'ADDON'
    | 'RUNTIME'
    | 'REDIS'
    | 'VERIFICATION';

/**
 * Something that the caller can put right: a wrong argument, an unreadable file, an unsupported model. Its message is
 * one line that says what was wrong with which input and what to do; options that it names stand in backticks, such as
 * `force: true`, so that the command line can name its own. The command line prints it without a stack trace.
 */
export class BlockprunerError extends Error {
    override readonly name = 'BlockprunerError';

    constructor(
        readonly code: ErrorCode,
        message: string,
        options?: ErrorOptions
    ) {
        super(message, options);
    }
}

/** An argument of a public function has a value that it can't have. */
export class ArgumentError extends BlockprunerError {
    /**
     * @param argument its name, such as `samples`
     * @param expected what it must be, such as `a whole number of at least 1`
     * @param value what was given
     * @param hint what to do instead, if there is something to say
     */
    constructor(
        readonly argument: string,
        readonly expected: string,
        readonly value: unknown,
        readonly hint?: string
    ) {
        const given = typeof value === 'string' ? `'${value}'` : String(value);
        super('ARGUMENT', `${argument} must be ${expected}, not ${given}${hint === undefined ? '' : `: ${hint}`}`);
    }
}

/** A method of pruning can't do with this model what was asked of it; another method, or less, may work. */
export class MethodError extends BlockprunerError {
    constructor(message: string) {
        super('METHOD', message);
    }
}

/**
 * How messages name an option of the library: `` `resume: true` ``. The command line puts its own name in that place,
 * see cli/words.ts.
 */
export function option(name: string, value?: boolean): string {
    return value === undefined ? `\`${name}\`` : `\`${name}: ${value}\``;
}

/** The message of anything that was thrown. */
export function messageOf(error: unknown): string {
    return error instanceof Error ? error.message : String(error);
}
