import type { Argv } from 'yargs';
import { parseBlocks } from '../runtime/blocks.js';
import { textPerplexity } from '../evaluation/perplexity.js';
import {
    calibrationOptions,
    checkDevice,
    checkInteger,
    deviceOptions,
    interruptSignal,
    jsonOption,
    loadModel,
    modelArgument,
    Progress,
    skipOption
} from './shared.js';

export const command = 'perplexity <model>';
export const describe = 'Measure the perplexity of a model on a text, with any blocks left out';

export const builder = (yargs: Argv) =>
    modelArgument(yargs)
        .options({
            text: { type: 'string', demandOption: true, describe: 'A text file, or JSON Lines (.jsonl)' },
            field: calibrationOptions.field,
            context: calibrationOptions.context,
            skip: skipOption,
            samples: { type: 'number', describe: 'Only the first so many sequences', defaultDescription: 'all' },
            dense: {
                type: 'string',
                describe: "Compare with this model's predictions: mean KL divergence, share of equal top-1 tokens",
                defaultDescription: 'with --skip, the model with all blocks'
            },
            definition: {
                choices: ['paper', 'llama.cpp'] as const,
                default: 'paper' as const,
                describe:
                    "The paper's, or that of llama.cpp's perplexity tool (BOS in each chunk, second half of each chunk)"
            },
            ...deviceOptions,
            json: jsonOption
        })
        .example('$0 perplexity model.gguf --text wiki.txt', 'of the whole model')
        .example(
            '$0 perplexity model.gguf --text wiki.txt --skip attn.20,ffn.3',
            'without two blocks, compared with the model as it is'
        )
        .example('$0 perplexity smaller.gguf --text wiki.txt --dense model.gguf', 'what a pruned file lost');

export async function handler(argv: Awaited<ReturnType<typeof builder>['argv']>): Promise<void> {
    checkDevice(argv);
    checkInteger('context', argv.context, 2);
    checkInteger('samples', argv.samples, 1);
    const skip = parseBlocks(argv.skip);
    const progress = new Progress();
    const signal = interruptSignal();
    try {
        const model = await loadModel(argv, progress, signal);
        const dense =
            argv.dense !== undefined
                ? await loadModel({ ...argv, model: argv.dense }, progress, signal)
                : skip.length > 0
                  ? model
                  : undefined;
        const result = await textPerplexity(model, argv.text, {
            context: argv.context,
            field: argv.field,
            definition: argv.definition,
            samples: argv.samples,
            skip,
            dense,
            signal,
            onProgress: (done, total) => progress.update('evaluate', done, total)
        });
        dense?.dispose();
        model.dispose();
        progress.stop();
        console.log(
            argv.json
                ? JSON.stringify(result)
                : [
                      `perplexity ${result.perplexity.toFixed(4)} (NLL ${result.nll.toFixed(5)}, ${result.tokens} tokens, ${result.sequences} sequences)`,
                      ...(result.dense
                          ? [
                                `dense      ${result.dense.perplexity.toFixed(4)}; mean KL divergence from it ${result.dense.divergence.toFixed(5)} nats, ${(100 * result.dense.sameTop).toFixed(2)} % equal top-1 tokens`
                            ]
                          : [])
                  ].join('\n')
        );
    } finally {
        progress.stop();
    }
}
