/**
 * blockpruner: make a GGUF language model smaller and faster without training it. See docs/api.md.
 * @packageDocumentation
 */
export { devices, type Device } from './runtime/device.js';
export {
    formatBlock,
    formatMove,
    parseBlock,
    parseBlocks,
    without,
    type Block,
    type BlockKind,
    type BlockSelection,
    type Move
} from './runtime/blocks.js';
export {
    defaultCalibration,
    loadCalibration,
    type Calibration,
    type CalibrationOptions
} from './calibration/calibration.js';
export { compare, type CompareOptions } from './pipeline/compare.js';
export { BlockprunerError, MethodError } from './errors.js';
export { PrefixEvaluator, type PrefixOptions } from './search/prefix.js';
export {
    reportedScore,
    scoreTask,
    scoreTasks,
    type Score,
    type TaskOptions,
    type TaskScores
} from './evaluation/scores.js';
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
export { type Export, type Host } from './export/host.js';
export { chooseHost } from './export/choose-host.js';
export { stockGenerate, stockNll, stockSpeed, type Speed, type StockOptions } from './stock/stock.js';
export { writePruned, type Provenance, type WriteOptions } from './export/write.js';
export { readGguf, type Gguf, type GgufTensorInfo } from './runtime/gguf.js';
export {
    Model,
    type BlockInfo,
    type Choice,
    type Divergence,
    type EvaluateOptions,
    type Influence,
    type LoadOptions,
    type ModelGraph,
    type RunOptions
} from './runtime/model.js';
export { KeptStreams, type KeepOptions } from './runtime/kept-streams.js';
export { resolveModel } from './runtime/resolve.js';
export { type Sequences } from './runtime/sequences.js';
export {
    apply,
    inspect,
    journalOf,
    prune,
    type ApplyOptions,
    type Inspection,
    type Phase,
    type PruneOptions,
    type SearchStart
} from './pipeline/prune.js';
export { comparisonReport, pruneReport } from './report/index.js';
export {
    comparedMethods,
    comparedRows,
    comparisonCsv,
    comparisonTable,
    type ComparedMethod,
    type ComparedModel,
    type ComparedRow,
    type Comparison,
    type PruneResult,
    type Quality
} from './report/results.js';
export {
    searchOrder,
    type Evaluator,
    type SearchMode,
    type SearchOptions,
    type SearchResult,
    type Step
} from './search/greedy.js';
export { type Candidate } from './search/contest.js';
export { methods, movesOf, type Method, type MethodOptions } from './methods/index.js';
export { formatOrder, readOrder } from './search/order.js';
