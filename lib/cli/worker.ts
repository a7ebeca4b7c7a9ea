import type { Argv } from 'yargs';
import { parseAddress } from '../cluster/connection.js';
import { serveRuns, type WorkerEvent } from '../cluster/worker.js';
import { BlockprunerError } from '../errors.js';
import { formatSeconds } from '../format.js';
import { interruptSignal } from './interrupt.js';
import { loadModel } from './model.js';
import { bytesOf, deviceOptions, modelArgument, redisOptions, searchOptions } from './options.js';
import { withProgress } from './progress.js';
import { tell } from './stderr.js';

export const command = 'worker <model>';
export const describe = 'Lend a model to the searches that meet at a Redis, until Ctrl-C';

export const builder = (yargs: Argv) =>
    modelArgument(yargs)
        .options({ ...redisOptions, ...deviceOptions, memory: searchOptions.memory })
        .example('$0 worker model.gguf --redis redis://host:6379', 'one on each computer, then there or elsewhere:')
        .example('$0 prune model.gguf --redis redis://host:6379 --ratio 0.2 -o smaller.gguf', '');

export async function handler(argv: Awaited<ReturnType<typeof builder>['argv']>): Promise<void> {
    const { redis, namespace } = argv;
    if (redis === undefined) {
        throw new BlockprunerError(
            'ARGUMENT',
            'say by --redis (or BLOCKPRUNER_REDIS) where searches are: redis://host:6379'
        );
    }
    parseAddress(redis); // before a model is loaded
    const keepBytes = bytesOf(argv.memory);
    const signal = interruptSignal();
    const model = await withProgress((progress) => loadModel(argv.model, argv, progress, signal));
    try {
        const onEvent = (event: WorkerEvent) => tell(eventLine(event), { ...event });
        await serveRuns(model, { redis, namespace, keepBytes, signal, onEvent });
    } finally {
        model.dispose();
    }
}

function eventLine(event: WorkerEvent): string {
    switch (event.event) {
        case 'ready':
            return `ready as ${event.worker} on ${event.device}; waiting for searches`;
        case 'joined':
            return `taking part in the search ${event.run}`;
        case 'refused':
            return `not taking part in the search ${event.run}: ${event.reason}`;
        case 'problem':
            return `Redis can't be used, and is tried again: ${event.reason}`;
        case 'left':
            return (
                `done with the search ${event.run}: ${event.units} units, ${event.sequences} sequences in ` +
                `${formatSeconds(event.seconds)}`
            );
    }
}
