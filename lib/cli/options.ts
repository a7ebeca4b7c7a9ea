// Options that several commands have, each described once, and what the library takes in their place. The library
// checks their values; here are checked only those that it never sees as they were given.
import type { Argv } from 'yargs';
import type { CalibrationOptions } from '../calibration/calibration.js';
import { checkInteger } from '../check.js';
import type { ClusterOptions } from '../cluster/fleet.js';
import { DEFAULT_NAMESPACE } from '../cluster/connection.js';
import { BlockprunerError } from '../errors.js';
import { taskNames } from '../evaluation/tasks.js';
import type { QuantizeOptions } from '../pipeline/quantize.js';
import { repairTypes, type RepairOptions } from '../pipeline/repair.js';
import { repairs } from '../repair/fit.js';
import { devices, type Device } from '../runtime/device.js';
import { fileTypes, type FileType } from '../runtime/quantize.js';
import { DEFAULT_CONFIDENCE } from '../search/race.js';
import { tell } from './stderr.js';
import { messageInWords } from './words.js';

/** The positional MODEL, which every command has. */
export function modelArgument<T>(yargs: Argv<T>) {
    return yargs.positional('model', {
        type: 'string',
        demandOption: true,
        describe: 'A GGUF file, or a URI such as hf:user/repo:Q4_K_M or https://…'
    });
}

export const jsonOption = { type: 'boolean', default: false, describe: 'Print one JSON object on stdout' } as const;

