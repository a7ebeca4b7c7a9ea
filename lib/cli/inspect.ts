import type { Argv } from 'yargs';
import type { PastPruning } from '../export/provenance.js';
import { formatFixed, formatMebibytes, formatMillions } from '../format.js';
import { inspect, type Inspection } from '../pipeline/inspect.js';
import { formatBlock, formatMove, type Block } from '../runtime/blocks.js';
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
    const { architecture, host, reason, layers, blocks, moves, history } = inspection;
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
        }),
        ...history.map(pruningLine),
        ...(history.length > 0
            ? [
                  'Importance matrices, LoRA adapters and control vectors of the model before the pruning name ' +
                      "layers that are others now, and do harm: 'blockpruner adapt' makes them fit."
              ]
            : [])
    ];
}

/** Says what a pruning left out, and what it put in. */
function pruningLine({ source, removed, merged, linear, refitted, calibration, perplexity }: PastPruning): string {
    const changes = [
        merged.length > 0 ? `merged ${merged.join(', ')}` : `without ${removed.join(', ')}`,
        ...(linear.length > 0 ? [`linear blocks ${linear.join(', ')}`] : []),
        ...(refitted.length > 0 ? [`${refitted.length} tensors fitted anew`] : [])
    ];
    const [dense, pruned] = [perplexity.dense, perplexity.pruned].map((value) => formatFixed(value, 4, 1e6));
    const text = `${calibration.name}, ${calibration.sequences} × ${calibration.context} tokens`;
    return `pruned        from ${source.name}: ${changes.join('; ')}; perplexity ${dense} → ${pruned} (${text})`;
}

/** Says what a repair can do. */
function repairText({ repair: { linear, unfitted, unfittedInputs }, blocks }: Inspection): string {
    const which = (what: string, not: Block[]) =>
        not.length === blocks.length
            ? `no ${what} can be fitted`
            : not.length === 0
              ? `all ${what} can be fitted`
              : `${what} can be fitted, but not of ${not.map(formatBlock).join(', ')}`;
    return [
        linear ? 'linear blocks go into gaps' : 'no linear blocks',
        which('output projections', unfitted),
        which('input projections', unfittedInputs)
    ].join('; ');
}
