// What commands print on stdout: one JSON object for programs, or lines for a person.
import type { WorkerShare } from '../cluster/fleet.js';
import type { TaskScores } from '../evaluation/scores.js';
import { formatFixed, formatMebibytes, formatMillions, formatPercent, formatScore, formatSeconds } from '../format.js';
import { formatQuantized, formatRepair, formatSearched, type PruneResult } from '../report/prune-result.js';
import { formatBlock } from '../runtime/blocks.js';

/** Prints a result as JSON, or as the lines that a person is to read. */
export function print(result: object, json: boolean, lines: () => readonly string[]): void {
    console.log(json ? JSON.stringify(result) : lines().join('\n'));
}

/**
 * The lines of what prune and apply give.
 * @param verified whether the file was checked in the stock runtime
 */
export function pruneResultLines(result: PruneResult, verified: boolean): string[] {
    const { perplexity, parameters, bytes, tasks } = result;
    const perplexities = formatPair(perplexity, (value) => formatFixed(value, 4));
    return [
        `removed     ${result.removed.map(formatBlock).join(' ') || 'nothing'}`,
        ...(result.merged ?? []).map((sum) => `merged      ${sum}`),
        ...(result.searched ? [`searched    ${formatSearched(result.searched, result.linearGaps)}`] : []),
        `repair      ${formatRepair(result.repair)}`,
        `perplexity  ${perplexities} (${formatRise(perplexity)}, calibration text)`,
        ...(result.quantized ? [`quantized   ${formatQuantized(result.quantized)}`] : []),
        `parameters  ${formatPair(parameters, formatMillions)} (${formatRise(parameters)})`,
        `size        ${formatPair(bytes, formatMebibytes)} (${formatRise(bytes)})`,
        ...tasks.dense.flatMap((dense, i) => [
            `before      ${formatScores(dense)}`,
            `after       ${formatScores(tasks.pruned[i]!)}`
        ]),
        ...workerLines(result.workers ?? []),
        `${result.output} is written as '${result.host}'${verified ? ' and verified in the stock runtime' : ''}; ` +
            formatSeconds(result.seconds)
    ];
}

/** What each worker did of a search. */
export function workerLines(workers: readonly WorkerShare[]): string[] {
    const all = workers.reduce((sum, { sequences }) => sum + sequences, 0);
    return workers.map(({ id, device, sequences, seconds, alive }) => {
        const share = formatPercent(all > 0 ? sequences / all : 0);
        const speed = `${formatSeconds(sequences > 0 ? seconds / sequences : 0, 3)} each`;
        return `worker      ${id} (${device}): ${sequences} sequences, ${share}, ${speed}${alive ? '' : '; gone'}`;
    });
}

interface Pair {
    dense: number;
    pruned: number;
}

function formatPair({ dense, pruned }: Pair, format: (value: number) => string): string {
    return `${format(dense)} → ${format(pruned)}`;
}

function formatRise({ dense, pruned }: Pair): string {
    return formatPercent(pruned / dense - 1, 1, { signed: true });
}

/** The scores of a task, as a line of a table. */
export function formatScores({ task, questions, acc, acc_norm }: TaskScores): string {
    const scores = `acc ${formatScore(acc, 2)}${acc_norm ? `  acc_norm ${formatScore(acc_norm, 2)}` : ''}`;
    return `${task.padEnd(14)} ${String(questions).padStart(6)} questions  ${scores}`;
}
