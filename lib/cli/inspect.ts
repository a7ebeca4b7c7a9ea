import type { Argv } from 'yargs';
import { formatBlock, formatMove } from '../runtime/blocks.js';
import { inspect } from '../pipeline/inspect.js';
import { interruptSignal, jsonOption, mib, millions, modelArgument, Progress } from './shared.js';

export const command = 'inspect <model>';
export const describe = "Show a model's blocks, their sizes, and how a pruned one would be written";

export const builder = (yargs: Argv) =>
    modelArgument(yargs).options({ json: jsonOption }).example('$0 inspect model.gguf', 'what can be removed from it');

export async function handler(argv: Awaited<ReturnType<typeof builder>['argv']>): Promise<void> {
    const progress = new Progress();
    try {
        const result = await inspect(argv.model, { signal: interruptSignal(), onProgress: progress.update });
        progress.stop();
        if (argv.json) {
            console.log(JSON.stringify(result));
            return;
        }
        console.log(
            [
                `architecture  ${result.architecture}`,
                `host          ${result.host ?? 'none'}: ${result.reason}`,
                `layers        ${result.layers}, ${result.blocks.length} blocks`,
                ...(result.moves.some(({ length }) => length > 1)
                    ? [`together      ${result.moves.map(formatMove).join(', ')}`]
                    : []),
                ...result.blocks.map(
                    (block) =>
                        `  ${formatBlock(block).padEnd(9)} ${millions(block.parameters).padStart(9)} parameters  ${mib(block.bytes).padStart(10)}`
                )
            ].join('\n')
        );
    } finally {
        progress.stop();
    }
}
