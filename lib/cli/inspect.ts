import type { Argv } from 'yargs';
import { formatMebibytes, formatMillions } from '../format.js';
import { inspect, type Inspection } from '../pipeline/inspect.js';
import { formatBlock, formatMove } from '../runtime/blocks.js';
import { interruptSignal } from './interrupt.js';
import { jsonOption, modelArgument } from './options.js';
import { print } from './print.js';
import { withProgress } from './progress.js';

export const command = 'inspect <model>';
export const describe = "Show a model's blocks, their sizes, and how a pruned one would be written";

export const builder = (yargs: Argv) =>
    modelArgument(yargs).options({ json: jsonOption }).example('$0 inspect model.gguf', 'what can be removed from it');

export async function handler(argv: Awaited<ReturnType<typeof builder>['argv']>): Promise<void> {
    const signal = interruptSignal();
    const inspection = await withProgress(({ update }) => inspect(argv.model, { signal, onProgress: update }));
    print(inspection, argv.json, () => inspectionLines(inspection));
}

function inspectionLines(inspection: Inspection): string[] {
    const { architecture, host, reason, layers, blocks, moves } = inspection;
    const goTogether = moves.some(({ length }) => length > 1);
    return [
        `architecture  ${architecture}`,
        `host          ${host ?? 'none'}: ${reason}`,
        `layers        ${layers}, ${blocks.length} blocks`,
        `repair        ${repairText(inspection)}`,
        ...(goTogether ? [`together      ${moves.map(formatMove).join(', ')}`] : []),
        ...blocks.map((block) => {
            const parameters = formatMillions(block.parameters).padStart(9);
            const bytes = formatMebibytes(block.bytes).padStart(10);
            return `  ${formatBlock(block).padEnd(9)} ${parameters} parameters  ${bytes}`;
        })
    ];
}

/** Says what a repair can do. */
function repairText({ repair: { linear, unfitted }, blocks }: Inspection): string {
    const fitted = blocks.length - unfitted.length;
    const which =
        fitted === 0
            ? 'no output projection can be fitted'
            : fitted === blocks.length
              ? 'all output projections can be fitted'
              : `output projections can be fitted, but not of ${unfitted.map(formatBlock).join(', ')}`;
    return `${linear ? 'linear blocks go into gaps' : 'no linear blocks'}; ${which}`;
}
