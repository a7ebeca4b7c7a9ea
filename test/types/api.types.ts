// What the public API's types accept and refuse. Nothing here runs: `npm run lint` compiles it, so that a change of the
// types that users would notice is an error here first.
import { expectTypeOf } from 'expect-type';
import {
    apply,
    compare,
    inspect,
    loadCalibration,
    loadTask,
    perplexityOf,
    prune,
    scoreTasks,
    textPerplexity,
    type ApplyOptions,
    type ArgumentError,
    type Block,
    type BlockInfo,
    type BlockprunerError,
    type CalibrationOptions,
    type CompareOptions,
    type Comparison,
    type Device,
    type ErrorCode,
    type Method,
    type MethodError,
    type Model,
    type Perplexity,
    type PruneOptions,
    type PruneResult,
    type Sequences,
    type Task,
    type TaskScores
} from '../../lib/index.js';

// --- prune ---

expectTypeOf(prune).parameters.toEqualTypeOf<[model: string, options: PruneOptions]>();
expectTypeOf(prune).returns.resolves.toEqualTypeOf<PruneResult>();

// How much to remove, in each of the ways that there are; an option that is undefined is an option that isn't there.
expectTypeOf<{ output: string; remove: number }>().toExtend<PruneOptions>();
expectTypeOf<{ output: string; ratio: number }>().toExtend<PruneOptions>();
expectTypeOf<{ output: string; maxIncrease: number }>().toExtend<PruneOptions>();
expectTypeOf<{ output: string; ratio: number; remove: undefined }>().toExtend<PruneOptions>();
// Nothing that is handed in is changed, so that it may be read-only.
expectTypeOf<{ output: string; tasks: readonly Task[] }>().toExtend<PruneOptions>();
expectTypeOf<{
    readonly output: string;
    readonly calibration: Readonly<CalibrationOptions>;
}>().toExtend<PruneOptions>();

expectTypeOf<PruneOptions['method']>().toEqualTypeOf<Method | undefined>();
expectTypeOf<PruneOptions['search']>().toEqualTypeOf<'race' | 'exact' | 'full' | undefined>();
expectTypeOf<PruneOptions['blocks']>().toEqualTypeOf<'all' | 'attn' | 'ffn' | undefined>();
expectTypeOf<PruneOptions['device']>().toEqualTypeOf<Device | 'auto' | undefined>();
expectTypeOf<PruneOptions['resume']>().toEqualTypeOf<boolean | undefined>();
expectTypeOf<PruneOptions['signal']>().toEqualTypeOf<AbortSignal | undefined>();

// @ts-expect-error an output is needed
void prune('model.gguf', { ratio: 0.2 });
// @ts-expect-error a share is a number
void prune('model.gguf', { output: 'smaller.gguf', ratio: '20 %' });
// @ts-expect-error there is no such method
void prune('model.gguf', { output: 'smaller.gguf', ratio: 0.2, method: 'magic' });
// @ts-expect-error there is no such option: a misspelled one is found
void prune('model.gguf', { output: 'smaller.gguf', ratio: 0.2, maxIncreases: 0.1 });
// @ts-expect-error blocks of two kinds are `all`
void prune('model.gguf', { output: 'smaller.gguf', ratio: 0.2, blocks: ['attn', 'ffn'] });

// --- what comes of it ---

expectTypeOf<PruneResult['blocks']>().toEqualTypeOf<BlockInfo[]>();
expectTypeOf<PruneResult['removed']>().toEqualTypeOf<Block[]>();
expectTypeOf<PruneResult['method']>().toEqualTypeOf<Method | null>();
expectTypeOf<PruneResult['perplexity']>().toEqualTypeOf<{ dense: number; pruned: number }>();
expectTypeOf<PruneResult['bytes']>().toEqualTypeOf<{ dense: number; pruned: number }>();
expectTypeOf<PruneResult['tasks']>().toEqualTypeOf<{ dense: TaskScores[]; pruned: TaskScores[] }>();
expectTypeOf<Block>().toEqualTypeOf<{
    readonly kind: 'attn' | 'ffn' | 'linear';
    readonly layer: number;
    readonly empty?: true;
}>();
// What was removed can be left out of evaluations, and applied to another file, as it is.
expectTypeOf<PruneResult['removed']>().toExtend<ApplyOptions['order']>();
expectTypeOf(perplexityOf).parameter(2).toExtend<{ skip?: readonly Block[] | undefined } | undefined>();

// --- the other functions ---

expectTypeOf(apply).returns.resolves.toEqualTypeOf<PruneResult>();
expectTypeOf(inspect).returns.resolves.toHaveProperty('blocks').toEqualTypeOf<BlockInfo[]>();
expectTypeOf<{ output: string; ratios: readonly [0.1, 0.2] }>().toExtend<CompareOptions>();
expectTypeOf(compare).returns.resolves.toEqualTypeOf<Comparison>();
expectTypeOf<typeof Model.load>().returns.resolves.toEqualTypeOf<Model>();
expectTypeOf(loadCalibration).returns.resolves.toExtend<Sequences>();
expectTypeOf(loadTask).returns.resolves.toEqualTypeOf<Task>();
expectTypeOf(scoreTasks).returns.resolves.toEqualTypeOf<TaskScores[]>();
expectTypeOf(perplexityOf).returns.resolves.toEqualTypeOf<number>();
expectTypeOf(textPerplexity).returns.resolves.toEqualTypeOf<Perplexity>();

// --- errors ---

// A program that tells codes apart is told of a new one, or of one that is gone, by its compiler.
expectTypeOf<ErrorCode>().toEqualTypeOf<
    | 'ARGUMENT'
    | 'MODEL'
    | 'UNSUPPORTED'
    | 'INPUT'
    | 'OUTPUT'
    | 'RESUME'
    | 'METHOD'
    | 'DEVICE'
    | 'DOWNLOAD'
    | 'ADDON'
    | 'RUNTIME'
    | 'REDIS'
    | 'VERIFICATION'
>();
expectTypeOf<BlockprunerError>().toExtend<Error>();
expectTypeOf<BlockprunerError['code']>().toEqualTypeOf<ErrorCode>();
expectTypeOf<ArgumentError>().toExtend<BlockprunerError>();
expectTypeOf<ArgumentError['argument']>().toEqualTypeOf<string>();
expectTypeOf<MethodError>().toExtend<BlockprunerError>();
