import type { Argv } from 'yargs';
import { parseBlocks } from '../blocks.js';
import { textPerplexity } from '../evaluation/perplexity.js';
import { calibrationOptions, checkDevice, checkInteger, deviceOptions, interruptSignal, jsonOption, loadModel, modelArgument, Progress, skipOption } from './shared.js';

export const command = 'perplexity <model>';
export const describe = 'Measure the perplexity of a model on a text, with any blocks left out';

export const builder = (yargs: Argv) => modelArgument(yargs)
    .options({
        text: { type: 'string', demandOption: true, describe: 'A text file, or JSON Lines (.jsonl)' },
        field: calibrationOptions.field,
        context: calibrationOptions.context,
        skip: skipOption,
        definition: { choices: ['paper', 'llama.cpp'] as const, default: 'paper' as const, describe: "The paper's, or that of llama.cpp's perplexity tool (BOS in each chunk, second half of each chunk)" },
        ...deviceOptions,
        json: jsonOption
    })
    .example('$0 perplexity model.gguf --text wiki.txt', 'of the whole model')
    .example('$0 perplexity model.gguf --text wiki.txt --skip attn.20,ffn.3', 'without two blocks');

export async function handler(argv: Awaited<ReturnType<typeof builder>['argv']>): Promise<void> {
    checkDevice(argv);
    checkInteger('context', argv.context, 2);
    const skip = parseBlocks(argv.skip);
    const progress = new Progress();
    const signal = interruptSignal();
    try {
        const model = await loadModel(argv, progress, signal);
        const result = await textPerplexity(model, argv.text, {
            context: argv.context, field: argv.field, definition: argv.definition, skip, signal,
            onProgress: (done, total) => progress.update('search', done, total)
        });
        model.dispose();
        progress.stop();
        console.log(argv.json ? JSON.stringify(result)
            : `perplexity ${result.perplexity.toFixed(4)} (NLL ${result.nll.toFixed(5)}, ${result.tokens} tokens, ${result.sequences} sequences)`);
    } finally {
        progress.stop();
    }
}
