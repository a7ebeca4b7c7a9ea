// The library's errors in the words of the command line, which has names of its own for some options.
import { ArgumentError, messageOf } from '../errors.js';

/** Options of the command line that aren't called as in the library, or count in another unit. */
const options: Record<string, { flag: string; unit?: number }> = {
    orderFile: { flag: 'order' },
    keepBytes: { flag: 'memory', unit: 2 ** 20 },
    gpuLayers: { flag: 'gpu-layers' },
    maxIncrease: { flag: 'max-increase' },
    methodSeed: { flag: 'method-seed' },
    textSamples: { flag: 'text-samples' }
};

function flagOf(name: string): string {
    return options[name]?.flag ?? name;
}

/** The message of an error, with `--resume` for `` `resume: true` ``, and `--no-resume` for `` `resume: false` ``. */
export function messageInWords(error: unknown): string {
    if (error instanceof ArgumentError) {
        const { argument, expected, value, hint } = error;
        const given = typeof value === 'number' ? value / (options[argument]?.unit ?? 1) : value;
        // what isn't a number has been lost by then
        const found = Number.isNaN(given) ? '' : `, not ${typeof given === 'string' ? `'${given}'` : String(given)}`;
        return `--${flagOf(argument)} must be ${expected}${found}${hint === undefined ? '' : `: ${hint}`}`;
    }
    return messageOf(error).replace(/`(\w+)(?:: (true|false))?`/g, (_, name: string, value?: string) =>
        value === 'false' ? `--no-${flagOf(name)}` : `--${flagOf(name)}`
    );
}
