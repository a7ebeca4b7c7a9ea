import type { Argv } from 'yargs';
import { BlockprunerError } from '../errors.js';
import { apply } from '../pipeline/apply.js';
import { repairJournalOf } from '../pipeline/repair.js';
import { parseBlocks, type Block } from '../runtime/blocks.js';
import { readOrder } from '../search/order.js';
import { interruptSignal, NOTHING_WRITTEN, withOutcome } from './interrupt.js';
import {
    calibrationOf,
    calibrationOptions,
    deviceOf,
    deviceOptions,
    jsonOption,
    modelArgument,
    outputOptions,
    quantizeOf,
    quantizeOptions,
    repairOf,
    repairOptions
} from './options.js';
import { print, pruneResultLines } from './print.js';
import { withProgress } from './progress.js';

export const command = 'apply <model>';
export const describe = 'Write the model without blocks that you name, or the first ones of a known order';

export const builder = (yargs: Argv) =>
    modelArgument(yargs)
        .options({
            blocks: { type: 'string', describe: 'The blocks to remove, such as attn.6,ffn.16' },
            order: {
                type: 'string',
                describe: "Or an order file, as prune --order or the paper's repository writes it"
            },
            remove: { type: 'number', describe: 'Remove so many blocks of the order' },
            ...outputOptions,
            ...repairOptions,
            ...quantizeOptions,
            ...calibrationOptions,
            ...deviceOptions,
            json: jsonOption
        })
        .example(
            '$0 apply model.gguf --order order.json --remove 8 -o smaller.gguf',
            'the first eight blocks of the order'
        )
        .example('$0 apply model.gguf --blocks attn.20,ffn.16 -o smaller.gguf', 'two blocks by their names');

export async function handler(argv: Awaited<ReturnType<typeof builder>['argv']>): Promise<void> {
    const { output, force, verify } = argv;
    const order = await orderOf(argv);
    const signal = interruptSignal(NOTHING_WRITTEN);
    try {
        const result = await withProgress(({ update }) =>
            apply(argv.model, {
                order,
                output,
                force,
                verify,
                ...repairOf(argv),
                ...quantizeOf(argv),
                calibration: calibrationOf(argv),
                ...deviceOf(argv),
                signal,
                onProgress: update
            })
        );
        print(result, argv.json, () => pruneResultLines(result, verify));
    } catch (error) {
        const outcome = `${NOTHING_WRITTEN}; the same command goes on with what the repair has found`;
        throw withOutcome(error, repairJournalOf(output), outcome);
    }
}

interface Wanted {
    blocks?: string | undefined;
    order?: string | undefined;
    remove?: number | undefined;
}

/** The blocks to remove. */
async function orderOf({ blocks, order, remove }: Wanted): Promise<Block[]> {
    const named = parseBlocks(blocks ?? '');
    if (blocks !== undefined && order === undefined && remove === undefined && named.length > 0) {
        return named;
    }
    if (blocks === undefined && order !== undefined && remove !== undefined) {
        return readOrder(order, remove);
    }
    throw new BlockprunerError(
        'ARGUMENT',
        'say which blocks to remove: either by their names, --blocks attn.6,ffn.16, or by --order FILE and --remove N'
    );
}
