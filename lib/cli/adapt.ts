import type { Argv } from 'yargs';
import { adapt, type Adapted } from '../export/adapt.js';
import { interruptSignal } from './interrupt.js';
import { jsonOption, outputOptions } from './options.js';
import { print } from './print.js';

export const command = 'adapt <file>';
export const describe = 'Make an importance matrix, a LoRA adapter or a control vector of a model fit its pruned copy';

export const builder = (yargs: Argv) =>
    yargs
        .positional('file', {
            type: 'string',
            demandOption: true,
            describe: 'A GGUF file that was made for the model before it was pruned'
        })
        .options({
            to: { type: 'string', demandOption: true, describe: 'The pruned model' },
            output: outputOptions.output,
            force: outputOptions.force,
            json: jsonOption
        })
        .example('$0 adapt imatrix.gguf --to smaller.gguf -o smaller-imatrix.gguf', 'for llama-quantize --imatrix')
        .example('$0 adapt style-lora.gguf --to smaller.gguf -o smaller-lora.gguf', 'for llama-server --lora');

export async function handler(argv: Awaited<ReturnType<typeof builder>['argv']>): Promise<void> {
    const { to, output, force } = argv;
    const adapted = await adapt(argv.file, { to, output, force, signal: interruptSignal('nothing was written') });
    print(adapted, argv.json, () => [adaptedLine(adapted)]);
}

function adaptedLine({ kind, output, kept, gone }: Adapted): string {
    const left = gone.length === 0 ? '' : `; ${gone.length} are left out, since their blocks are gone`;
    return `${output} is the ${kind} with ${kept} tensors of the pruned model${left}`;
}
