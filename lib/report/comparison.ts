// A comparison of methods: what results.json holds, and the rows and columns of the table that is made of it.
import { z } from 'zod';
import { reportedScore, type Score } from '../evaluation/scores.js';
import { methods } from '../methods/index.js';
import { repairs, type Repair } from '../repair/fit.js';
import { quantizations, type Quantization } from '../runtime/quantize.js';

/** The methods, and BlockPruner limited to blocks of one kind, as in the paper's ablation (section 5.2). */
export const comparedMethods = [...methods, 'blockpruner-attn', 'blockpruner-ffn'] as const;
export type ComparedMethod = (typeof comparedMethods)[number];

/** A perplexity or a divergence. JSON has null for what is no finite number. */
const measured = z
    .number()
    .nullable()
    .transform((value) => value ?? Infinity);
const blockSchema = z.object({
    kind: z.enum(['attn', 'ffn', 'linear']),
    layer: z.number().int().nonnegative(),
    empty: z.literal(true).optional()
});
const scoreSchema = z.object({ value: z.number(), stderr: z.number().nullable() });
const costSchema = z.object({
    /** The size of the file. */
    bytes: z.number(),
    /** What a token takes in the cache of keys and values, F16, in bytes. */
    cacheBytes: z.number(),
    /**
     * The speed in the stock runtime, of reading a prompt and of writing, as a multiple of the speed of the model as it
     * is, which was measured in turns with it; null where that wasn't asked for.
     */
    speed: z.object({ prompt: z.number(), generation: z.number() }).nullable(),
    /**
     * The model as the draft of the one as it is, in speculative decoding (Leviathan et al. 2023): the share of tokens
     * that it guesses, and how much faster the two write than the one as it is alone, by the paper's formula (theorem
     * 3.8) and measured; null where that wasn't asked for.
     */
    draft: z.object({ acceptance: z.number(), expected: z.number(), measured: z.number() }).nullable().default(null)
});
const qualitySchema = z.object({
    /** The perplexity on the calibration text. */
    calibration: measured,
    /**
     * On the other text, if one is given: perplexity, mean KL divergence from the dense model in nats, and the share of
     * tokens at which both models find the same one likeliest.
     */
    text: z.object({ perplexity: measured, divergence: measured, sameTop: z.number() }).nullable(),
    tasks: z.array(
        z.object({ task: z.string(), questions: z.number(), acc: scoreSchema, acc_norm: scoreSchema.nullable() })
    ),
    /** The share of right answers to the questions that are answered in free text; null where they were not put. */
    answers: scoreSchema.nullable(),
    /** What the model costs who runs it. */
    cost: costSchema
});
const method = z.enum(comparedMethods);
/** The seed of `random`; null of all other methods. */
const seed = z.number().int().nullable();

