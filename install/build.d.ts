export { BuildError, type BuildErrorCode } from './once.js';

/** Where the addon is once it is built. */
export declare const addonPath: string;

/**
 * Builds the addon unless it is up to date. `log` receives the progress, a line at a time; without it, stderr does.
 * @throws BuildError with what the user can do
 */
export declare function ensureBuilt(options?: { log?: (line: string) => void; force?: boolean }): Promise<void>;

/** The backends that are built where they are asked for: CUDA's for the GPUs of this computer, and RPC's. */
export type ExtraBackend = 'cuda' | 'rpc';

/**
 * Builds a backend unless it is built, and returns its library.
 * @throws BuildError with what the user can do
 */
export declare function buildBackend(kind: ExtraBackend, options?: { log?: (line: string) => void }): Promise<string>;

/** The library of a backend that was built here; '' if none was, or for another release of llama.cpp. */
export declare function builtBackend(kind: ExtraBackend): string;
