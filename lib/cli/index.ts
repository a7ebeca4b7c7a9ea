#!/usr/bin/env node
import yargs from 'yargs';
import { hideBin } from 'yargs/helpers';
import { BlockprunerError } from '../errors.js';
import * as adapt from './adapt.js';
import * as apply from './apply.js';
import * as compare from './compare.js';
import * as devices from './devices.js';
import * as evaluate from './eval.js';
import * as inspect from './inspect.js';
import * as perplexity from './perplexity.js';
import * as prune from './prune.js';
import { Interrupted } from './interrupt.js';
import { messageInWords } from './words.js';

async function main(): Promise<void> {
    await yargs(inFormsOfYargs(hideBin(process.argv)))
        .scriptName('blockpruner')
        .usage(
            '$0 <command>\n\nMakes a GGUF language model smaller and faster without training it; ' +
                'stock llama.cpp loads the result.'
        )
        .command(prune)
        .command(apply)
        .command(adapt)
        .command(perplexity)
        .command(evaluate)
        .command(compare)
        .command(inspect)
        .command(devices)
        .demandCommand(1, 'say what to do: prune, apply, adapt, perplexity, eval, compare, inspect or devices')
        .strict()
        .recommendCommands()
        .parserConfiguration({ 'duplicate-arguments-array': false }) // the last one counts
        .wrap(Math.min(120, process.stderr.columns ?? 120))
        .fail((message: string | null, error: Error | undefined) => {
            throw (
                error ?? new BlockprunerError('ARGUMENT', `${message?.replace(/\s*\n\s*/g, ' ')} (--help tells more)`)
            );
        })
        .help()
        .version()
        .parseAsync();
}

/**
 * Arguments that people write and yargs doesn't understand: -oFILE becomes -o FILE; and names behind --, which may
 * begin with a hyphen, get a ./ in front of it.
 */
function inFormsOfYargs(args: readonly string[]): string[] {
    const end = args.indexOf('--');
    const options = end < 0 ? args : args.slice(0, end);
    const names = end < 0 ? [] : args.slice(end + 1);
    return [
        ...options.flatMap((arg) => (/^-o[^=]/.test(arg) ? ['-o', arg.slice(2)] : [arg])),
        ...names.map((name) => (name.startsWith('-') ? `./${name}` : name))
    ];
}

main().catch((error: unknown) => {
    // what the user can put right is one line; anything else is a defect of ours, and its stack helps to find it
    const ofSystem = error instanceof Error && 'syscall' in error; // a disk that is full, a file that may not be read
    const expected = error instanceof BlockprunerError || error instanceof Interrupted || ofSystem;
    const interrupted =
        error instanceof Interrupted ||
        (error instanceof Error && (error.cause as { code?: string } | undefined)?.code === 'BUILD_INTERRUPTED');
    process.stderr.write(
        expected || !(error instanceof Error)
            ? `blockpruner: ${messageInWords(error)}\n`
            : `blockpruner: ${error.stack}\n`
    );
    process.exitCode = interrupted ? 130 : 1;
});
