import type { Argv } from 'yargs';
import { checkTextOptions, textPerplexity, type Perplexity } from '../evaluation/perplexity.js';
import { BlockprunerError } from '../errors.js';
import { formatFixed, formatPercent } from '../format.js';
import { parseBlocks } from '../runtime/blocks.js';
import { interruptSignal } from './interrupt.js';
import { loadModel, shared } from './model.js';
import {
    calibrationOptions,
    clusterOf,
    clusterOptions,
    deviceOptions,
    jsonOption,
    modelArgument,
    skipOption
} from './options.js';
import { print } from './print.js';
import { withProgress } from './progress.js';

export const command = 'perplexity <model>';
export const describe = 'Measure the perplexity of a model on a text, with any blocks left out';

export const builder = (yargs: Argv) =>
    modelArgument(yargs)
        .options({
            text: {
                type: 'string',
                demandOption: true,
                describe: 'A text file, or samples of JSON, as of --calibration'
            },
            field: calibrationOptions.field,
            context: calibrationOptions.context,
            skip: skipOption,
            samples: { type: 'number', describe: 'Only the first so many sequences', defaultDescription: 'all' },
            dense: {
                type: 'string',
                describe: "Compare with this model's predictions: mean KL divergence, share of equal top-1 tokens",
                defaultDescription: 'with --skip, the model with all blocks; with --redis, none'
            },
            definition: {
                choices: ['paper', 'llama.cpp'] as const,
                default: 'paper' as const,
                describe:
                    "The paper's, or that of llama.cpp's perplexity tool (BOS in each chunk, second half of each chunk)"
            },
            ...deviceOptions,
            ...clusterOptions,
            json: jsonOption
        })
        .example('$0 perplexity model.gguf --text wiki.txt', 'of the whole model')
        .example(
            '$0 perplexity model.gguf --text wiki.txt --skip attn.20,ffn.3',
            'without two blocks, compared with the model as it is'
        )
        .example('$0 perplexity smaller.gguf --text wiki.txt --dense model.gguf', 'what a pruned file lost');

export async function handler(argv: Awaited<ReturnType<typeof builder>['argv']>): Promise<void> {
    const { text, context, field, definition, samples } = argv;
    checkTextOptions({ context, definition, samples }); // before a model is downloaded
    const skip = parseBlocks(argv.skip);
    const cluster = clusterOf(argv);
    if (cluster && argv.dense !== undefined) {
        throw new BlockprunerError('ARGUMENT', '--dense compares two models on this computer: leave out --redis');
    }
    const signal = interruptSignal();
    const result = await withProgress(async (progress) => {
        const model = await loadModel(argv.model, argv, progress, signal);
        const other = argv.dense === undefined ? undefined : await loadModel(argv.dense, argv, progress, signal);
        const dense = other ?? (skip.length > 0 && !cluster ? model : undefined);
        const onProgress = progress.of('evaluate');
        const found = await textPerplexity(model, text, {
            context,
            field,
            definition,
            samples,
            skip,
            dense,
            evaluator: cluster && shared(model, cluster, argv, progress, signal),
            signal,
            onProgress
        });
        other?.dispose();
        model.dispose();
        return found;
    });
    print(result, argv.json, () => perplexityLines(result));
}

function perplexityLines({ perplexity, nll, tokens, sequences, dense }: Perplexity): string[] {
    const measured = `NLL ${formatFixed(nll, 5)}, ${tokens} tokens, ${sequences} sequences`;
    const lines = [`perplexity ${formatFixed(perplexity, 4)} (${measured})`];
    if (dense) {
        const divergence = `mean KL divergence from it ${formatFixed(dense.divergence, 5)} nats`;
        const sameTop = `${formatPercent(dense.sameTop, 2)} equal top-1 tokens`;
        lines.push(`dense      ${formatFixed(dense.perplexity, 4)}; ${divergence}, ${sameTop}`);
    }
    return lines;
}
