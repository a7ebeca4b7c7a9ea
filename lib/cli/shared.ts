import { Presets, SingleBar } from 'cli-progress';
import type { Argv } from 'yargs';
import { devices, type Device } from '../runtime/device.js';
import type { CalibrationOptions } from '../calibration/calibration.js';
import { BlockprunerError } from '../errors.js';
import { Model } from '../runtime/model.js';
import { resolveModel } from '../runtime/resolve.js';
import type { Phase as PrunePhase } from '../pipeline/prune.js';
import { DEFAULT_CONFIDENCE } from '../search/race.js';

type Phase = PrunePhase | 'evaluate';

/** Options that several commands have; each has its text once. */
export const deviceOptions = {
    device: {
        choices: ['auto', ...devices] as const,
        default: 'auto',
        describe: 'Where to compute; auto takes the first GPU there is'
    },
    'gpu-layers': { type: 'number', describe: 'Layers on the GPU', defaultDescription: 'all' },
    threads: { type: 'number', describe: 'CPU threads', defaultDescription: 'all cores' }
} as const;

export const calibrationOptions = {
    calibration: {
        type: 'string',
        describe: 'Calibration text: a text file, or JSON Lines (.jsonl)',
        defaultDescription: 'embedded text'
    },
    field: {
        type: 'string',
        describe: 'Fields of a JSON Lines sample, comma-separated; a.0.b goes into objects and lists',
        defaultDescription: "text, or Alpaca's fields"
    },
    samples: { type: 'number', describe: 'Calibration sequences', defaultDescription: '16' },
    context: { type: 'number', describe: 'Tokens in a sequence', defaultDescription: '512' },
    seed: {
        type: 'number',
        describe: 'Choose the sequences at random by this number',
        defaultDescription: 'the first ones'
    }
} as const;

export const outputOptions = {
    output: { type: 'string', alias: 'o', demandOption: true, describe: 'The GGUF file to write' },
    force: { type: 'boolean', default: false, describe: 'Replace the output if it exists' },
    verify: {
        type: 'boolean',
        default: true,
        describe: "Check the result's perplexity in the stock runtime; --no-verify skips it"
    }
} as const;

export const searchOptions = {
    search: {
        choices: ['race', 'exact'] as const,
        default: 'race' as const,
        describe:
            "exact: the paper's choice for certain; race: the same with a stated probability, several times faster"
    },
    confidence: {
        type: 'number',
        default: DEFAULT_CONFIDENCE,
        describe: 'race: the probability that a removal is the one that exact makes'
    },
    memory: {
        type: 'number',
        describe: 'MiB on each device for what evaluations start from',
        defaultDescription: '2048'
    }
} as const;

/** The options of a search as the library takes them. */
export function searchSettings(argv: { search: 'race' | 'exact'; confidence: number; memory?: number | undefined }): {
    search: 'race' | 'exact';
    confidence: number;
    keepBytes: number | undefined;
} {
    checkNumber('confidence', argv.confidence);
    checkInteger('memory', argv.memory, 0);
    return {
        search: argv.search,
        confidence: argv.confidence,
        keepBytes: argv.memory === undefined ? undefined : argv.memory * 2 ** 20
    };
}

export const skipOption = {
    type: 'string',
    default: '',
    describe: 'Blocks to leave out, such as attn.3,ffn.7',
    defaultDescription: 'none'
} as const;

export const jsonOption = { type: 'boolean', default: false, describe: 'Print one JSON object on stdout' } as const;

/** Lets --task be repeated; of all else, the last one counts, as elsewhere. */
export function repeatableTask<T>(yargs: Argv<T>): Argv<T> {
    return yargs
        .parserConfiguration({ 'duplicate-arguments-array': true })
        .middleware((argv: Record<string, unknown>) => {
            for (const [key, value] of Object.entries(argv)) {
                if (key !== '_' && key !== 'task' && Array.isArray(value)) {
                    argv[key] = value.at(-1);
                }
            }
        }, true);
}

/** The positional MODEL of every command. */
export function modelArgument<T>(yargs: Argv<T>) {
    return yargs.positional('model', {
        type: 'string',
        demandOption: true,
        describe: 'A GGUF file, or a URI such as hf:user/repo:Q4_K_M or https://…'
    });
}

interface CalibrationArguments {
    calibration?: string | undefined;
    field?: string | undefined;
    samples?: number | undefined;
    context?: number | undefined;
    seed?: number | undefined;
}

