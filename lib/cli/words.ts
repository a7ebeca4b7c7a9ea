// The library's errors in the words of the command line.
import { ArgumentError, messageOf } from '../errors.js';

/** Options whose names aren't those of the library, written with hyphens. */
const flags: Record<string, string> = { orderFile: 'order', keepBytes: 'memory' };

/** The option that stands for an argument of the library: `--gpu-layers` for `gpuLayers`. */
function flagOf(argument: string): string {
    return `--${flags[argument] ?? argument.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`;
}

/** The message of an error, with `--resume` for `` `resume: true` `` and `--no-resume` for `` `resume: false` ``. */
export function messageInWords(error: unknown): string {
    if (error instanceof ArgumentError) {
        const { argument, expected, value, hint } = error;
        // Of what isn't a number, yargs leaves only NaN, which would tell the user nothing.
        const found = Number.isNaN(value) ? '' : `, not ${typeof value === 'string' ? `'${value}'` : String(value)}`;
        return `${flagOf(argument)} must be ${expected}${found}${hint === undefined ? '' : `: ${withFlags(hint)}`}`;
    }
    return withFlags(messageOf(error));
}

function withFlags(text: string): string {
    return text.replace(/`(\w+)(?:: (true|false))?`/g, (_, argument: string, value?: string) =>
        value === 'false' ? flagOf(argument).replace('--', '--no-') : flagOf(argument)
    );
}
