import { BlockprunerError } from '../errors.js';
import { meanNll, perplexityOf } from '../evaluation/perplexity.js';
import { scoreTasks, type TaskOptions, type TaskScores } from '../evaluation/scores.js';
import type { Task } from '../evaluation/tasks.js';
import { architectureOf, type Host } from '../export/host.js';
import { writeDraft } from '../export/write.js';
import type { Method } from '../methods/index.js';
import type { Decision } from '../methods/method.js';
import type { PruneResult, RepairResult } from '../report/prune-result.js';
import { formatMerges } from '../runtime/blocks.js';
import type { Device } from '../runtime/device.js';
import { countParameters, readGguf } from '../runtime/gguf.js';
import { useAlike, type Model } from '../runtime/model.js';
import type { Sequences } from '../runtime/sequences.js';
import { stockNll, stockSpeed, type StockOptions } from '../stock/stock.js';
import { quantizePruned, type QuantizeOptions } from './quantize.js';
import type { Session, SessionOptions } from './session.js';

/** The speed is measured on a prompt of so many tokens and as many generated ones. */
const SPEED_TOKENS = 128;

/** The speed is measured so often. */
const SPEED_ROUNDS = 3;

/**
 * The stock runtime hands over every logit, which takes about 0.3 µs each. Of longer texts, only so many logits' worth
 * of evenly spread positions are compared.
 */
const VERIFIED_LOGITS = 2 ** 25;

/** Where the stock runtime has no backend for the GPU, so many tokens are compared on the CPU, or one sequence. */
const CPU_TOKENS = 1024;

export interface DeliverOptions extends QuantizeOptions, Pick<SessionOptions, 'onProgress' | 'signal'> {
    /** The pruned GGUF to write. */
    output: string;
    /** Replace an existing file. Default: false. */
    force?: boolean | undefined;
    /** Load the result in the stock runtime and compare its perplexity. Default: true. */
    verify?: boolean | undefined;
}

/** What is known of the model that a decision leads to. */
export interface Measured {
    /** Perplexity on the calibration text. */
    perplexity: { dense: number; pruned: number };
    /** NLL of each predicted token without what goes, [sequences × (length − 1)]. */
    nll: Float32Array;
    tasks: { dense: TaskScores[]; pruned: TaskScores[] };
}

export interface MeasureOptions extends Pick<SessionOptions, 'onProgress' | 'signal'> {
    /** The folder for the file of a model with merged layers. */
    folder: string;
    /** Default: none. */
    tasks?: readonly Task[] | undefined;
    /** How many questions of each task are scored, from the first one on. Default: all. */
    limit?: number | undefined;
    /** The scores of the dense model on these tasks. */
    denseScores?: TaskScores[] | undefined;
}

/**
 * Measures what a decision leaves open: the perplexities, where the method didn't measure them, and the task scores.
 */
export async function measure(session: Session, decision: Decision, options: MeasureOptions): Promise<Measured> {
    const { folder, tasks = [], limit, denseScores = [], signal, onProgress } = options;
    const { model, calibration } = session;
    const reportEvaluated = (done: number, total: number) => onProgress?.('search', done, total);
    const dense = decision.dense ?? (await perplexityOf(model, calibration, { signal, onProgress: reportEvaluated }));
    const isMeasured = decision.nll !== undefined && tasks.length === 0; // no model need be written and loaded
    const [nll, scores] = isMeasured
        ? [decision.nll!, []]
        : await session.useDecided(
              decision,
              folder,
              async (decided, skip) => [
                  decision.nll ?? (await decided.evaluate(calibration, { skip, signal })),
                  await scoreTasks(decided, tasks, scoringOptions({ limit, signal, onProgress, skip }))
              ],
              signal
          );
    return {
        perplexity: { dense, pruned: Math.exp(meanNll(nll, calibration.length)) },
        nll,
        tasks: { dense: denseScores, pruned: scores }
    };
}

/** The options of scoring tasks, with its progress as a phase. */
export function scoringOptions({
    onProgress,
    ...options
}: Omit<TaskOptions, 'onProgress'> & Pick<SessionOptions, 'onProgress'>): TaskOptions {
    return { ...options, onProgress: (done, total) => onProgress?.('score', done, total) };
}

/**
 * Writes a pruned model, checks it in the stock runtime, quantizes it and measures its speed there if that is asked
 * for, and gives it its name. The session is disposed before, so that the stock runtime has room for its copy.
 * @throws BlockprunerError if the file can't be written or computes something else; no file is left behind then
 */