export function calibrationOf(argv: CalibrationArguments): CalibrationOptions {
    checkInteger('samples', argv.samples, 1);
    checkInteger('context', argv.context, 2);
    checkInteger('seed', argv.seed, 0);
    return { file: argv.calibration, field: argv.field, samples: argv.samples, context: argv.context, seed: argv.seed };
}

export function checkDevice(argv: { 'gpu-layers'?: number | undefined; threads?: number | undefined }): void {
    checkInteger('gpu-layers', argv['gpu-layers'], 0);
    checkInteger('threads', argv.threads, 1);
}

export function checkInteger(name: string, value: number | undefined, low: number): void {
    if (value !== undefined && !(Number.isInteger(value) && value >= low)) {
        throw new BlockprunerError('ARGUMENT', `--${name} must be a whole number of at least ${low}`);
    }
}

export function checkNumber(name: string, value: number | undefined): void {
    if (Number.isNaN(value)) {
        throw new BlockprunerError('ARGUMENT', `--${name} must be a number`);
    }
}

const phases: Record<Phase, string> = {
    download: 'Downloading',
    load: 'Loading',
    calibrate: 'Calibration',
    search: 'Searching',
    evaluate: 'Evaluating',
    score: 'Scoring',
    write: 'Writing',
    verify: 'Verifying',
    speed: 'Speed'
};

/** Progress on stderr: a bar with the time left where that is a terminal, else only the lines. */
export class Progress {
    readonly #bar = process.stderr.isTTY
        ? new SingleBar(
              {
                  format: '{phase} {bar} {percentage} % | {duration_formatted} | {eta_formatted} left',
                  stream: process.stderr,
                  clearOnComplete: true,
                  hideCursor: true,
                  gracefulExit: false, // Ctrl-C is ours
                  // it calls this with text too, where it knows no time yet
                  formatTime: (seconds) =>
                      Number.isFinite(seconds)
                          ? `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, '0')}`
                          : '?',
                  etaBuffer: 50
              },
              Presets.shades_classic
          )
        : undefined;

    #phase: Phase | undefined;

    readonly update = (phase: Phase, done: number, total: number): void => {
        if (phase !== this.#phase) {
            this.#bar?.stop();
            this.#bar?.start(total, done, { phase: phases[phase].padEnd(11) });
            this.#phase = phase;
        }
        this.#bar?.setTotal(total);
        this.#bar?.update(Math.min(done, total));
    };

    /** A line that stays above the bar. */
    line(text: string): void {
        if (this.#bar && this.#phase) {
            process.stderr.write('\r\x1b[K');
        }
        process.stderr.write(`${text}\n`);
    }

    stop(): void {
        this.#bar?.stop();
        this.#phase = undefined;
    }
}

/** Loads the model of the command line, downloading it first where it is a URI. */
export async function loadModel(
    argv: { model: string; device: Device | 'auto'; 'gpu-layers'?: number | undefined; threads?: number | undefined },
    progress: Progress,
    signal: AbortSignal
): Promise<Model> {
    return Model.load(
        await resolveModel(argv.model, {
            signal,
            onProgress: (done, total) => progress.update('download', done, total)
        }),
        {
            device: argv.device,
            gpuLayers: argv['gpu-layers'],
            threads: argv.threads,
            signal,
            onProgress: (done, total) => progress.update('load', done, total)
        }
    );
}

/**
 * Aborted by the first Ctrl-C (or SIGTERM); the second ends the process at once.
 * @param outcome what that leaves, for the message
 */
export function interruptSignal(outcome?: string): AbortSignal {
    const controller = new AbortController();
    for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
        process.on(name, () => {
            if (controller.signal.aborted) {
                // the default action: process.exit() would wait for work on other threads
                process.removeAllListeners(name);
                process.kill(process.pid, name);
            }
            controller.abort(new Interrupted(outcome));
        });
    }
    return controller.signal;
}

export class Interrupted extends Error {
    /** @param outcome what is there now, and what the user can do */
    constructor(outcome?: string) {
        super(outcome === undefined ? 'stopped' : `stopped: ${outcome}`);
    }
}

export function mib(bytes: number): string {
    return `${(bytes / 2 ** 20).toFixed(1)} MiB`;
}

export function millions(parameters: number): string {
    return `${(parameters / 1e6).toFixed(1)} M`;
}
