import type { Argv } from 'yargs';
import { apply } from '../pipeline/apply.js';
import { readOrder } from '../search/order.js';
import { NOTHING_WRITTEN, printResult } from './prune.js';
import {
    calibrationOf,
    calibrationOptions,
    checkDevice,
    checkInteger,
    deviceOptions,
    interruptSignal,
    jsonOption,
    modelArgument,
    outputOptions,
    Progress
} from './shared.js';

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
            ...calibrationOptions,
            ...deviceOptions,
            json: jsonOption
        })
        .example(
            '$0 apply model.gguf --order order.json --remove 8 -o smaller.gguf',
            'the first eight blocks of the order'
        );

export async function handler(argv: Awaited<ReturnType<typeof builder>['argv']>): Promise<void> {
    checkDevice(argv);
    checkInteger('remove', argv.remove, 1);
    const order = await readOrder(argv.order, argv.remove);
    const progress = new Progress();
    try {
        const result = await apply(argv.model, {
            order,
            output: argv.output,
            force: argv.force,
            verify: argv.verify,
            calibration: calibrationOf(argv),
            device: argv.device,
            gpuLayers: argv['gpu-layers'],
            threads: argv.threads,
            signal: interruptSignal(NOTHING_WRITTEN),
            onProgress: progress.update
        });
        progress.stop();
        printResult(result, argv.json, argv.verify);
    } finally {
        progress.stop();
    }
}
