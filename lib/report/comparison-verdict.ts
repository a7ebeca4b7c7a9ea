// What a comparison says in plain words: which model to take for what.
import { formatBytes, formatFactor, formatNumber, formatShare } from '../format.js';
import { comparedRows, decidingPerplexity, formatRowName, type ComparedRow, type Comparison } from './comparison.js';

/** For each ratio, a paragraph that sets the best pruned model beside the best one that is only quantized. */
export function verdictsOf(comparison: Comparison): string[] {
    const rows = comparedRows(comparison);
    const [dense] = rows as [ComparedRow, ...ComparedRow[]];
    const quantized = rows.filter((row) => row.quantized !== null);
    const ratios = [...new Set(rows.map(({ ratio }) => ratio))].filter((ratio) => ratio > 0);
    return ratios.map((ratio) => {
        const best = bestOf(rows.filter((row) => row.ratio === ratio))!;
        const rival = bestOf(quantized.filter(({ cost }) => cost.bytes <= best.cost.bytes));
        return [
            `At ${formatShare(ratio)}, ${describe(best)} is the best of what is pruned.`,
            ...(quantized.length > 0 ? [ofBytes(best, rival)] : []),
            ...(best.cost.speed ? [ofSpeed(best, rival)] : []),
            ...(dense.cost.cacheBytes > 0 ? [ofCache(best, dense)] : [])
        ].join(' ');
    });
}

function bestOf(rows: readonly ComparedRow[]): ComparedRow | undefined {
    return rows.reduce<ComparedRow | undefined>(
        (best, row) => (best && decidingPerplexity(best) <= decidingPerplexity(row) ? best : row),
        undefined
    );
}

function describe(row: ComparedRow): string {
    const perplexity = formatNumber(decidingPerplexity(row));
    return `${formatRowName(row)} (${formatBytes(row.cost.bytes)}, perplexity ${perplexity})`;
}

function ofBytes(best: ComparedRow, rival: ComparedRow | undefined): string {
    if (!rival) {
        return 'None of the quantized models is as small.';
    }
    return decidingPerplexity(rival) <= decidingPerplexity(best)
        ? `If it is bytes that must go, take ${describe(rival)} instead: it is no larger and better.`
        : `Take it where bytes must go: ${describe(rival)}, the best quantized one that is no larger, is worse.`;
}

function ofSpeed(best: ComparedRow, rival: ComparedRow | undefined): string {
    const speeds = ({ cost }: ComparedRow) =>
        `${formatFactor(cost.speed!.prompt)} as fast and writes ${formatFactor(cost.speed!.generation)} as fast`;
    if (!rival) {
        return `It reads a prompt ${speeds(best)} as the model as it is.`;
    }
    const faster = (of: 'prompt' | 'generation') =>
        formatRowName(best.cost.speed![of] > rival.cost.speed![of] ? best : rival);
    return (
        `It reads a prompt ${speeds(best)} as the model as it is; ${formatRowName(rival)} reads it ${speeds(rival)}. ` +
        `So ${faster('prompt')} is faster at long prompts, and ${faster('generation')} at long answers.`
    );
}

function ofCache(best: ComparedRow, dense: ComparedRow): string {
    const [now, before] = [best.cost.cacheBytes, dense.cost.cacheBytes];
    return now < before
        ? `Its KV cache takes ${formatBytes(now)} a token instead of ${formatBytes(before)}; quantized weights ` +
              'leave that as it is.'
        : `Its KV cache takes ${formatBytes(now)} a token, as before.`;
}
