/**
 * The package works from ES modules and CommonJS, and the first call builds the native addon if the installation did
 * not.
 *
 * ```js
 * import { prune, Model, textPerplexity } from 'blockpruner'; // or require('blockpruner')
 *
 * const result = await prune('model.gguf', { output: 'smaller.gguf', ratio: 0.2 });
 * const model = await Model.load('model.gguf');
 * console.log(await textPerplexity(model, 'wiki.txt', { skip: result.removed }));
 * model.dispose();
 * ```
 *
 * Errors that the caller can put right are {@link BlockprunerError}s, with a `code` and a message of one line. Each
 * function that takes long takes an `AbortSignal`. The functions that most programs need:
 *
 * - {@link prune} searches, writes the pruned file and checks it in the stock runtime. It resolves to what
 *   `blockpruner prune --json` prints. {@link apply} does the same for blocks that are known already, and
 *   {@link readOrder} reads them from an order file.
 * - {@link inspect} tells a model's blocks, sizes and host architecture.
 * - {@link compare} runs several methods of pruning against each other and against quantization, and
 *   {@link comparisonText}, {@link comparisonCsv} and {@link comparisonReport} show what it found.
 * - {@link serveRuns} lends a model to searches on other computers.
 * - {@link findDevices} tells where models can be computed on this computer.
 * - {@link Model.load} loads a model, of which any block can be left out. {@link resolveModel} downloads one.
 * - {@link loadCalibration} makes sequences of tokens of a text.
 * - {@link perplexityOf} and {@link textPerplexity} measure perplexity, and divergence from a dense model.
 * - {@link loadTask} and {@link scoreTasks} read multiple-choice benchmarks and score a model on them;
 *   {@link scoreAnswers} has it answer questions in its own words.
 *
 * Programs with a search of their own put it together from {@link movesOf}, {@link PrefixEvaluator},
 * {@link searchOrder}, {@link chooseHost} and {@link writeDraft}.
 *
 * @packageDocumentation
 */
export { devices, findDevices, type Device, type FoundDevice, type Gpu, type TriedGpu } from './runtime/device.js';
export {
    formatBlock,
    formatMove,
    parseBlock,
    parseBlocks,
    SkipSet,
    without,
    type Block,
    type BlockKind,
    type BlockSelection,
    type LinearBlock,
    type Merges,
    type Move,
    type Removal,
    type TensorChange
} from './runtime/blocks.js';
export { embeddedText, loadCalibration, type Calibration, type CalibrationOptions } from './calibration/calibration.js';
export { type DownloadOptions } from './calibration/download.js';
export { compare, type CompareOptions } from './pipeline/compare.js';
export { type ClusterOptions, type WorkerShare } from './cluster/fleet.js';
export { serveRuns, type WorkerEvent, type WorkerOptions } from './cluster/worker.js';
export { ArgumentError, BlockprunerError, MethodError, type ErrorCode } from './errors.js';
export { PrefixEvaluator, type PrefixOptions } from './search/prefix.js';
export {
    reportedScore,
    scoreTask,
    scoreTasks,
    type Score,
    type Scorer,
    type TaskOptions,
    type TaskScores
} from './evaluation/scores.js';
export { scoreAnswers } from './evaluation/answers.js';
export { loadTask, taskNames, type Question, type Task, type TaskSource } from './evaluation/tasks.js';
export {
    meanNll,
    measurePerplexity,
    perplexityOf,
    textPerplexity,
    textSequences,
    type Perplexity,
    type PerplexityDefinition,
    type PerplexityOptions,
    type TextOptions
} from './evaluation/perplexity.js';
export { type Host, type Plan } from './export/host.js';
export { adapt, type Adaptable, type Adapted, type AdaptOptions } from './export/adapt.js';
export { modelCard } from './report/model-card.js';
export { chooseHost } from './export/choose-host.js';
export {
    stockDraft,
    stockGenerate,
    stockNll,
    stockSpeed,
    type Drafting,
    type DraftRequest,
    type Speed,
    type StockOptions
} from './stock/stock.js';
export type { PastPruning, Provenance } from './export/provenance.js';
export { writeDraft, type DenseModel, type WriteOptions } from './export/write.js';
export { type Draft } from './output.js';
export { readGguf, type Gguf, type GgufTensorInfo } from './runtime/gguf.js';
export {
    Model,
    type BlockInfo,
    type Choice,
    type Divergence,
    type EvaluateOptions,
    type FittedMatrix,
    type FittedRepair,
    type Influence,
    type KeptMatrices,
    type LoadOptions,
    type ModelGraph,
    type RepairFit,
    type RunOptions
} from './runtime/model.js';
export { KeptStreams, type KeepOptions } from './runtime/kept-streams.js';
export {
    fileTypes,
    parseTensorType,
    quantizations,
    quantizeGguf,
    writeImatrix,
    type FileType,
    type ImportanceText,
    type Quantization,
    type QuantizeGgufOptions,
    type TensorTypeRule
} from './runtime/quantize.js';
export { type TensorImportance } from './runtime/addon.js';
export { resolveModel } from './runtime/resolve.js';
export { type Sequences } from './runtime/sequences.js';
export { apply, type ApplyOptions } from './pipeline/apply.js';
export { inspect, type Inspection } from './pipeline/inspect.js';
export { journalOf, prune, type PruneOptions } from './pipeline/prune.js';
export { searchTypes, type SearchType } from './pipeline/quantize.js';
export { repairJournalOf, repairTypes, type RepairOptions } from './pipeline/repair.js';
export { repairs, type Repair } from './repair/fit.js';
export { type DeliverOptions } from './pipeline/deliver.js';
export { type MeasurementOptions } from './pipeline/measurements.js';
export { type Phase, type PhaseProgress, type SearchChoice, type SessionOptions } from './pipeline/session.js';
export { comparisonReport } from './report/comparison-report.js';
export { comparisonCsv, comparisonTable, comparisonText } from './report/comparison-table.js';
export {
    comparedMethods,
    comparedRows,
    type ComparedMethod,
    type ComparedModel,
    type ComparedRow,
    type Comparison,
    type Cost,
    type Quality
} from './report/comparison.js';
export { pruneReport } from './report/prune-report.js';
export { type PruneResult, type RepairResult } from './report/prune-result.js';
export {
    formatStep,
    movesAfter,
    searchOrder,
    type CandidateEvaluator,
    type SearchEvaluator,
    type SearchMode,
    type SearchOptions,
    type SearchResult,
    type Step
} from './search/greedy.js';
export { type Candidate } from './search/contest.js';
export { methods, movesOf, type Method } from './methods/index.js';
export {
    type Candidates,
    type MethodOptions,
    type MoveSource,
    type SearchStart,
    type Worth
} from './methods/method.js';
export { formatOrder, readOrder } from './search/order.js';
