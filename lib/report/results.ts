// What prune and compare find, and the tables of it.
import { stringify } from 'csv-stringify/sync';
import { z } from 'zod';
import type { Device } from '../runtime/device.js';
import type { Block } from '../runtime/blocks.js';
import { reportedScore, type Score, type TaskScores } from '../evaluation/scores.js';
import type { Speed } from '../stock/stock.js';
import type { BlockInfo } from '../runtime/model.js';
import type { Step } from '../search/greedy.js';
import { methods, type Method } from '../methods/index.js';

export interface PruneResult {
    model: string;
    output: string;
    architecture: string;
    /** The architecture that the output is written as. */
    host: string;
    /** How it was decided what goes; null where that was given. */
    method: Method | null;
    /** All that the model had, in the order of the residual stream. */
    blocks: BlockInfo[];
    removed: Block[];
    /** of `laco`: what the weights of layers became, such as `blk.5 = -1 blk.5 + 1 blk.6 + 1 blk.7` */
    merged?: string[];
    /** none of `laco`, which removes all at once */
    steps: Step[];
    calibration: { name: string; sequences: number; context: number };
    /** On the calibration text. */
    perplexity: { dense: number; pruned: number };
    parameters: { dense: number; pruned: number };
    bytes: { dense: number; pruned: number };
    /** Of the tasks that were asked for. */
    tasks: { dense: TaskScores[]; pruned: TaskScores[] };
    /** In the stock runtime, in several rounds that the two files took in turns; null where no report was asked for. */
    speed: { device: Device; threads: number; tokens: number; dense: Speed[]; pruned: Speed[] } | null;
    seconds: number;
}

/** The methods, and BlockPruner limited to blocks of one kind, as in the paper's ablation (section 5.2). */
export const comparedMethods = [...methods, 'blockpruner-attn', 'blockpruner-ffn'] as const;
export type ComparedMethod = (typeof comparedMethods)[number];

/** Of a perplexity or divergence; JSON has null for what is no finite number. */
const measured = z
    .number()
    .nullable()
    .transform((value) => value ?? Infinity);
const blockSchema = z.object({ kind: z.enum(['attn', 'ffn']), layer: z.number().int().nonnegative() });
const scoreSchema = z.object({ value: z.number(), stderr: z.number().nullable() });
const qualitySchema = z.object({
    /** perplexity on the calibration text */
    calibration: measured,
    /** on the text, if one is given; against the dense model: mean KL divergence in nats, share of equal top-1 tokens */
    text: z.object({ perplexity: measured, divergence: measured, sameTop: z.number() }).nullable(),
    tasks: z.array(
        z.object({ task: z.string(), questions: z.number(), acc: scoreSchema, acc_norm: scoreSchema.nullable() })
    )
});
const method = z.enum(comparedMethods);
/** of `random` */
const seed = z.number().int().nullable();

/** What results.json holds. */
export const comparisonSchema = z.object({
    model: z.string(),
    calibration: z.object({ name: z.string(), sequences: z.number(), context: z.number() }),
    /** the text's name */
    text: z.string().nullable(),
    /** all that the model has, in the order of the residual stream */
    blocks: z.array(blockSchema),
    /** what searches depend on, by its name in messages */
    searchedWith: z.record(z.string(), z.string()),
    /** what the evaluations of their results depend on */
    evaluatedWith: z.record(z.string(), z.string()),
    dense: qualitySchema,
    /** each method's order of removal, up to the highest ratio that it was asked for, or can reach; not of laco, which has none */
    searches: z.array(
        z.object({
            method,
            seed,
            ratio: z.number(),
            steps: z.array(
                z.object({
                    removed: z.array(blockSchema),
                    perplexity: z.number(),
                    evaluations: z.number(),
                    seconds: z.number()
                })
            )
        })
    ),
    /** by ratio */
    pruned: z.array(
        qualitySchema.extend({
            method,
            seed,
            /** as asked for */
            ratio: z.number(),
            /** share of the parameters that is gone: the fewest blocks that are at least the ratio */
            removedShare: z.number(),
            removed: z.array(blockSchema),
            /** of laco: what the weights of layers became */
            merged: z.array(z.string()).optional()
        })
    ),
    /** of all runs that made it */
    seconds: z.number()
});
export type Comparison = z.infer<typeof comparisonSchema>;
/** How good a model without some blocks is. */
export type Quality = z.infer<typeof qualitySchema>;
export type ComparedModel = Comparison['pruned'][number];

/** A row of the table. */
export interface ComparedRow {
    method: ComparedMethod | 'dense';
    /** how many seeds it is the mean of */
    seeds: number;
    ratio: number;
    removed: number;
    calibration: number;
    text: Quality['text'];
    /** by task: {@link reportedScore}; over seeds, the means of values and of standard errors */
    tasks: Score[];
}

