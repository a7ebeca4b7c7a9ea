import { SharedModel, type ClusterOptions } from '../cluster/fleet.js';
import { tryLoading } from '../export/probe.js';
import { checkLoadOptions, Model } from '../runtime/model.js';
import { resolveModel } from '../runtime/resolve.js';
import { deviceOf, type DeviceArguments } from './options.js';
import type { Progress } from './progress.js';

/** Loads a model on the device of the command line; a model behind a URI is downloaded first. */
export async function loadModel(
    model: string,
    argv: DeviceArguments,
    progress: Progress,
    signal: AbortSignal
): Promise<Model> {
    checkLoadOptions(deviceOf(argv)); // before a model is downloaded
    const file = await resolveModel(model, { signal, onProgress: progress.of('download') });
    await tryLoading(file, signal);
    return Model.load(file, { ...deviceOf(argv), signal, onProgress: progress.of('load') });
}

/** A model whose evaluations workers share. */
export function shared(
    model: Model,
    cluster: ClusterOptions,
    argv: DeviceArguments,
    progress: Progress,
    signal: AbortSignal
): SharedModel {
    const { onNotice } = deviceOf(argv);
    return new SharedModel(model, cluster, { onNotice, onWorkers: (workers) => progress.workers(workers), signal });
}