/** What results.json holds. */
export const comparisonSchema = z.object({
    /** The path or the URI of the model, as it was given. */
    model: z.string(),
    calibration: z.object({ name: z.string(), sequences: z.number(), context: z.number() }),
    /** The name of the other text; null where none was given. */
    text: z.string().nullable(),
    /** All blocks of the model, in the order of the residual stream. */
    blocks: z.array(blockSchema),
    /** What the searches depend on, by the names that messages use. */
    searchedWith: z.record(z.string(), z.string()),
    /** What the evaluations of their results depend on, likewise. */
    evaluatedWith: z.record(z.string(), z.string()),
    dense: qualitySchema,
    /**
     * Each method's order of removal, up to the highest ratio that it was asked for or can reach; another one where a
     * repair's linear blocks were in the gaps. LaCo has no order and is not here.
     */
    searches: z.array(
        z.object({
            method,
            seed,
            /** What fills the gaps while candidates are compared. */
            repair: z.enum(repairs),
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
    /** What else could be done: the model as it is in other types, by descending size. */
    quantized: z.array(qualitySchema.extend({ type: z.enum(quantizations) })),
    /** The pruned models, by ascending ratio. */
    pruned: z.array(
        qualitySchema.extend({
            method,
            seed,
            /** The share of the parameters that was to be removed. */
            ratio: z.number(),
            /** What was done to make up for what is gone. */
            repair: z.enum(repairs),
            /** The share that is gone: that of the fewest blocks that reach the ratio, less what a repair puts in. */
            removedShare: z.number(),
            removed: z.array(blockSchema),
            /** Of LaCo: what the weights of layers became. */
            merged: z.array(z.string()).optional()
        })
    ),
    /** How long all runs took that made it. */
    seconds: z.number()
});
export type Comparison = z.infer<typeof comparisonSchema>;
/** How good a model is, as it is or without some blocks, and what it costs. */
export type Quality = z.infer<typeof qualitySchema>;
export type Cost = Quality['cost'];
/** What one method made of the model at one ratio. */
export type ComparedModel = Comparison['pruned'][number];

/** A row of the table: a method at a ratio, or the model as it is, in its own types or in others. */
export interface ComparedRow {
    method: ComparedMethod | 'dense';
    repair: Repair;
    /** What the model was quantized to; null: nothing. */
    quantized: Quantization | null;
    /** The number of seeds that the row is the mean of. */
    seeds: number;
    /** The share of the parameters that was to be removed, 0 … 1. */
    ratio: number;
    /** The share that is gone. */
    removed: number;
    /** The perplexity on the calibration text. */
    calibration: number;
    text: Quality['text'];
    /** The {@link reportedScore} of each task; over several seeds, the means of values and of standard errors. */
    tasks: Score[];
    answers: Score | null;
    cost: Cost;
}

/** The rows of the table: first the model as it is, in its own types and in others, then one for each method. */
export function comparedRows({ dense, quantized, pruned }: Comparison): ComparedRow[] {
    const groups = new Map<string, ComparedModel[]>();
    for (const one of pruned) {
        const key = `${one.ratio}/${one.method}/${one.repair}`;
        groups.set(key, [...(groups.get(key) ?? []), one]);
    }
    const whole = { method: 'dense', repair: 'none', seeds: 1, ratio: 0, removed: 0 } as const;
    return [
        { ...whole, quantized: null, ...meanQuality([dense], dense) },
        ...quantized.map(({ type, ...quality }) => ({ ...whole, quantized: type, ...meanQuality([quality], dense) })),
        ...[...groups.values()].map((group) => ({
            method: group[0]!.method,
            repair: group[0]!.repair,
            quantized: null,
            seeds: group.length,
            ratio: group[0]!.ratio,
            removed: mean(group, ({ removedShare }) => removedShare),
            ...meanQuality(group, dense)
        }))
    ];
}

/** @param dense the model as it is: it tells which texts and tasks there are */
function meanQuality(
    models: readonly Quality[],
    dense: Quality
): Pick<ComparedRow, 'calibration' | 'text' | 'tasks' | 'answers' | 'cost'> {
    const meanScore = (of: (one: Quality) => Score): Score => ({
        value: mean(models, (one) => of(one).value),
        stderr: of(dense).stderr === null ? null : mean(models, (one) => of(one).stderr!)
    });
    return {
        calibration: mean(models, ({ calibration }) => calibration),
        text: dense.text && {
            perplexity: mean(models, ({ text }) => text!.perplexity),
            divergence: mean(models, ({ text }) => text!.divergence),
            sameTop: mean(models, ({ text }) => text!.sameTop)
        },
        tasks: dense.tasks.map((_, i) => meanScore(({ tasks }) => reportedScore(tasks[i]!))),
        answers: dense.answers && meanScore(({ answers }) => answers!),
        cost: {
            bytes: mean(models, ({ cost }) => cost.bytes),
            cacheBytes: mean(models, ({ cost }) => cost.cacheBytes),
            speed: dense.cost.speed && {
                prompt: mean(models, ({ cost }) => cost.speed!.prompt),
                generation: mean(models, ({ cost }) => cost.speed!.generation)
            },
            draft: dense.cost.draft && {
                acceptance: mean(models, ({ cost }) => cost.draft!.acceptance),
                expected: mean(models, ({ cost }) => cost.draft!.expected),
                measured: mean(models, ({ cost }) => cost.draft!.measured)
            }
        }
    };
}

function mean<T>(all: readonly T[], value: (one: T) => number): number {
    return all.reduce((sum, one) => sum + value(one), 0) / all.length;
}

/** A column of the table. */
export interface ComparedColumn {
    title: string;
    unit: 'perplexity' | 'nats' | 'share' | 'bytes' | 'factor';
    /** null: no row is the best, since all of a ratio are to be alike. */
    better: 'lower' | 'higher' | null;
    /** The column's value in a row. */
    of: (row: ComparedRow) => Score;
}

/** The columns of the table, behind those that tell which model a row is about. */
export function comparedColumns({ text, dense }: Comparison): ComparedColumn[] {
    const perplexity = (title: string, value: (row: ComparedRow) => number): ComparedColumn => ({
        title,
        unit: 'perplexity',
        better: 'lower',
        of: (row) => exact(value(row))
    });
    const columns = [perplexity('Perplexity, calibration', ({ calibration }) => calibration)];
    if (text !== null) {
        columns.push(
            perplexity(`Perplexity, ${text}`, (row) => row.text!.perplexity),
            { title: 'KL divergence', unit: 'nats', better: 'lower', of: (row) => exact(row.text!.divergence) },
            { title: 'Equal top-1', unit: 'share', better: 'higher', of: (row) => exact(row.text!.sameTop) }
        );
    }
    for (const [i, { task }] of dense.tasks.entries()) {
        columns.push({ title: task, unit: 'share', better: 'higher', of: ({ tasks }) => tasks[i]! });
    }
    if (dense.tasks.length > 1) {
        const average = ({ tasks }: ComparedRow) => exact(mean(tasks, ({ value }) => value));
        columns.push({ title: 'Average', unit: 'share', better: 'higher', of: average });
    }
    if (dense.answers !== null) {
        columns.push({ title: 'Answers', unit: 'share', better: 'higher', of: ({ answers }) => answers! });
    }
    columns.push(
        { title: 'Size', unit: 'bytes', better: null, of: ({ cost }) => exact(cost.bytes) },
        { title: 'KV cache a token', unit: 'bytes', better: null, of: ({ cost }) => exact(cost.cacheBytes) }
    );
    if (dense.cost.speed !== null) {
        columns.push(
            { title: 'Prompt speed', unit: 'factor', better: null, of: ({ cost }) => exact(cost.speed!.prompt) },
            { title: 'Writing speed', unit: 'factor', better: null, of: ({ cost }) => exact(cost.speed!.generation) }
        );
    }
    if (dense.cost.draft !== null) {
        const factor = (title: string, of: (draft: NonNullable<Cost['draft']>) => number): ComparedColumn => ({
            title,
            unit: 'factor',
            better: null,
            of: ({ cost }) => exact(of(cost.draft!))
        });
        columns.push(
            {
                title: 'Guessed as draft',
                unit: 'share',
                better: 'higher',
                of: ({ cost }) => exact(cost.draft!.acceptance)
            },
            factor('Draft speed-up, expected', ({ expected }) => expected),
            factor('Draft speed-up, measured', ({ measured: found }) => found)
        );
    }
    return columns;
}

/** The perplexity that models are compared by: on the text that no search has seen, if there is one. */
export function decidingPerplexity({ text, calibration }: ComparedRow): number {
    return text?.perplexity ?? calibration;
}

/** A value without an error. */
function exact(value: number): Score {
    return { value, stderr: null };
}

/** Whether a row is the best of its ratio in a column. A row without rivals is not. */
export function isBest({ of, better }: ComparedColumn, row: ComparedRow, rows: readonly ComparedRow[]): boolean {
    if (better === null || row.ratio === 0) {
        return false;
    }
    const rivals = rows.filter(({ ratio }) => ratio === row.ratio).map((rival) => of(rival).value);
    return rivals.length > 1 && of(row).value === (better === 'lower' ? Math.min(...rivals) : Math.max(...rivals));
}

/** What a row is about: `dense`, `dense, Q4_K_M`, `balanced`, `balanced + linear`, `random (mean of 3)`. */
export function formatRowName({ method, repair, quantized, seeds }: ComparedRow): string {
    const name = quantized === null ? method : `${method}, ${quantized}`;
    const repaired = repair === 'none' ? name : `${name} + ${repair}`;
    return seeds > 1 ? `${repaired} (mean of ${seeds})` : repaired;
}