/** One row for each method and ratio; the mean over the seeds of `random`. */
export function comparedRows({ dense, pruned }: Comparison): ComparedRow[] {
    const groups = new Map<string, ComparedModel[]>();
    for (const one of pruned) {
        const key = `${one.ratio}/${one.method}`;
        groups.set(key, [...(groups.get(key) ?? []), one]);
    }
    const row = (
        method: ComparedRow['method'],
        ratio: number,
        group: readonly Quality[],
        removed: number
    ): ComparedRow => {
        const mean = (value: (one: Quality) => number) =>
            group.reduce((sum, one) => sum + value(one), 0) / group.length;
        return {
            method,
            ratio,
            removed,
            seeds: group.length,
            calibration: mean(({ calibration }) => calibration),
            text: dense.text && {
                perplexity: mean(({ text }) => text!.perplexity),
                divergence: mean(({ text }) => text!.divergence),
                sameTop: mean(({ text }) => text!.sameTop)
            },
            tasks: dense.tasks.map(({ acc }, i) => ({
                value: mean((one) => reportedScore(one.tasks[i]!).value),
                stderr: acc.stderr === null ? null : mean((one) => reportedScore(one.tasks[i]!).stderr!)
            }))
        };
    };
    return [
        row('dense', 0, [dense], 0),
        ...[...groups.values()].map((group) =>
            row(
                group[0]!.method,
                group[0]!.ratio,
                group,
                group.reduce((sum, { removedShare }) => sum + removedShare, 0) / group.length
            )
        )
    ];
}

/** A column of the table. */
export interface ComparedColumn {
    title: string;
    unit: 'perplexity' | 'nats' | 'share';
    /** what it has for a model */
    of: (row: ComparedRow) => Score;
    better: 'lower' | 'higher';
}

/** The table's columns behind what tells which model a row is of. */
export function comparedColumns({ text, dense }: Comparison): ComparedColumn[] {
    const exact = (value: number): Score => ({ value, stderr: null });
    return [
        { title: 'Perplexity, calibration', unit: 'perplexity', better: 'lower', of: (row) => exact(row.calibration) },
        ...(text === null
            ? []
            : ([
                  {
                      title: `Perplexity, ${text}`,
                      unit: 'perplexity',
                      better: 'lower',
                      of: (row) => exact(row.text!.perplexity)
                  },
                  { title: 'KL divergence', unit: 'nats', better: 'lower', of: (row) => exact(row.text!.divergence) },
                  { title: 'Equal top-1', unit: 'share', better: 'higher', of: (row) => exact(row.text!.sameTop) }
              ] satisfies ComparedColumn[])),
        ...dense.tasks.map(({ task }, i): ComparedColumn => ({
            title: task,
            unit: 'share',
            better: 'higher',
            of: ({ tasks }) => tasks[i]!
        })),
        ...(dense.tasks.length > 1
            ? [
                  {
                      title: 'Average',
                      unit: 'share',
                      better: 'higher',
                      of: ({ tasks }) => exact(tasks.reduce((sum, { value }) => sum + value, 0) / tasks.length)
                  } satisfies ComparedColumn
              ]
            : [])
    ];
}

/** Is a row the best of its ratio in a column? A single one is not. */
export function isBest({ of, better }: ComparedColumn, row: ComparedRow, rows: readonly ComparedRow[]): boolean {
    const rivals = rows.filter(({ ratio }) => ratio === row.ratio).map((rival) => of(rival).value);
    return rivals.length > 1 && of(row).value === (better === 'lower' ? Math.min(...rivals) : Math.max(...rivals));
}

/** `random (mean of 3)` */
export function formatRowName({ method, seeds }: ComparedRow): string {
    return seeds > 1 ? `${method} (mean of ${seeds})` : method;
}

/** The paper's table, in Markdown: of each ratio the best of a column is bold. */
export function comparisonTable(comparison: Comparison): string {
    const rows = comparedRows(comparison),
        columns = comparedColumns(comparison);
    const percent = (share: number) => (100 * share).toFixed(1);
    const text = ({ unit, of }: ComparedColumn, row: ComparedRow) => {
        const { value, stderr } = of(row);
        return !Number.isFinite(value)
            ? '∞'
            : unit === 'perplexity'
              ? value < 1e6
                  ? value.toFixed(2)
                  : value.toExponential(2)
              : unit === 'nats'
                ? value.toFixed(3)
                : percent(value) + (stderr === null ? '' : ` ± ${percent(stderr)}`);
    };
    return (
        [
            ['Ratio', 'Removed', 'Method', ...columns.map(({ title }) => title.replaceAll('|', '/'))],
            Array(3 + columns.length).fill('---'),
            ...rows.map((row) => [
                row.ratio === 0 ? '' : row.ratio,
                `${percent(row.removed)} %`,
                formatRowName(row),
                ...columns.map((column) => (isBest(column, row, rows) ? `**${text(column, row)}**` : text(column, row)))
            ])
        ]
            .map((cells) => `| ${cells.join(' | ')} |`)
            .join('\n') + '\n'
    );
}

/** The same as CSV, with scores and standard errors as shares. */
export function comparisonCsv(comparison: Comparison): string {
    const names = comparison.dense.tasks.map(({ task }) => task);
    return stringify([
        [
            'method',
            'seeds',
            'ratio',
            'removed',
            'calibration_perplexity',
            'text_perplexity',
            'text_kl_divergence',
            'text_same_top',
            ...names.flatMap((name) => [name, `${name}_stderr`])
        ],
        ...comparedRows(comparison).map(({ method, seeds, ratio, removed, calibration, text, tasks }) => [
            method,
            seeds,
            ratio,
            removed,
            calibration,
            text?.perplexity,
            text?.divergence,
            text?.sameTop,
            ...tasks.flatMap(({ value, stderr }) => [value, stderr])
        ])
    ]);
}
