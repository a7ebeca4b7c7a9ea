#!/usr/bin/env node
import yargs from 'yargs';
import { hideBin } from 'yargs/helpers';
import { BlockprunerError } from '../errors.js';
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
    await yargs(hideBin(process.argv))
        .scriptName('blockpruner')
        .usage(
            '$0 <command>\n\nMakes a GGUF language model smaller and faster without training it; ' +
                'stock llama.cpp loads the result.'
        )
        .command(prune)
        .command(apply)
        .command(perplexity)
        .command(evaluate)
        .command(compare)
        .command(inspect)
        .command(devices)
        .demandCommand(1, 'say what to do: prune, apply, perplexity, eval, compare, inspect or devices')
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

main().catch((error: unknown) => {
    // what the user can put right is one line; anything else is a defect of ours, and its stack helps to find it
    const expected = error instanceof BlockprunerError || error instanceof Interrupted;
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
