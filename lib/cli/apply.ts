import type { Argv } from 'yargs';
import { apply } from '../pipeline/apply.js';
import { readOrder } from '../search/order.js';
import { interruptSignal, NOTHING_WRITTEN } from './interrupt.js';
import {
    calibrationOf,
    calibrationOptions,
    deviceOf,
    deviceOptions,
    jsonOption,
    modelArgument,
    outputOptions,
    repairOf,
    repairOptions
} from './options.js';
import { print, pruneResultLines } from './print.js';
import { withProgress } from './progress.js';

export const command = 'apply <model>';
export const describe = 'Write the model without the first blocks of a known order, without a search';

export const builder = (yargs: Argv) =>
    modelArgument(yargs)
        .options({
            order: {
                type: 'string',
                demandOption: true,
                describe: "An order file, as prune --order or the paper's repository writes it"
            },
            remove: { type: 'number', demandOption: true, describe: 'Remove so many blocks of it' },
            ...outputOptions,
            ...repairOptions,
            ...calibrationOptions,
            ...deviceOptions,
            json: jsonOption
        })
        .example(
            '$0 apply model.gguf --order order.json --remove 8 -o smaller.gguf',
            'the first eight blocks of the order'
        );

export async function handler(argv: Awaited<ReturnType<typeof builder>['argv']>): Promise<void> {
    const { output, force, verify } = argv;
    const order = await readOrder(argv.order, argv.remove);
    const signal = interruptSignal(NOTHING_WRITTEN);
    const result = await withProgress(({ update }) =>
        apply(argv.model, {
            order,
            output,
            force,
            verify,
            ...repairOf(argv),
            calibration: calibrationOf(argv),
            ...deviceOf(argv),
            signal,
            onProgress: update
        })
    );
    print(result, argv.json, () => pruneResultLines(result, verify));
}
