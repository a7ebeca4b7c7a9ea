// The table of a comparison, in Markdown and as CSV.
import { stringify } from 'csv-stringify/sync';
import { formatBytes, formatFactor, formatFixed, formatPercent, formatScore } from '../format.js';
import { verdictsOf } from './comparison-verdict.js';
import {
    comparedColumns,
    comparedRows,
    formatRowName,
    isBest,
    type ComparedColumn,
    type ComparedRow,
    type Comparison
} from './comparison.js';

/** The table, and in words what to take. */
export function comparisonText(comparison: Comparison): string {
    const verdicts = verdictsOf(comparison);
    return [comparisonTable(comparison), ...verdicts.map((verdict) => `${verdict}\n`)].join('\n');
}

/** The table in Markdown, like the paper's tables 1 and 2: the best value of a column at each ratio is bold. */
export function comparisonTable(comparison: Comparison): string {
    const rows = comparedRows(comparison);
    const columns = comparedColumns(comparison);
    const lines = [
        ['Ratio', 'Removed', 'Method', ...columns.map(({ title }) => title.replaceAll('|', '/'))],
        Array(3 + columns.length).fill('---'),
        ...rows.map((row) => [
            row.ratio === 0 ? '' : row.ratio,
            formatPercent(row.removed),
            formatRowName(row),
            ...columns.map((column) => {
                const text = formatValue(column, row);
                return isBest(column, row, rows) ? `**${text}**` : text;
            })
        ])
    ];
    return lines.map((cells) => `| ${cells.join(' | ')} |\n`).join('');
}

function formatValue({ unit, of }: ComparedColumn, row: ComparedRow): string {
    const score = of(row);
    switch (unit) {
        case 'perplexity':
            return formatFixed(score.value, 2, 1e6);
        case 'nats':
            return formatFixed(score.value, 3);
        case 'share':
            return formatScore(score, 1, '');
        case 'bytes':
            return formatBytes(score.value);
        case 'factor':
            return formatFactor(score.value);
    }
}

/** The same values as CSV; scores and their standard errors are shares, and nothing is rounded. */
export function comparisonCsv(comparison: Comparison): string {
    const names = comparison.dense.tasks.map(({ task }) => task);
    return stringify([
        [
            'method',
            'repair',
            'quantized',
            'seeds',
            'ratio',
            'removed',
            'calibration_perplexity',
            'text_perplexity',
            'text_kl_divergence',
            'text_same_top',
            ...names.flatMap((name) => [name, `${name}_stderr`]),
            'answers',
            'answers_stderr',
            'bytes',
            'cache_bytes_per_token',
            'prompt_speed',
            'writing_speed',
            'draft_acceptance',
            'draft_speed_expected',
            'draft_speed_measured'
        ],
        ...comparedRows(comparison).map(({ cost, text, answers, ...row }) => [
            row.method,
            row.repair,
            row.quantized,
            row.seeds,
            row.ratio,
            row.removed,
            row.calibration,
            text?.perplexity,
            text?.divergence,
            text?.sameTop,
            ...row.tasks.flatMap(({ value, stderr }) => [value, stderr]),
            answers?.value,
            answers?.stderr,
            cost.bytes,
            cost.cacheBytes,
            cost.speed?.prompt,
            cost.speed?.generation,
            cost.draft?.acceptance,
            cost.draft?.expected,
            cost.draft?.measured
        ])
    ]);
}