export const skipOption = {
    type: 'string',
    default: '',
    describe: 'Blocks to leave out, such as attn.3,ffn.7',
    defaultDescription: 'none'
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

export const quantizeOptions = {
    type: {
        choices: fileTypes,
        describe:
            'Quantize the result to this type, by its importance matrix on the text that was used: a model in F16 or ' +
            'BF16 loses least so',
        defaultDescription: 'tensors keep their types'
    },
    'tensor-type': {
        type: 'string',
        array: true,
        nargs: 1,
        describe: 'Tensors of another type, such as attn_v=q8_0, the first part a regular expression; repeatable'
    },
    'imatrix-out': {
        type: 'string',
        describe: 'Write the importance matrix of the result there, for llama-quantize'
    }
} as const;

export interface QuantizeArguments {
    type?: FileType | undefined;
    tensorType?: readonly string[] | undefined;
    imatrixOut?: string | undefined;
}

export function quantizeOf({ type, tensorType, imatrixOut }: QuantizeArguments): QuantizeOptions {
    return { type, tensorTypes: tensorType, imatrixOut };
}

export const deviceOptions = {
    device: {
        choices: ['auto', ...devices] as const,
        default: 'auto',
        describe: "Where to compute; auto takes the first GPU that works; 'blockpruner devices' lists them"
    },
    'gpu-layers': { type: 'number', describe: 'Layers on the GPU', defaultDescription: 'all' },
    rpc: {
        type: 'string',
        describe: 'RPC servers of llama.cpp to compute on, host:port,host:port (experimental, for networks of your own)'
    },
    threads: { type: 'number', describe: 'CPU threads', defaultDescription: 'all cores' }
} as const;

export interface DeviceArguments {
    device: Device | 'auto';
    gpuLayers?: number | undefined;
    rpc?: string | undefined;
    threads?: number | undefined;
}

export function deviceOf({ device, gpuLayers, rpc, threads }: DeviceArguments) {
    const onNotice = (notice: string) => tell(messageInWords(notice), { notice: messageInWords(notice) });
    return { device, gpuLayers, rpc: rpc?.split(',').map((server) => server.trim()), threads, onNotice };
}

export const calibrationOptions = {
    calibration: {
        type: 'string',
        describe:
            'Calibration text: a text file, JSON Lines (.jsonl, .ndjson) or a JSON list (.json), also as .gz, or ' +
            'a parquet file; conversations are written by the chat template of the model; self: text that the model ' +
            'writes itself; embedded: prose and speeches',
        defaultDescription: 'self'
    },
    field: {
        type: 'string',
        describe: 'Fields of a sample of JSON, or columns, comma-separated; a.0.b goes into objects and lists',
        defaultDescription: "messages, conversations, text, or Alpaca's fields"
    },
    samples: { type: 'number', describe: 'Calibration sequences', defaultDescription: '16' },
    context: { type: 'number', describe: 'Tokens in a sequence', defaultDescription: '512' },
    seed: {
        type: 'number',
        describe: 'Choose the sequences at random by this number',
        defaultDescription: 'the first ones'
    }
} as const;

export function calibrationOf({
    calibration,
    field,
    samples,
    context,
    seed
}: Omit<CalibrationOptions, 'file'> & { calibration?: string | undefined }): CalibrationOptions {
    return { file: calibration, field, samples, context, seed };
}

export const redisOptions = {
    redis: {
        type: 'string',
        describe:
            'The Redis where a search meets its workers, such as redis://host:6379, or rediss://… with TLS; a ' +
            'password is better in the environment than here',
        default: process.env.BLOCKPRUNER_REDIS,
        defaultDescription: '$BLOCKPRUNER_REDIS, if it is set'
    },
    namespace: {
        type: 'string',
        describe: 'How keys in Redis begin; a search and its workers have the same',
        defaultDescription: DEFAULT_NAMESPACE
    }
} as const;

export const clusterOptions = {
    ...redisOptions,
    workers: {
        type: 'number',
        describe: "With --redis: begin the search when so many workers ('blockpruner worker') are there",
        defaultDescription: '1'
    },
    mixed: {
        type: 'boolean',
        describe: "With --redis: take workers whose devices round otherwise than the first one's too",
        defaultDescription: 'false'
    }
} as const;

interface ClusterArguments {
    redis?: string | undefined;
    namespace?: string | undefined;
    workers?: number | undefined;
    mixed?: boolean | undefined;
}

/** @throws BlockprunerError where something is said of workers, and not where they are */
export function clusterOf({ redis, namespace, workers, mixed }: ClusterArguments): ClusterOptions | undefined {
    if (redis === undefined && (namespace !== undefined || workers !== undefined || mixed !== undefined)) {
        throw new BlockprunerError(
            'ARGUMENT',
            '--namespace, --workers and --mixed are of workers: say by --redis where'
        );
    }
    return redis === undefined ? undefined : { redis, namespace, workers, mixed };
}

export const searchOptions = {
    search: {
        choices: ['race', 'exact'] as const,
        default: 'race' as const,
        describe:
            'exact: the choice of a full search for certain; race: the same with a stated probability, several times ' +
            'faster'
    },
    confidence: {
        type: 'number',
        default: DEFAULT_CONFIDENCE,
        describe: 'race: the probability that a removal is the one that exact makes'
    },
    memory: {
        type: 'number',
        describe: 'MiB on each device for what evaluations start from',
        defaultDescription: '2048; three quarters of what is free on a GPU'
    },
    'repair-search': {
        type: 'boolean',
        default: false,
        describe: "Compare candidates with the repair's linear blocks in their gaps, fitted to the model as it is"
    },
    ...clusterOptions
} as const;

interface SearchArguments extends ClusterArguments {
    search: 'race' | 'exact';
    confidence: number;
    repairSearch: boolean;
    memory?: number | undefined;
}

/** The choice of a search. The library takes bytes. */
export function searchOf({ search, confidence, memory, repairSearch, ...cluster }: SearchArguments) {
    return { search, confidence, keepBytes: bytesOf(memory), repairSearch, cluster: clusterOf(cluster) };
}

/** @throws ArgumentError unless `memory` is a whole number of MiB */
export function bytesOf(memory: number | undefined): number | undefined {
    checkInteger('memory', memory, { least: 0 });
    return memory === undefined ? undefined : memory * 2 ** 20;
}

export const repairOptions = {
    repair: {
        choices: repairs,
        describe:
            'What makes up for what is gone: a linear block in each gap (linear), also the output projections before ' +
            'the gaps fitted anew (adjacent), or all projections from there on (all); none is the paper',
        defaultDescription: 'linear; all where the host has no linear blocks'
    },
    'repair-tokens': {
        type: 'number',
        describe: 'Tokens that the repair is fitted to, beside those that the search is measured on',
        defaultDescription: '64 a value of the residual stream'
    },
    'repair-type': {
        choices: repairTypes,
        describe: 'Tensor type of what the repair puts in or fits anew',
        defaultDescription: 'q8_0 for linear blocks in a quantized model; projections keep theirs'
    }
} as const;

export function repairOf({ repair, repairTokens, repairType }: RepairOptions): RepairOptions {
    return { repair, repairTokens, repairType };
}

export const taskOptions = {
    task: {
        type: 'string',
        array: true,
        nargs: 1,
        describe: `BENCHMARK=FILE, or a URI, as often as wanted: ${taskNames.join(', ')}`
    },
    limit: { type: 'number', describe: 'Score the first so many questions of each', defaultDescription: 'all' }
} as const;

/** Lets --task be repeated. Of every other option the last value counts, as in the commands without --task. */
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