export async function deliver(
    session: Session,
    decided: {
        uri: string;
        method: Method | null;
        decision: Decision;
        /** The copies that the method searched in; null: the model itself. */
        searched: PruneResult['searched'];
        repair: RepairResult;
        /** What the repair was fitted to, if it was. */
        fitted: Sequences | undefined;
        measured: Measured;
        /** Scores the tasks again, of the model in another type. */
        score: (quantized: Model) => Promise<TaskScores[]>;
        started: number;
    },
    options: DeliverOptions & { speed: boolean }
): Promise<PruneResult> {
    const { uri, method, decision, searched, repair, fitted, measured, score, started } = decided;
    const { output, force, verify = true, signal, onProgress } = options;
    const { gguf, host, blocks, calibrationInfo, parameters, model } = session;
    const provenance = { calibration: calibrationInfo, perplexity: measured.perplexity };
    const stock = stockOptions(model, signal);

    const draft = await writeDraft(session, decision, provenance, output, {
        force,
        signal,
        onProgress: (done, total) => onProgress?.('write', done, total)
    });
    const check = async (file: string, nll: Float32Array) => {
        if (verify) {
            const reportVerified = (done: number, total: number) => onProgress?.('verify', done, total);
            const run = model.prebuilt ? checkInStockRuntime : checkOnCpu;
            await run(session, file, nll, { ...stock, onProgress: reportVerified });
        }
    };
    let speed: PruneResult['speed'] = null;
    let made, quantized;
    try {
        await check(draft.file, measured.nll);
        made = await quantizePruned(session, await readGguf(draft.file, signal), fitted, score, options);
        quantized = made.model;
        if (quantized) {
            await check(quantized.draft.file, quantized.nll);
        }
        const last = quantized?.draft ?? draft;
        if (options.speed) {
            const reportRound = (round: number) => onProgress?.('speed', round, SPEED_ROUNDS);
            speed = await measureSpeeds(gguf.files[0]!, last.file, stock, reportRound);
        }
        await Promise.all([last.flushed(), made.imatrix?.flushed()]); // of two files, none appears alone
        signal?.throwIfAborted();
        await made.imatrix?.publish();
        await last.publish();
    } finally {
        await draft.discard();
        await made?.imatrix?.discard();
        await quantized?.draft.discard();
    }

    const written = await readGguf(output); // without the signal, since the file is there
    return {
        model: uri,
        output,
        architecture: architectureOf(gguf),
        host: host.name,
        method,
        blocks: [...blocks],
        removed: decision.removed,
        repair,
        steps: decision.steps,
        linearGaps: decision.linearGaps ?? false,
        searched,
        ...(decision.merges && { merged: formatMerges(decision.merges) }),
        calibration: calibrationInfo,
        perplexity: measured.perplexity,
        parameters: { dense: parameters, pruned: countParameters(written) },
        bytes: { dense: gguf.bytes, pruned: written.bytes },
        quantized: quantized
            ? {
                  type: quantized.type,
                  tokens: quantized.tokens,
                  perplexity: Math.exp(meanNll(quantized.nll, session.calibration.length))
              }
            : null,
        tasks: { dense: measured.tasks.dense, pruned: quantized?.tasks ?? measured.tasks.pruned },
        speed,
        ...(session.workers && { workers: [...session.workers] }),
        seconds: (performance.now() - started) / 1000
    };
}

/**
 * @param sequences those that the NLLs are of. Default: the whole calibration
 * @throws BlockprunerError unless the stock runtime finds the perplexity of a file that was found before it was written
 */
async function checkInStockRuntime(
    { calibration, vocabulary, host }: Session,
    file: string,
    nll: Float32Array,
    stock: StockOptions,
    sequences: Sequences = calibration
): Promise<void> {
    const stride = Math.ceil((nll.length * vocabulary) / VERIFIED_LOGITS);
    const values = await stockNll(file, sequences, { ...stock, stride });
    const expected = nll.filter((_, position) => position % stride === 0);
    checkEqual(host, values, expected, 'in the stock runtime');
}

/**
 * The same where the stock runtime has no backend for the GPU. The search's device must find of the file what it found
 * before; the stock runtime is compared with what the CPU finds of the first sequences.
 */
async function checkOnCpu(session: Session, file: string, nll: Float32Array, stock: StockOptions): Promise<void> {
    const { calibration, host, model } = session;
    const { signal } = stock;
    const evaluateOn = (device: Device, sequences: Sequences) =>
        useAlike(model, file, (written) => written.evaluate(sequences, { signal }), { device, signal });
    checkEqual(host, await evaluateOn(model.device, calibration), nll, `on ${model.device}`);
    const { tokens, length } = calibration;
    const first = { tokens: tokens.slice(0, Math.max(1, Math.floor(CPU_TOKENS / length)) * length), length };
    await checkInStockRuntime(session, file, await evaluateOn('cpu', first), stock, first);
}

/** @throws BlockprunerError where two evaluations of a file's tokens give different perplexities */
function checkEqual({ tolerance }: Host, values: Float32Array, expected: Float32Array, where: string): void {
    const perplexity = (all: Float32Array) => Math.exp(meanNll(all, all.length + 1));
    const [found, searched] = [perplexity(values), perplexity(expected)];
    if (!(Math.abs(found / searched - 1) <= tolerance)) {
        throw new BlockprunerError(
            'VERIFICATION',
            `verification failed: the written file has perplexity ${found} ${where}, ` +
                `the search found ${searched}; no file was kept`
        );
    }
}

/**
 * How the stock runtime is to run a file, so that it computes what a model does here; on the CPU where the GPU's
 * backend is one that it doesn't have.
 */
export function stockOptions(
    { device, prebuilt, gpuLayers, threads, flashAttention }: Model,
    signal: AbortSignal | undefined
): StockOptions {
    return { device: prebuilt && device !== 'rpc' ? device : 'cpu', gpuLayers, threads, flashAttention, signal };
}

/** Measures both files' speeds in turns, so that whatever else the computer does slows both down. */
export async function measureSpeeds(
    dense: string,
    pruned: string,
    stock: StockOptions,
    onRound?: (round: number) => void
): Promise<NonNullable<PruneResult['speed']>> {
    const { device, threads } = stock;
    const speed: NonNullable<PruneResult['speed']> = { device, threads, tokens: SPEED_TOKENS, dense: [], pruned: [] };
    for (let round = 0; round < SPEED_ROUNDS; round++) {
        onRound?.(round);
        speed.dense.push(await stockSpeed(dense, SPEED_TOKENS, stock));
        speed.pruned.push(await stockSpeed(pruned, SPEED_TOKENS, stock));
    }
    return speed;
}
