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
import * as rpcServer from './rpc-server.js';
import * as worker from './worker.js';
import { Interrupted } from './interrupt.js';
import { tell, tellInJson } from './stderr.js';
import { messageInWords } from './words.js';

/** What to do next, for who has typed nothing else. */
const FIRST_LOOK = `blockpruner makes a GGUF language model smaller and faster, without training it.

    npx blockpruner inspect model.gguf                               what can be removed
    npx blockpruner prune model.gguf --ratio 0.1 -o smaller.gguf     a tenth of it less, checked in the stock runtime
    npx blockpruner compare model.gguf -o comparison                 what that costs, beside quantization
    npx blockpruner --help                                           everything else`;

async function main(): Promise<void> {
    if (process.argv.length === 2 && process.stdout.isTTY) {
        console.log(FIRST_LOOK);
        return;
    }
    const args = inFormsOfYargs(hideBin(process.argv));
    if (args.some((arg) => /^--(json-progress|jsonProgress)(=true)?$/.test(arg))) {
        tellInJson(); // before yargs, whose errors are told so too
    }
    await yargs(args)
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
        .command(worker)
        .command(rpcServer)
        .option('json-progress', {
            type: 'boolean',
            describe: 'Tell progress, notices and errors on stderr as one JSON object a line'
        })
        .demandCommand(
            1,
            'say what to do: prune, apply, adapt, perplexity, eval, compare, inspect, devices, worker or rpc-server'
        )
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
    const message = expected || !(error instanceof Error) ? messageInWords(error) : error.stack;
    const code = error instanceof BlockprunerError ? error.code : null;
    tell(`blockpruner: ${message}`, { error: message, code });
    process.exitCode = interrupted ? 130 : 1;
});
